"""Compare nej's training steps with those that a user would otherwise run.

    python benchmarks/training_speed.py
    python benchmarks/training_speed.py --model base --max_length 512

The contestants take turns in one process, and each figure is the median of its rounds. All of them
do the same learning problem: AdamW, 32 papers per step, the same model and dropout. Each round
takes other papers: a CPU's library makes a kernel for every shape that it has not met lately, as it
would all through a long run. The first steps, which meet most shapes for the first time, do not
count.

stock      Trainer as in transformers' text-classification example: fp32, padded to max_length
bf16       the same with bf16
dynamic    the same with padding to the longest paper of a batch instead
grouped    the same with papers of like length in a batch
tuned      Trainer's own options together: dynamic padding, grouped by length, bf16
cut        nej's micro-batches, cut by tokens out of random papers, alone (fp32, padded)
packed     cut without padding: only real tokens, attention paper by paper (fp32; on a GPU bf16)
memory     cut with freed memory kept by the process (glibc on a CPU)
nej        what scripts/train.py runs: `packed` in bf16, with memory kept
compiled   the same, with what is around the attention compiled (torch.compile); not part of nej

Real papers if data/arxiv.csv and models/starter are there, else random tokens in the lengths of
arXiv's summaries; weights are random. It measures the steps of an optimizer, without start-up,
validation and saving. MFU is the share of the rate of a large bf16 matrix product, measured in the
same run, that went into real tokens. Memory is the peak: the GPU's, or the process's with its
libraries. The ratios are those of real tokens, as a few steps of papers grouped by length are no
fair draw of papers. On a GPU it runs where torch and transformers are alone.
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
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if not sys.stderr.isatty():
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tqdm import tqdm  # noqa: E402
from transformers import (  # noqa: E402
    DataCollatorWithPadding, DistilBertConfig, DistilBertForSequenceClassification, Trainer,
    TrainerCallback, TrainingArguments,
)

from nej import packing  # noqa: E402
from nej.config import Config  # noqa: E402
from nej.device import keep_memory, prepare_device  # noqa: E402
from nej.packing import take_packed  # noqa: E402
from nej.throughput import Throughput, matmul_rate, training_flops  # noqa: E402
from nej.trainer import PaperTrainer  # noqa: E402

GPU = torch.cuda.is_available()
CLASSES = 5
WARM_UP = 5 if GPU else 10  # steps
LOGGING_STEPS = 20
PARTS = {name: getattr(packing, name) for name in ("_projected", "_after_attention")}
COMPILED: dict[str, Callable] = {}
DEFAULT = ("stock", "bf16", "dynamic", "grouped", "tuned", "cut", "packed", "memory", "nej")
SIZES = {"starter": {"dim": 384, "n_layers": 6, "n_heads": 12, "hidden_dim": 1536}, "base": {}}


class Tokenizer:
    """What the collators need of a tokenizer."""

    pad_token_id, padding_side, model_input_names = 0, "right", ["input_ids", "attention_mask"]

    def pad(self, features, padding=True, max_length=None, **_):
        """Pad to the longest paper, or to max_length."""
        longest = max_length if padding == "max_length" else max(
            len(f["input_ids"]) for f in features)
        rows = np.zeros((len(features), longest), np.int64)
        masks = np.zeros_like(rows)
        for row, mask, feature in zip(rows, masks, features):
            row[:len(feature["input_ids"])] = feature["input_ids"]
            mask[:len(feature["input_ids"])] = 1
        return {"input_ids": torch.from_numpy(rows), "attention_mask": torch.from_numpy(masks),
                "label": torch.tensor([f["label"] for f in features])}


class Split(list):
    """Papers, with as much of datasets.Dataset as nej's Trainer asks for."""

    def __getitem__(self, key):
        if isinstance(key, str):
            return [paper[key] for paper in self]
        return list.__getitem__(self, key)

    def select(self, rows, **_):
        """Return the papers of these rows."""
        return Split(list.__getitem__(self, int(row)) for row in rows)

    def select_columns(self, names):
        """Return all papers: what is too much does no harm here."""
        return self

    def with_format(self, _):
        """Return the papers as they are: numpy arrays."""
        return self

    column_names = ("input_ids", "label", "length")


