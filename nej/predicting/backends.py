"""Back ends: what computes a model's logits on this machine, and which is the fastest."""

import json
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from nej import InputError
from nej.device import use_bf16
from nej.files import checksum
from nej.prediction import Backend, Classifier, backend_fields, keep_in_bf16

EXPORT = Path("export")  # in a model directory; scripts/export.py writes it
GRAPH, RECORD = "model.onnx", "export.json"  # in that folder
TORCH, OPENVINO = "torch", "openvino"
SCALED_TOGETHER = 128  # of a token's numbers that become 8 bits, those that share a scale
LENGTH_STEP = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported(Backend):
    """A model's ONNX graph in OpenVINO: 8-bit weights, what they multiply in 8 bits too.

    The rest is in bfloat16 where the CPU has it.
    """

    compiled: Any  # openvino.CompiledModel
    most_tokens: int  # that the model has positions for

    @classmethod
    def load(cls, model_dir: Path, *, folder: Path | None = None) -> "Exported":
        """Load the export of a model directory; `folder` if it is not in its place yet.

        Raises:
            InputError: no finished model there.
        """
        openvino = _openvino()
        fields = backend_fields(model_dir)
        shape = json.loads((model_dir / "config.json").read_text("utf-8"))
        compiled = openvino.Core().compile_model((folder or model_dir / EXPORT) / GRAPH, "CPU", {
            "INFERENCE_PRECISION_HINT": "bf16" if use_bf16(fields["config"], "cpu") else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": math.gcd(
                shape["dim"], shape["hidden_dim"], SCALED_TOGETHER),
            "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False})  # several services would all sit on the same cores
        return cls(**fields, compiled=compiled,
                   most_tokens=shape["max_position_embeddings"])

    def compute(self, papers: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """See Backend."""
        lengths = np.array([len(ids) for ids in papers])
        # every new shape takes memory for good, so there are few of them
        tokens = min(-(-lengths.max() // LENGTH_STEP) * LENGTH_STEP, self.most_tokens)
        input_ids = np.full((len(papers), tokens), self.tokenizer.pad_token_id)
        for row, ids in zip(input_ids, papers):
            row[:len(ids)] = ids
        found = self.compiled({"input_ids": input_ids, "lengths": lengths})
        return found["logits"], found["embeddings"]


def backend_name(backend: Backend) -> str:
    """Return the name by which `load_backend` loads this one."""
    return OPENVINO if isinstance(backend, Exported) else TORCH


def load_backend(model_dir: Path, name: str | None = None) -> Backend:
    """Load a model directory to predict.

    Args:
        name: TORCH or OPENVINO; None measures which of those that there are is the fastest, in
            about a second, and logs it.

    Raises:
        InputError: no finished model, or the export that is asked for is not there, not of these
            weights, or not whole.
    """
    if name not in (None, TORCH, OPENVINO):
        raise InputError(f"--backend is {name!r}; there are {TORCH} and {OPENVINO}")
    if name != OPENVINO:
        classifier = Classifier.load(model_dir)
        keep_in_bf16(classifier)
        if name == TORCH or classifier.model.device.type != "cpu":
            return classifier
    fault = export_fault(model_dir)
    if name == OPENVINO:
        if fault:
            raise InputError(f"{model_dir}: {fault}; `make export MODEL={model_dir}` makes one")
        return Exported.load(model_dir)
    if fault:
        logger.info("back end: %s (%s)", TORCH, fault)
        return classifier
    backends = {TORCH: classifier, OPENVINO: Exported.load(model_dir)}
    rates = {name: papers_per_second(backend) for name, backend in backends.items()}
    best = max(rates, key=lambda name: rates[name])
    logger.info("back end: %s (%s)", best, ", ".join(
        f"{name}: {rate:.0f} papers/s" for name, rate in rates.items()))
    return backends[best]


def export_fault(model_dir: Path) -> str | None:
    """Return why the export of a model directory cannot be used, None if it can."""
    folder = model_dir / EXPORT
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        if record["weights_sha256"] != checksum(model_dir / "model.safetensors"):
            return "its export is of other weights"
        if record["graph_sha256"] != checksum(folder / GRAPH):
            return "its export was changed since"
    except FileNotFoundError:
        return "it has no export"
    except (ValueError, KeyError):
        return f"{folder / RECORD} cannot be read"
    try:
        _openvino()
    except ImportError:
        return "openvino is not installed"
    return None


def _openvino() -> ModuleType:
    """Import OpenVINO, which would else tell its makers so each time."""
    # then it does without
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino
    return openvino


def papers_per_second(backend: Backend) -> float:
    """Return how many papers of a few lengths a back end does in a second: the best of three."""
    draw = np.random.default_rng(0)
    lengths = np.linspace(0.25, 1, 4) * backend.config.max_length
    papers = [{"input_ids": draw.integers(len(backend.tokenizer), size=max(1, int(length))),
               "length": max(1, int(length))} for length in lengths]
    times = []
    for _ in range(4):  # the first warms up
        start = time.perf_counter()
        backend.run(papers, description=None)
        times.append(time.perf_counter() - start)
    return len(papers) / min(times[1:])
