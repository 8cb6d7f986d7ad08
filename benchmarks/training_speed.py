"""Compare nej's training steps with those that a user would otherwise run.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --model base --max_length 512

The contestants take turns in one process, and each figure is the median of its rounds. All of them
do the same learning problem: AdamW, 32 papers per step, the same model and dropout.

stock      Trainer as in transformers' text-classification example: fp32, padded to max_length
bf16       the same with bf16
dynamic    the same with padding to the longest paper of a batch instead
grouped    the same with papers of like length in a batch
tuned      Trainer's own options together: dynamic padding, grouped by length, bf16
cut        nej's micro-batches, cut by tokens out of random papers, alone (fp32, padded)
packed     cut without padding: only real tokens, attention paper by paper (fp32)
nej        what scripts/train.py runs: on a CPU `packed` in bf16, on a GPU `cut` in bf16

Real papers if data/arxiv.csv and models/starter are there, else random tokens in the lengths of
arXiv's summaries; weights are random. It measures the steps of an optimizer, without start-up,
validation and saving. MFU is the share of the rate of a large bf16 matrix product, measured in the
same run, that went into real tokens. Memory is the process's peak, its libraries included.
"""

import argparse
import gc
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if not sys.stderr.isatty():
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

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
from nej.throughput import Throughput, matmul_rate, training_flops  # noqa: E402
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


class Meter(TrainerCallback):
    """Take the time and the memory of each optimizer step but the first."""

    def __init__(self):
        self.marks = []

    def on_step_end(self, args, state, control, **kwargs):
        """Note when a step ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())


@dataclass(frozen=True)
class Round:
    """What one contestant did in one round."""

    papers: float  # per second
    tokens: float  # real ones, per second
    padding: float  # share of what went through the model
    flops: float  # of real tokens, per second
    peak: float  # MiB


def real_papers(number: int, max_length: int) -> datasets.DatasetDict | None:
    """Return real papers of the five largest classes, None if there are none."""
    if not (Path("data/arxiv.csv").exists() and Path("models/starter").exists()):
        return None
    from nej.config import load_config
    from nej.dataset import load_dataset
    from nej.model import load_tokenizer
    config = load_config(Path("configs/starter.json"), [
        f"--max_length={max_length}", f"--max_train_papers={number}", "--distillation_weight=0"])
    found = load_dataset(config, load_tokenizer("models/starter"))
    return datasets.DatasetDict(train=found["train"].select(range(number)),
                                validation=found["validation"].select(range(BATCH)))


def generated_papers(number: int, max_length: int) -> datasets.DatasetDict:
    """Return random papers: mean 238 tokens, 95th percentile about 359, cut at max_length."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.normal(238, 73, number).round().astype(int), 20, max_length)
    data = {"input_ids": [draw.integers(5, 30522, n).tolist() for n in lengths],
            "label": draw.integers(0, CLASSES, number).tolist(), "length": lengths.tolist()}
    split = datasets.Dataset.from_dict(data, features=datasets.Features({
        "input_ids": datasets.List(datasets.Value("int32")), "length": datasets.Value("int32"),
        "label": datasets.ClassLabel(names=[f"c{index}" for index in range(CLASSES)])}))
    return datasets.DatasetDict(train=split, validation=split.select(range(BATCH)))


def contestants(options: argparse.Namespace, dataset: datasets.DatasetDict,
                folder: str) -> dict[str, Callable[[], Trainer]]:
    """Return how each contestant makes its Trainer."""
    gpu = torch.cuda.is_available()

    def model(attention: str) -> DistilBertForSequenceClassification:
        torch.manual_seed(0)
        rates = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"),
                              options.dropout)
        return DistilBertForSequenceClassification._from_config(DistilBertConfig(
            **SIZES[options.model], **rates, num_labels=CLASSES), attn_implementation=attention)

    def plain(padding: str | bool = "max_length", **arguments) -> Trainer:
        return Trainer(
            model=model("sdpa"), train_dataset=dataset["train"],
            args=TrainingArguments(
                folder, per_device_train_batch_size=BATCH, max_steps=options.steps,
                report_to="none", disable_tqdm=True, save_strategy="no", seed=1,
                use_cpu=not gpu, **arguments),
            data_collator=DataCollatorWithPadding(
                Tokenizer(), padding=padding,
                max_length=options.max_length if padding == "max_length" else None))

    def own(*, packed: bool, bf16: bool) -> Trainer:
        network = model("sdpa")
        if packed:
            take_packed(network)
        return PaperTrainer(
            Config(max_steps=options.steps, max_length=options.max_length, report_to="none",
                   global_batch_size=BATCH, eval_steps=10_000, bf16=bf16),
            network, Tokenizer(), dataset, Path(folder), packed=packed)

    grouped = {"padding": True, "train_sampling_strategy": "group_by_length"}
    return {
        "stock": plain,
        "bf16": lambda: plain(bf16=True),
        "dynamic": lambda: plain(padding=True),
        "grouped": lambda: plain(**grouped),
        "tuned": lambda: plain(bf16=True, **grouped),
        "cut": lambda: own(packed=False, bf16=False),
        "packed": lambda: own(packed=True, bf16=False),
        "nej": lambda: own(packed=not gpu, bf16=True),
    }


