"""Checkpoints of an unfinished run: which of them can be gone on from."""

import json
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)


def newest_intact(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps that can be read to its end, None if none can.

    Trainer itself takes the newest folder, broken or not, and fails on one that a kill left half
    written (transformers issue 35782).
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for checkpoint in reversed(found):
        problem = _problem(checkpoint)
        if problem is None:
            return checkpoint
        logger.warning("%s is passed over: %s", checkpoint, problem)
    return None


def _problem(checkpoint: Path) -> str | None:
    """Read every part of a checkpoint; return what is wrong with it."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        with safe_open(checkpoint / "model.safetensors", "pt") as weights:
            for name in weights.keys():
                weights.get_tensor(name)
        for name in ("optimizer.pt", "scheduler.pt"):
            torch.load(checkpoint / name, weights_only=True, map_location="cpu")
        if not list(checkpoint.glob("rng_state*.pth")):
            return "no random state"
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return None
