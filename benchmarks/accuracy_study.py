"""What helps and what does not: the same training with one setting changed at a time.

    python benchmarks/accuracy_study.py
    python benchmarks/accuracy_study.py --papers 8000 --only base "label smoothing 0.1"

Each variant of configs/starter.json is trained on the same papers and judged on the same validation
papers, never on the test papers. The table has the differences to the first row, with 95 %
intervals of the paired bootstrap; the seeds show how much of that is chance. Models lie in
models/study/, and one that is there is not trained again.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BASE = {
    "top_k": 5, "validation_fraction": 0.04, "max_length": 256, "distillation_weight": 0.0,
    "eval_steps": 0.999, "report_to": "none", "do_predict": False,
}
VARIANTS = {
    "base": {},
    "seed 1": {"seed": 1},
    "summary only": {"text_fields": "summary"},
    "balanced class weights": {"class_weights": "balanced"},
    "label smoothing 0.1": {"label_smoothing_factor": 0.1},
    "layer decay 0.8": {"layer_decay": 0.8},
    "384 tokens": {"max_length": 384},
    "soft labels 0.6": {"distillation_weight": 0.6},
    "soft labels 0.6, smoothing 0.1": {
        "distillation_weight": 0.6, "label_smoothing_factor": 0.1},
    "seed 2": {"seed": 2},
    "AdamW": {"optimizer": "adamw"},
    "160 tokens": {"max_length": 160},
}


def judge(name: str, papers: int, config_path: Path) -> dict:
    """Train a variant unless it is there; return its predictions for the validation papers."""
    from nej.config import load_config
    from nej.dataset import load_dataset
    from nej.manifest import origin, write_manifest
    from nej.prediction import Classifier
    from nej.training import train
    folder = Path("models/study") / name.replace(" ", "-")
    kept = folder / "validation_predictions.json"
    if kept.exists():
        return json.loads(kept.read_text("utf-8"))
    values = BASE | {"max_train_papers": papers} | VARIANTS[name]
    config = load_config(config_path, [
        f"--{key}={value}" for key, value in values.items()] + [f"--output_dir={folder}"])
    made_from = origin(config)

    def finish(work, result):
        write_manifest(work, config, result, made_from)
        classifier = Classifier.load(work)
        split = load_dataset(config, classifier.tokenizer)["validation"]
        predicted = classifier.run(split).logits.argmax(1)
        (work / kept.name).write_text(json.dumps({
            "ids": split["id"][:], "labels": split["label"][:], "predicted": predicted.tolist(),
            "names": classifier.names, "seconds": result.seconds}), "utf-8")
    train(config, finish=finish)
    return json.loads(kept.read_text("utf-8"))


def table(found: dict[str, dict]) -> str:
    """Return the study as a Markdown table."""
    import numpy as np

    from nej.judging.intervals import Bootstrap, interval, scores
    (_, base), *_ = found.items()
    labels, classes = np.array(base["labels"]), len(base["names"])
    bootstrap = Bootstrap(len(labels))

    def judged(predicted):
        counts = np.zeros((classes, classes), int)
        np.add.at(counts, (labels, predicted), 1)
        return scores(counts), scores(bootstrap.confusion(labels, predicted, classes))

    whole, drawn = judged(np.array(base["predicted"]))
    lines = [f"On {len(labels):,} validation papers:", "",
             "| | accuracy | macro F1 | accuracy, difference | macro F1, difference | minutes |",
             "|---|---|---|---|---|---|"]
    for name, one in found.items():
        if one["ids"] != base["ids"]:
            raise SystemExit(f"{name}: other validation papers than the first; delete models/study")
        figures, resamples = judged(np.array(one["predicted"]))
        cells = [f"{figures[key]:.4f}" for key in ("accuracy", "macro_f1")]
        for key in ("accuracy", "macro_f1"):
            low, high = interval(resamples[key] - drawn[key])
            cells.append("" if one is base else
                         f"{figures[key] - whole[key]:+.4f} ({low:+.4f} to {high:+.4f})")
        lines.append(f"| {name} | {' | '.join(cells)} | {one['seconds'] / 60:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is wanted, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, default=4000, help="training papers of each variant")
    parser.add_argument("--config", type=Path, default=Path("configs/starter.json"))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS),
                        metavar="VARIANT", help="some of: " + ", ".join(VARIANTS))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = {}
    for name in options.only:
        found[name] = judge(name, options.papers, options.config)
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
