"""Is nej as accurate as stock Trainer? Both trained to the end on the same papers, seed by seed.

    python benchmarks/equal_accuracy.py
    python benchmarks/equal_accuracy.py --write papers.npz    # for a machine that has no data set
    python benchmarks/equal_accuracy.py --papers_file papers.npz --starter models/starter

stock is Trainer as in transformers' text-classification example, fp32, padded to max_length; nej
what scripts/train.py runs. Same starting checkpoint, papers, papers per step, epochs, AdamW,
learning rate, schedule and dropout; each draws its own order of the papers. Test papers are judged
by each in its own way of computing. Intervals are 95 % of the bootstrap over test papers, of the
mean over the seeds, paired for the difference.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
sys.path.insert(1, str(Path(__file__).resolve().parent))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from training_speed import GPU, Split, Tokenizer  # noqa: E402
from transformers import (  # noqa: E402
    DataCollatorWithPadding, DistilBertForSequenceClassification, Trainer, TrainingArguments,
)

from nej.config import Config  # noqa: E402
from nej.device import prepare_device, use_bf16  # noqa: E402
from nej.judging.intervals import Bootstrap, interval, scores  # noqa: E402
from nej.packing import can_pack, take_packed  # noqa: E402
from nej.trainer import PaperTrainer  # noqa: E402

MAX_LENGTH, BATCH, RATE, WARM_UP, DECAY = 256, 32, 1e-4, 0.06, 0.01


def write(path: Path, papers: int) -> None:
    """Write tokens and labels of training and test papers."""
    from nej.config import load_config
    from nej.dataset import load_dataset
    from nej.model import load_tokenizer
    config = load_config(Path("configs/starter.json"), [
        f"--max_length={MAX_LENGTH}", f"--max_train_papers={papers}", "--distillation_weight=0"])
    dataset = load_dataset(config, load_tokenizer("models/starter"))
    arrays = {"names": np.array(dataset["train"].features["label"].names)}
    for name in ("train", "test"):
        arrays[f"{name}_tokens"] = np.concatenate(
            dataset[name].with_format("numpy")["input_ids"][:]).astype(np.uint16)
        arrays[f"{name}_lengths"] = np.array(dataset[name]["length"][:], np.uint16)
        arrays[f"{name}_labels"] = np.array(dataset[name]["label"][:], np.uint8)
    np.savez_compressed(path, **arrays)


def read(path: Path) -> tuple[dict[str, Split], list[str]]:
    """Return the papers of train and test, and the classes."""
    arrays = np.load(path)
    found = {}
    for name in ("train", "test"):
        ends = np.cumsum(arrays[f"{name}_lengths"].astype(np.int64))
        tokens = np.split(arrays[f"{name}_tokens"].astype(np.int64), ends[:-1])
        found[name] = Split({"input_ids": ids, "label": label, "length": len(ids)} for ids, label
                            in zip(tokens, arrays[f"{name}_labels"].tolist()))
    return found, arrays["names"].tolist()


def predict(contestant: str, seed: int, options: argparse.Namespace, papers: dict[str, Split],
            classes: int) -> tuple[np.ndarray, float]:
    """Train, and return the classes of the test papers and the seconds of training."""
    transformers.set_seed(seed)
    model = DistilBertForSequenceClassification.from_pretrained(
        options.starter, num_labels=classes)
    with tempfile.TemporaryDirectory() as folder:
        torch.use_deterministic_algorithms(GPU and contestant == "nej")
        if contestant == "stock":
            os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
            trainer = Trainer(
                model=model, train_dataset=papers["train"], args=TrainingArguments(
                    folder, per_device_train_batch_size=BATCH, num_train_epochs=options.epochs,
                    learning_rate=RATE, warmup_steps=WARM_UP, weight_decay=DECAY, seed=seed,
                    report_to="none", save_strategy="no", per_device_eval_batch_size=BATCH,
                    logging_steps=100, use_cpu=not GPU),
                data_collator=DataCollatorWithPadding(
                    Tokenizer(), padding="max_length", max_length=MAX_LENGTH))
        else:
            device = "cuda" if GPU else "cpu"
            packed = can_pack(device, use_bf16(Config(), device))
            if packed:
                take_packed(model)
            trainer = PaperTrainer(
                Config(max_length=MAX_LENGTH, global_batch_size=BATCH, learning_rate=RATE,
                       num_train_epochs=options.epochs, warmup_steps=WARM_UP, weight_decay=DECAY,
                       seed=seed, report_to="none", eval_steps=100_000, logging_steps=100),
                model, {"train": papers["train"], "validation": papers["test"].select([0])},
                Path(folder), packed=packed, pad_token_id=0)
            trainer.evaluate = lambda *_, **__: {"eval_macro_f1": 0.0}  # steps only
            trainer._save_checkpoint = trainer._load_best_model = lambda *_, **__: None
        start = time.perf_counter()
        trainer.train()
        if GPU:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        order = np.argsort([paper["length"] for paper in papers["test"]], kind="stable")
        logits = trainer.predict(papers["test"].select(order)).predictions
    predicted = np.empty(len(order), int)
    predicted[order] = logits.argmax(1)
    return predicted, seconds


def judge(labels: np.ndarray, predicted: np.ndarray, classes: int, bootstrap: Bootstrap
          ) -> np.ndarray:
    """Return accuracy and macro F1 of the papers and then of each resample, (1 + resamples, 2)."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predicted), 1)
    whole, drawn = scores(counts), scores(bootstrap.confusion(labels, predicted, classes))
    return np.stack([np.append(whole[key], drawn[key]) for key in ("accuracy", "macro_f1")], 1)


def main() -> None:
    """Train all, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, default=20_000, help="training papers")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--starter", default="models/starter")
    parser.add_argument("--papers_file", type=Path, help="what --write wrote, in place of data/")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the papers, and no more")
    options = parser.parse_args()
    if options.write:
        write(options.write, options.papers)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.papers_file or Path(folder) / "papers.npz"
        if not options.papers_file:
            write(path, options.papers)
        papers, names = read(path)
    prepare_device(Config())
    labels = np.array(papers["test"]["label"])
    bootstrap = Bootstrap(len(labels))
    found: dict[str, list[np.ndarray]] = {"stock": [], "nej": []}
    lines = ["| | seed | accuracy | macro F1 | seconds |", "|---|--:|--:|--:|--:|"]
    for seed in options.seeds:
        for name in found:
            predicted, seconds = predict(name, seed, options, papers, len(names))
            found[name].append(judge(labels, predicted, len(names), bootstrap))
            accuracy, f1 = found[name][-1][0]
            lines.append(f"| {name} | {seed} | {accuracy:.4f} | {f1:.4f} | {seconds:.1f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    means = {name: np.mean(each, 0) for name, each in found.items()}
    means["nej - stock"] = means["nej"] - means["stock"]
    for name, each in means.items():
        cells = []
        for figure in (0, 1):
            low, high = interval(each[1:, figure])
            cells.append(f"{each[0, figure]:.4f} ({low:.4f} to {high:.4f})")
        lines.append(f"| {name} | mean | {' | '.join(cells)} | |")
    device = torch.cuda.get_device_name() if GPU else "CPU"
    print(f"{len(papers['train']):,} training papers, {len(labels):,} test papers, "
          f"{', '.join(names)}; {options.epochs} epochs, {device}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