class Meter(TrainerCallback):
    """Take the time of the steps after the first ones, which warm up."""

    def __init__(self):
        self.began = self.ended = None

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time after the last step that warms up, and after the last of all."""
        if state.global_step in (WARM_UP, state.max_steps):
            if GPU:
                torch.cuda.synchronize()
            self.began, self.ended = self.began or time.perf_counter(), time.perf_counter()


@dataclass(frozen=True)
class Round:
    """What one contestant did in one round."""

    papers: float  # per second
    tokens: float  # real ones, per second
    padding: float  # share of what went through the model
    flops: float  # of real tokens, per second
    peak: float  # MiB


def real_papers(number: int, max_length: int) -> dict | None:
    """Return real papers of the five largest classes, None if there are none."""
    if not (Path("data/arxiv.csv").exists() and Path("models/starter").exists()):
        return None
    from nej.config import load_config
    from nej.dataset import load_dataset
    from nej.model import load_tokenizer
    config = load_config(Path("configs/starter.json"), [
        f"--max_length={max_length}", f"--max_train_papers={number}", "--distillation_weight=0"])
    return load_dataset(config, load_tokenizer("models/starter"))


def generated_papers(number: int, max_length: int) -> dict:
    """Return random papers: mean 238 tokens, 95th percentile about 359, cut at max_length."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.normal(238, 73, number).round().astype(int), 20, max_length)
    train = Split({"input_ids": draw.integers(5, 30522, n), "length": n,
                   "label": int(draw.integers(CLASSES))} for n in lengths.tolist())
    return {"train": train, "validation": train.select(range(32))}


def contestants(options: argparse.Namespace, dataset: dict,
                folder: str) -> dict[str, Callable[[int], Trainer]]:
    """Return how each contestant makes its Trainer from a seed."""

    def model(attention: str) -> DistilBertForSequenceClassification:
        torch.manual_seed(0)
        rates = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"),
                              options.dropout)
        return DistilBertForSequenceClassification._from_config(DistilBertConfig(
            **SIZES[options.model], **rates, num_labels=CLASSES), attn_implementation=attention)

    def plain(seed: int, *, padding: str | bool = "max_length", bf16: bool = False,
              **arguments) -> Trainer:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"  # not nej's
        keep_memory(False)
        torch.use_deterministic_algorithms(False)  # of the contestants nej alone promises that
        return Trainer(
            model=model("sdpa"), train_dataset=dataset["train"],
            args=TrainingArguments(
                folder, per_device_train_batch_size=options.batch, max_steps=options.steps,
                report_to="none", disable_tqdm=True, save_strategy="no", seed=seed,
                logging_steps=LOGGING_STEPS, bf16=bf16, use_cpu=not GPU, **arguments),
            data_collator=DataCollatorWithPadding(
                Tokenizer(), padding=padding,
                max_length=options.max_length if padding == "max_length" else None))

    def own(seed: int, *, packed: bool = False, bf16: bool = False, memory: bool = False,
            compiled: bool = False) -> Trainer:
        keep_memory(memory)
        torch.use_deterministic_algorithms(GPU)
        network = model("sdpa")
        for name, usual in PARTS.items():
            setattr(packing, name, COMPILED.setdefault(name, torch.compile(usual, dynamic=True))
                    if compiled else usual)
        if packed:
            take_packed(network)
        return PaperTrainer(
            Config(max_steps=options.steps, max_length=options.max_length, report_to="none",
                   global_batch_size=options.batch, eval_steps=10_000, bf16=bf16,
                   logging_steps=LOGGING_STEPS, seed=seed),
            network, dataset, Path(folder), packed=packed, pad_token_id=0)

    grouped = {"padding": True, "train_sampling_strategy": "group_by_length"}
    workers = {"dataloader_num_workers": 4} if GPU else {}
    return {
        "stock": plain,
        "bf16": partial(plain, bf16=True),
        "dynamic": partial(plain, padding=True),
        "grouped": partial(plain, **grouped),
        "tuned": partial(plain, bf16=True, **grouped, **workers),
        "cut": own,
        "packed": partial(own, packed=True, bf16=GPU),
        "memory": partial(own, memory=True),
        "nej": partial(own, packed=True, bf16=True, memory=True),
        "compiled": partial(own, packed=True, bf16=True, memory=True, compiled=True),
    }


