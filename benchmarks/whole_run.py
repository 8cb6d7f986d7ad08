"""How long one epoch takes from the command to the finished model directory, and where it goes.

    python benchmarks/whole_run.py
    python benchmarks/whole_run.py --papers 136000 --config configs/large_batch.json

It writes a CSV of papers of random words, as many tokens long as arXiv's summaries, and a
DistilBERT with random weights; then runs scripts/train.py on them, without the judgement of the
test papers, whose baselines are a matter of the CPU. Stepping is the time of the optimizer's steps
alone, from the rates in the log.
"""

import argparse
import ast
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402

from nej.fields import KAGGLE_COLUMNS  # noqa: E402

CODES = ("cs.AI", "cs.CL", "cs.CV", "cs.LG", "stat.ML")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZES = {"starter": {"dim": 384, "n_layers": 6, "n_heads": 12, "hidden_dim": 1536}, "base": {}}


def write_model(folder: Path, size: str, words: list[str]) -> None:
    """Write a DistilBERT with random weights whose tokens are the words."""
    import torch
    from transformers import BertTokenizer, DistilBertConfig, DistilBertModel
    torch.manual_seed(0)
    vocabulary = [*SPECIAL, *words]
    DistilBertModel(DistilBertConfig(vocab_size=len(vocabulary), **SIZES[size])
                    ).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=True, model_max_length=512,
                  model_input_names=["input_ids", "attention_mask"]).save_pretrained(folder)


def write_papers(path: Path, number: int, words: list[str]) -> None:
    """Write papers: mean 238 words, 95th percentile about 359; a class has words of its own."""
    draw = np.random.default_rng(0)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(KAGGLE_COLUMNS)
        for index, length in enumerate(np.clip(draw.normal(238, 73, number), 20, 500).astype(int)):
            label = int(draw.integers(len(CODES)))
            drawn = draw.integers(0, len(words), length)
            drawn[::20] = drawn[::20] % 100 + 100 * label
            text = " ".join(words[word] for word in drawn.tolist())
            code = CODES[label]
            writer.writerow((f"{1000 + index // 90000}.{10000 + index % 90000}v1", text[:60], code,
                             code, "1/2/20", "1/2/20", "['A']", "'A'", text, length))


def stepping(log: list[dict], tokens: int) -> float:
    """Return the seconds of the steps, of the tokens a second between two logs."""
    rates = [entry["tokens_per_second"] for entry in log if "tokens_per_second" in entry]
    return sum(tokens / len(rates) / rate for rate in rates)


def main() -> None:
    """Run, and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, default=136_000, help="training papers")
    parser.add_argument("--model", choices=SIZES, default="base")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "large_batch.json")
    options, more = parser.parse_known_args()
    draw = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = sorted({"".join(draw.choice(letters, 7)) for _ in range(30_000)})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", options.model, words)
        write_papers(folder / "papers.csv", int(options.papers / 0.78), words)
        command = [
            sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(options.config),
            "--data_path", str(folder / "papers.csv"), "--model_name_or_path",
            str(folder / "model"), "--output_dir", str(folder / "out"), "--reports_dir",
            str(folder), "--max_train_papers", str(options.papers), "--num_train_epochs", "1",
            "--report_to", "none", "--do_predict", "false", *more]
        start, marks, log = time.perf_counter(), [], []
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"),
                              "PYTHONUNBUFFERED": "1"})
        for line in process.stdout:
            marks.append((time.perf_counter() - start, line.strip()))
            if line.startswith("{'"):
                entry = ast.literal_eval(line)
                log.append({key: float(value) for key, value in entry.items()})
            else:
                print(f"[{marks[-1][0]:6.1f} s] {line}", end="", flush=True)
        whole = time.perf_counter() - start
        if process.wait():
            raise SystemExit(f"{command} ended with {process.returncode}")
        manifest = json.loads((folder / "out" / "manifest.json").read_text("utf-8"))
        before, line = next(mark for mark in marks if mark[1].startswith("train: "))
        mean = float(line.split("papers, ")[1].split()[0])
        steps = stepping(log, int(mean * options.papers))
        validations = sum(entry.get("eval_runtime", 0) for entry in log)
        saving = manifest["training_seconds"] - steps - validations
        print(f"\n{options.papers:,} papers of {mean:.0f} tokens, one epoch, "
              f"{manifest['steps']} steps\n\n| | seconds |\n|---|--:|\n"
              f"| start, cleaning, tokenization | {before:.1f} |\n"
              f"| stepping | {steps:.1f} |\n| validation | {validations:.1f} |\n"
              f"| checkpoints and the rest of Trainer | {saving:.1f} |\n"
              f"| the model, its files and pictures | "
              f"{whole - before - manifest['training_seconds']:.1f} |\n"
              f"| whole command | {whole:.1f} |\n\nwhole / stepping: {whole / steps:.2f}")


if __name__ == "__main__":
    main()