def measure(make: Callable[[], Trainer]) -> Round:
    """Train, and return the rates of all steps after the first, which warms up."""
    trainer, meter = make(), Meter()
    counter = Throughput(trainer.model, bf16=True)
    prepare = trainer._prepare_inputs

    def counted(inputs):
        if meter.marks:
            counter.count(inputs)
        return prepare(inputs)
    trainer._prepare_inputs = counted
    trainer.add_callback(meter)
    trainer.evaluate = lambda *_, **__: {"eval_macro_f1": 0.0}  # steps only
    trainer._save_checkpoint = trainer._load_best_model = lambda *_, **__: None
    trainer.pop_callback(transformers.PrinterCallback)
    forget_peak()
    trainer.train()
    seconds = meter.marks[-1] - meter.marks[0]
    tokens, squares = int(counter.tokens), int(counter.squares)
    return Round(
        papers=BATCH * (len(meter.marks) - 1) / seconds, tokens=tokens / seconds,
        padding=1 - tokens / counter.slots, peak=peak(),
        flops=training_flops(trainer.model, tokens, squares) / seconds)


def forget_peak() -> None:
    """Begin to measure the peak of memory anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return the peak of memory since `forget_peak` in MiB: the GPU's, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2 ** 20
    status = Path("/proc/self/status").read_text("utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def table(rounds: dict[str, list[Round]], rate: float) -> str:
    """Return a Markdown table of the medians; `rate` is the matrix product's, FLOP/s."""
    def median(name: str, figure: str) -> float:
        return statistics.median(getattr(one, figure) for one in rounds[name])
    lines = ["| | papers/s | lowest, highest | tokens/s | padding | MFU | peak MiB | x stock "
             "| x tuned |", "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for name, found in rounds.items():
        papers = median(name, "papers")
        ratios = [f"{papers / median(other, 'papers'):.2f}" if other in rounds else ""
                  for other in ("stock", "tuned")]
        lines.append(
            f"| {name} | {papers:.1f} | {min(one.papers for one in found):.1f}, "
            f"{max(one.papers for one in found):.1f} | {median(name, 'tokens'):,.0f} | "
            f"{median(name, 'padding'):.1%} | {median(name, 'flops') / rate:.1%} | "
            f"{median(name, 'peak'):,.0f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="starter")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=6, help="per round; the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="CONTESTANT", help="some of the contestants")
    options = parser.parse_args()
    number = BATCH * options.steps * 4
    found = real_papers(number, options.max_length)
    dataset = found or generated_papers(number, options.max_length)
    rounds: dict[str, list[Round]] = {}
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        makers = contestants(options, dataset, folder)
        for _ in tqdm(range(options.rounds), desc="Rounds", disable=None):
            matmul_rate.cache_clear()  # the machine's rate now
            rates.append(matmul_rate("cuda" if torch.cuda.is_available() else "cpu", True))
            for name in options.only or makers:
                rounds.setdefault(name, []).append(measure(makers[name]))
    rate = statistics.median(rates)
    print(f"{options.model}, max_length {options.max_length}, {'real' if found else 'generated'} "
          f"papers of {np.mean(dataset['train']['length']):.0f} tokens, dropout {options.dropout}, "
          f"{torch.get_num_threads()} threads, bf16 matrix product {rate / 1e9:,.0f} GFLOP/s, "
          f"torch {torch.__version__}, transformers {transformers.__version__}, "
          f"{platform.machine()}\n\n{table(rounds, rate)}")


if __name__ == "__main__":
    main()
