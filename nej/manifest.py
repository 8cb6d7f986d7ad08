"""What made a model: written into its directory, so that it can be made again."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers.utils import cached_file

from nej.config import Config
from nej.device import use_bf16
from nej.files import CONFIG_FILE, TRACE, checksum, require, write_json
from nej.training import TrainingResult

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors",
            "numpy", "scikit-learn", "evaluate", "pyarrow")


def origin(config: Config) -> dict[str, Any]:
    """Return the code's and the data's versions; ask before training, while they are so.

    Raises:
        InputError: there is no data.
    """
    path = require(Path(config.data_path))
    md5 = checksum(path, "md5")
    return {"command": sys.argv, "git": _git(), "data": {
        "path": config.data_path, "md5": md5, "dvc_revision": _dvc_revision(path, md5)},
        "starting_checkpoint": {"name": _followed(config.model_name_or_path)}}


def write_manifest(
    folder: Path, config: Config, result: TrainingResult, origin: dict[str, Any]
) -> None:
    """Write manifest.json into the model directory that lies at `folder`."""
    state = PartialState()
    start = origin["starting_checkpoint"]["name"]
    write_json(folder / "manifest.json", {
        **origin,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "config_sha256": checksum(folder / CONFIG_FILE),
        "papers": result.papers,
        "split_sha256": result.split_sha256,
        "starting_checkpoint": {
            "name": start,
            "sha256": checksum(Path(str(cached_file(
                start, "model.safetensors", local_files_only=True))))},
        "seed": config.seed,
        "steps": result.steps,
        "training_seconds": round(result.seconds, 1),
        "resumed": result.resumed,  # then the seconds are those since
        "settings_changed": result.changes,  # on the way: such a run cannot be made again
        "cpu_seconds": round(time.process_time(), 1),  # of the main process, from its start
        "device": _device_name(),
        "precision": "bfloat16" if use_bf16(config, state.device.type) else "float32",
        "processes": state.num_processes,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "steps_sha256": checksum(folder / TRACE),
        "weights_sha256": checksum(folder / "model.safetensors"),
        "validation": result.metrics,
    })


def _followed(name: str) -> str:
    """Return where a link to a starting checkpoint leads; models/production leads on one day."""
    if not Path(name).is_symlink():
        return name
    real = os.path.realpath(name)
    return real if os.path.isabs(name) else os.path.relpath(real)


def _git() -> dict[str, Any] | None:
    """Return the commit of nej's own checkout and whether files differ from it."""
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True,
            check=True).stdout.strip()
    try:
        # dvc.lock is what runs write, not what they are made from
        changed = git("status", "--porcelain", "--", ":/", ":(top,exclude)dvc.lock")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        # installed from a wheel, or no git on the machine; an image names its commit
        commit = os.environ.get("NEJ_COMMIT")
        return {"commit": commit, "dirty": False} if commit else None


def _dvc_revision(path: Path, md5: str) -> str | None:
    """Return the commit that pinned this version of the data, None if none did."""
    pin = path.with_name(path.name + ".dvc")
    try:
        if f"md5: {md5}" not in pin.read_text("utf-8"):
            return None
        return subprocess.run(
            ["git", "-C", str(pin.parent.resolve()), "log", "-1", "--format=%H", "--", pin.name],
            capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def _device_name() -> str:
    if PartialState().device.type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