def measure(make: Callable[[int], Trainer], seed: int, options: argparse.Namespace) -> Round:
    """Train, and return the rates of all steps after those that warm up."""
    trainer, meter = make(seed), Meter()
    assert (trainer.accelerator.mixed_precision == "bf16") == trainer.args.bf16
    counter = Throughput(trainer.model, bf16=True)
    prepare = trainer._prepare_inputs

    def counted(inputs):
        inputs = prepare(inputs)
        if meter.began:
            counter.count(inputs)
        return inputs
    trainer._prepare_inputs = counted
    trainer.add_callback(meter)
    trainer.evaluate = lambda *_, **__: {"eval_macro_f1": 0.0}  # steps only
    trainer._save_checkpoint = trainer._load_best_model = lambda *_, **__: None
    trainer.pop_callback(transformers.PrinterCallback)
    forget_peak()
    trainer.train()
    seconds = meter.ended - meter.began
    tokens, squares = int(counter.tokens), int(counter.squares)
    return Round(
        papers=options.batch * (options.steps - WARM_UP) / seconds, tokens=tokens / seconds,
        padding=1 - tokens / counter.slots, peak=peak(),
        flops=training_flops(trainer.model, tokens, squares) / seconds)


def forget_peak() -> None:
    """Begin to measure the peak of memory anew."""
    gc.collect()
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return the peak of memory since `forget_peak` in MiB: the GPU's, else the process's."""
    if GPU:
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
        tokens = median(name, "tokens")
        ratios = [f"{tokens / median(other, 'tokens'):.2f}" if other in rounds else ""
                  for other in ("stock", "tuned")]
        lines.append(
            f"| {name} | {median(name, 'papers'):.1f} | {min(one.papers for one in found):.1f}, "
            f"{max(one.papers for one in found):.1f} | {tokens:,.0f} | "
            f"{median(name, 'padding'):.1%} | {median(name, 'flops') / rate:.1%} | "
            f"{median(name, 'peak'):,.0f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SIZES, default="starter")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--dropout", type=float, default=0.1,
                        help="0.1 is both checkpoints' own; configs/starter.json has 0")
    parser.add_argument("--batch", type=int, default=32, help="papers per step")
    parser.add_argument("--steps", type=int, default=40 if GPU else 16,
                        help=f"per round; the first {WARM_UP} are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="CONTESTANT",
                        help="these contestants; `compiled` runs only if it is named here")
    options = parser.parse_args()
    number = options.batch * options.steps * 4
    found = real_papers(number, options.max_length)
    dataset = found or generated_papers(number, options.max_length)
    rounds: dict[str, list[Round]] = {}
    rates = []
    prepare_device(Config())
    with tempfile.TemporaryDirectory() as folder:
        makers = contestants(options, dataset, folder)
        for seed in tqdm(range(options.rounds), desc="Rounds", disable=None):
            matmul_rate.cache_clear()  # the machine's rate now
            rates.append(matmul_rate("cuda" if torch.cuda.is_available() else "cpu", True))
            for name in options.only or DEFAULT:
                rounds.setdefault(name, []).append(measure(makers[name], seed, options))
    rate = statistics.median(rates)
    print(f"{options.model}, max_length {options.max_length}, {'real' if found else 'generated'} "
          f"papers of {np.mean(dataset['train']['length'][:]):.0f} tokens, "
          f"dropout {options.dropout}, {options.batch} papers per step, "
          f"{torch.cuda.get_device_name() if GPU else f'{torch.get_num_threads()} threads'}, "
          f"bf16 matrix product {rate / 1e12:,.2f} TFLOP/s, "
          f"torch {torch.__version__}, transformers {transformers.__version__}, "
          f"{platform.machine()}\n\n{table(rounds, rate)}")


if __name__ == "__main__":
    main()
