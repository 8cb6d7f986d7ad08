"""How fast a training goes: tokens per second, padding, and the share of the machine's rate."""

import time
from functools import cache
from typing import Any

import torch
from transformers import DistilBertForSequenceClassification

from nej.packing import filler

MEASURE_SECONDS = 0.2


class Throughput:
    """Counts what goes through the model, from one log to the next.

    MFU is the model's floating-point operations per second as a share of what the device reaches in
    a large matrix product of the same precision, measured once (Chowdhery et al., 2022, PaLM,
    appendix B, with the rate measured and not the maker's).
    """

    def __init__(self, model: DistilBertForSequenceClassification, bf16: bool):
        self.model, self.bf16 = model, bf16
        self.start()

    def start(self) -> None:
        """Count from the next micro-batch on."""
        self.began: float | None = None
        self.tokens: torch.Tensor | int = 0
        self.squares: torch.Tensor | int = 0
        self.slots = 0

    def leave_out(self, seconds: float) -> None:
        """Do not count time that went to something else, a validation for one."""
        if self.began is not None:
            self.began += seconds

    def count(self, inputs: dict[str, torch.Tensor]) -> None:
        """Add a micro-batch, padded or laid end to end; nothing waits for the device."""
        if self.began is None:
            self.began = time.perf_counter()
        input_ids = inputs["input_ids"]
        lengths = inputs["lengths"] if "lengths" in inputs else inputs["attention_mask"].sum(1)
        self.tokens = self.tokens + lengths.sum()
        self.squares = self.squares + (lengths ** 2).sum()
        self.slots += input_ids.numel()
        if "lengths" in inputs:
            self.slots += filler(len(input_ids), input_ids.device.type)

    def read(self) -> dict[str, float]:
        """Return tokens_per_second (real ones, of this process), padding_share and mfu since the
        last reading, and begin anew; nothing if nothing was counted.
        """
        if self.began is None:
            return {}
        tokens, squares = int(self.tokens), int(self.squares)  # waits for the device
        seconds = time.perf_counter() - self.began
        device = next(self.model.parameters()).device
        rate = training_flops(self.model, tokens, squares) / seconds
        found = {"tokens_per_second": round(tokens / seconds, 1),
                 "padding_share": round(1 - tokens / self.slots, 4),
                 "mfu": round(rate / matmul_rate(device.type, self.bf16), 4)}
        self.start()
        return found


def training_flops(model: DistilBertForSequenceClassification, tokens: int, squares: int) -> float:
    """Return the floating-point operations of a forward and a backward pass.

    A matrix's parameters cost 2 a token forward and 4 backward; attention costs 4 times the width
    for each pair of tokens of a paper forward, twice that backward. A frozen layer has no backward
    pass. Embeddings, norms, softmax and the head, which sees one token a paper, are left out. It is
    the usual pass: what packing need not compute of the last layer counts as done.

    Args:
        tokens: real tokens.
        squares: sum of the squares of the papers' tokens.
    """
    total = 0.0
    for layer in model.distilbert.transformer.layer:
        matrices = [parameter for parameter in layer.parameters() if parameter.ndim == 2]
        passes = 3 if matrices[0].requires_grad else 1
        total += passes * (2 * sum(matrix.numel() for matrix in matrices) * tokens
                           + 4 * model.config.dim * squares)
    return total


@cache
def matmul_rate(device: str, bf16: bool) -> float:
    """Return the FLOP/s of a large matrix product on a device of this type, measured now."""
    size = 2048 if device == "cpu" else 8192
    kind = torch.bfloat16 if bf16 else torch.float32
    a, b = (torch.ones(size, size, device=device, dtype=kind) for _ in range(2))

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()
    a @ b
    wait()
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < MEASURE_SECONDS:
        a @ b
        wait()
        products += 1
    return 2 * size ** 3 * products / (time.perf_counter() - start)


def without_times(log: dict[str, Any]) -> dict[str, Any]:
    """Return an entry of Trainer's log without what depends on the clock."""
    return {key: value for key, value in log.items()
            if key != "mfu" and not key.endswith(("_runtime", "_per_second"))}
