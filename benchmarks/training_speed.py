"""Compare nej's training steps with those that a user would otherwise run.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --model base --max_length 512

The contestants take turns in one process, and each figure is the median of its rounds. All of them
do the same learning problem: AdamW, 32 papers per step, the same model and dropout.

stock        Trainer as in transformers' text-classification example: fp32, padded to max_length
tuned        Trainer's own options: dynamic padding, papers grouped by length, bf16
nej padded   what nej runs with attn_implementation=eager: micro-batches of like length, bf16
nej          what scripts/train.py runs: no padding

Papers are generated, with the lengths of arXiv's summaries; weights are random. It measures the
steps of an optimizer, without start-up, validation and saving.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformers import (  # noqa: E402
    DataCollatorWithPadding, DistilBertConfig, DistilBertForSequenceClassification, Trainer,
    TrainerCallback, TrainingArguments,
)

from nej.config import Config  # noqa: E402
from nej.packing import take_packed  # noqa: E402
from nej.training import PaperTrainer  # noqa: E402

BATCH, CLASSES = 32, 5
SIZES = {"starter": {"dim": 384, "n_layers": 6, "n_heads": 12, "hidden_dim": 1536}, "base": {}}


class Tokenizer:
    """What the collators need of a tokenizer."""

    pad_token_id, padding_side, model_input_names = 0, "right", ["input_ids", "attention_mask"]

    def pad(self, features, padding=True, max_length=None, **_):
        """Pad to the longest paper, or to max_length."""
        longest = max_length if padding == "max_length" else max(
            len(f["input_ids"]) for f in features)
        rows = [[*f["input_ids"], *[0] * (longest - len(f["input_ids"]))] for f in features]
        masks = [[1] * len(f["input_ids"]) + [0] * (longest - len(f["input_ids"]))
                 for f in features]
        return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks),
                "label": torch.tensor([f["label"] for f in features])}


class Stopwatch(TrainerCallback):
    """Take the time of each optimizer step but the first."""

    def __init__(self):
        self.marks = []

    def on_step_end(self, args, state, control, **kwargs):
        """Note when a step ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())


def papers(number: int, max_length: int, vocabulary: int) -> datasets.DatasetDict:
    """Return random papers: mean 238 tokens, 95th percentile about 359, cut at max_length."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.normal(238, 73, number).round().astype(int), 20, max_length)
    data = {"input_ids": [draw.integers(5, vocabulary, n).tolist() for n in lengths],
            "label": draw.integers(0, CLASSES, number).tolist(), "length": lengths.tolist()}
    split = datasets.Dataset.from_dict(data, features=datasets.Features({
        "input_ids": datasets.List(datasets.Value("int32")), "length": datasets.Value("int32"),
        "label": datasets.ClassLabel(names=[f"c{index}" for index in range(CLASSES)])}))
    return datasets.DatasetDict(train=split, validation=split.select(range(BATCH)))


def contestants(options: argparse.Namespace, dataset: datasets.DatasetDict,
                folder: str) -> dict[str, Callable[[], Trainer]]:
    """Return how each contestant makes its Trainer."""
    def model(attention: str) -> DistilBertForSequenceClassification:
        torch.manual_seed(0)
        rates = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"),
                              options.dropout)
        return DistilBertForSequenceClassification._from_config(DistilBertConfig(
            **SIZES[options.model], **rates, num_labels=CLASSES), attn_implementation=attention)

    def plain(**arguments) -> Trainer:
        to_longest = arguments.pop("padding", True)
        return Trainer(
            model=model("sdpa"), train_dataset=dataset["train"],
            args=TrainingArguments(
                folder, per_device_train_batch_size=BATCH, max_steps=options.steps,
                report_to="none", disable_tqdm=True, save_strategy="no", seed=1,
                use_cpu=not torch.cuda.is_available(), **arguments),
            data_collator=DataCollatorWithPadding(
                Tokenizer(), padding=to_longest,
                max_length=options.max_length if to_longest == "max_length" else None))

    def own(packed: bool, **keys) -> Trainer:
        network = model("eager")
        if packed:
            take_packed(network)
        return PaperTrainer(
            Config(max_steps=options.steps, max_length=options.max_length, report_to="none",
                   global_batch_size=BATCH, eval_steps=10_000, **keys),
            network, Tokenizer(), dataset, Path(folder), packed=packed)

    return {
        "stock": lambda: plain(padding="max_length"),
        "tuned": lambda: plain(bf16=True, train_sampling_strategy="group_by_length"),
        "nej padded": lambda: own(packed=False),
        "nej": lambda: own(packed=not torch.cuda.is_available()),
    }


def papers_per_second(make: Callable[[], Trainer]) -> float:
    """Return the rate of all steps after the first, which warms up."""
    trainer, watch = make(), Stopwatch()
    trainer.add_callback(watch)
    trainer.evaluate = lambda *_, **__: {"eval_macro_f1": 0.0}  # steps only
    trainer._save_checkpoint = trainer._load_best_model = lambda *_, **__: None
    trainer.pop_callback(transformers.PrinterCallback)
    trainer.train()
    return BATCH * (len(watch.marks) - 1) / (watch.marks[-1] - watch.marks[0])


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="starter")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=6, help="per round; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    dataset = papers(BATCH * options.steps * 4, options.max_length, 30522)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        makers = contestants(options, dataset, folder)
        for _ in tqdm(range(options.rounds), desc="Rounds", disable=None):
            for name, make in makers.items():
                rates.setdefault(name, []).append(papers_per_second(make))
    tokens = np.mean(dataset["train"]["length"])
    print(f"{options.model}, max_length {options.max_length} ({tokens:.0f} tokens a paper), "
          f"dropout {options.dropout}, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}, transformers {transformers.__version__}, {platform.machine()}\n")
    print("| | papers/s | tokens/s | x stock | x tuned | lowest, highest |")
    print("|---|---|---|---|---|---|")
    median = {name: statistics.median(found) for name, found in rates.items()}
    for name, rate in median.items():
        print(f"| {name} | {rate:.1f} | {rate * tokens:,.0f} | {rate / median['stock']:.2f} | "
              f"{rate / median['tuned']:.2f} | {min(rates[name]):.1f}, {max(rates[name]):.1f} |")


if __name__ == "__main__":
    main()
