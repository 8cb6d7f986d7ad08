"""Unfinished runs: whose folder it is, and which checkpoint can be gone on from."""

import csv
import dataclasses
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsFloat

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import Timeout
from transformers import AutoConfig, PreTrainedModel

from nej import InputError
from nej.config import Config
from nej.files import (
    CONFIG_FILE, checkpoints, checksum, explained_writes, flush, never_began, require, run_lock,
    write_csv, write_json,
)
from nej.workers import in_threads

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"  # in each checkpoint
RECORD = Path("checkpoints", "run.json")  # in the folder of an unfinished run
# keys that do not change what is learned: an unfinished run goes on under other values of these
FREE_KEYS = {"data_path", "output_dir", "overwrite_output_dir", "report_to", "run_name",
             "reports_dir", "do_predict", "dataloader_num_workers", "short_summary_words",
             "small_category_papers", "allow_changes", "logging_steps", "ddp_timeout"}
DATA = "data's sha256"


@dataclass
class UnfinishedRun:
    """A run that is under way: where, and what is known of it from before."""

    folder: Path
    id: str  # for the tracker: it is one run however often it was stopped
    checkpoint: Path | None = None  # to go on from; None is the beginning
    changes: list[str] = field(default_factory=list)  # of its settings, on the way


@contextmanager
def sole_run(target: Path, *, option: str = "output_dir") -> Iterator[None]:
    """Let no other run work on `target`, which `option` names, while the block lasts.

    Raises:
        InputError: another one does.
    """
    lock = run_lock(target)
    is_main = PartialState().is_main_process
    free = [True]
    if is_main:
        with explained_writes(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                free = [False]
    if PartialState().num_processes > 1:
        broadcast_object_list(free)
    if not free[0]:
        raise InputError(f"{option}: another run is working on {target} at this moment; wait until "
                         f"it has ended, or name another --{option.strip('-')}")
    try:
        yield
    finally:
        if is_main:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def unfinished_run(config: Config) -> UnfinishedRun:
    """Make sure that output_dir is free or holds this run unfinished; write nothing.

    Raises:
        InputError: a finished run, another run or something else is there.
    """
    model_dir = Path(config.output_dir)
    work_dir = model_dir.with_name(model_dir.name + ".partial")
    # a sweep has given its trial an id, under which it waits for the result
    new = UnfinishedRun(work_dir, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    if (model_dir / CONFIG_FILE).exists() and not config.overwrite_output_dir:
        raise InputError(
            f"output_dir: {model_dir} holds a finished run (scripts/evaluate.py judges it); name "
            "another --output_dir, or replace it with --overwrite_output_dir true")
    if model_dir.exists() and not (model_dir / CONFIG_FILE).exists() and (
            not model_dir.is_dir() or any(model_dir.iterdir())):
        raise InputError(f"output_dir: {model_dir} holds something else than a run of nej, which "
                         "is never replaced; name another --output_dir")
    if not work_dir.exists():
        return new
    settings = _settings(config)
    try:
        before = json.loads((work_dir / RECORD).read_text("utf-8"))
        changes = _changes(before["settings"], settings)
        run = UnfinishedRun(work_dir, before["id"], changes=[*before["changes"], *changes])
    except (OSError, ValueError, KeyError, TypeError):
        if never_began(work_dir / RECORD, work_dir):
            return new
        changes = [f"no {RECORD.name} in it"]
    else:
        safe = not config.overwrite_output_dir and _more_steps(before["settings"], config, changes)
        if not changes or config.allow_changes or safe:
            run.checkpoint = newest_intact(work_dir / "checkpoints")
            logger.info("going on from %s%s", run.checkpoint or "the beginning: no checkpoint yet",
                        f" with changes: {', '.join(changes)}" if changes else "")
            return run
    if config.overwrite_output_dir:
        return new
    raise InputError(
        f"output_dir: {work_dir} holds another run, unfinished ({', '.join(changes)}); go on "
        "with its settings, or with these by --allow_changes true, name another --output_dir, or "
        "discard it with --overwrite_output_dir true")


def mark_unfinished(run: UnfinishedRun, config: Config) -> None:
    """Write whose run the folder holds; clear it first when the run begins at the beginning."""
    state = PartialState()
    state.wait_for_everyone()  # all processes have looked before one of them writes
    if state.is_main_process:
        if run.checkpoint is None:
            shutil.rmtree(run.folder, ignore_errors=True)
        write_json(run.folder / RECORD, {
            "id": run.id, "changes": run.changes, "settings": _settings(config)})
    state.wait_for_everyone()


def check_fits(checkpoint: Path, model: PreTrainedModel) -> None:
    """Raise InputError if the checkpoint is of a model of other size or with other classes.

    It can be, if settings were allowed to change.
    """
    saved = AutoConfig.from_pretrained(checkpoint)
    for key in ("id2label", "vocab_size", "dim", "n_layers", "n_heads", "hidden_dim"):
        there, here = getattr(saved, key), getattr(model.config, key)
        if there != here:
            raise InputError(
                f"output_dir: {checkpoint} has a model with other {key} than these settings make "
                f"({there} there, {here} here); go on with its settings, or discard it with "
                "--overwrite_output_dir true and without allow_changes")


def clear_remains(model_dir: Path) -> None:
    """Remove what a kill left behind that came just after a run had taken its name."""
    if PartialState().is_main_process and (model_dir / CONFIG_FILE).exists():
        shutil.rmtree(model_dir / "checkpoints", ignore_errors=True)
        shutil.rmtree(model_dir.with_name(model_dir.name + ".replaced"), ignore_errors=True)
    PartialState().wait_for_everyone()


def _settings(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config) | {DATA: checksum(require(Path(config.data_path)))}


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [f"{key}: {before.get(key)!r} there, {value!r} here"
            for key, value in now.items() if key not in FREE_KEYS and before.get(key) != value]


def _more_steps(before: dict[str, Any], config: Config, changes: list[str]) -> bool:
    """Return whether the run is to take more steps, and nothing else has changed."""
    keys = ("num_train_epochs", "max_steps")
    were = [before[key] if before[key] > 0 else math.inf for key in keys]
    are = [getattr(config, key) if getattr(config, key) > 0 else math.inf for key in keys]
    return (all(change.split(":")[0] in keys for change in changes)
            and all(now >= then for now, then in zip(are, were)))


def seal(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files into it, and all of it to the disk."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    names = [path.name for path in files]
    write_json(checkpoint / CHECKSUMS, dict(zip(names, in_threads(checksum, files))))
    flush(checkpoint)


def newest_intact(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps that is as it was saved, None if there is none.

    So must be the one with the best metric until then, whose weights the run would end with.
    Trainer itself takes the newest folder, broken or not, and fails on one that a kill left half
    written (transformers issue 35782).
    """
    for checkpoint in checkpoints(folder):
        problem = _problem(checkpoint)
        if problem is None:
            best = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))[
                "best_model_checkpoint"]
            problem = best and _problem(folder / Path(best).name)
            if not problem:
                return checkpoint
            problem = f"the best one, {Path(best).name}, cannot be used: {problem}"
        logger.warning("%s is passed over: %s", checkpoint, problem)
    return None


def _problem(checkpoint: Path) -> str | None:
    """Compare a checkpoint with its checksums; return what is wrong with it."""
    try:
        expected = json.loads((checkpoint / CHECKSUMS).read_text("utf-8"))
        for name, digest in expected.items():
            if checksum(checkpoint / name) != digest:
                return f"{name} is not what was saved"
    except FileNotFoundError as error:
        return f"it lacks {Path(error.filename).name}"
    except (OSError, ValueError) as error:
        return f"{error}"[:150]
    return None


def write_trace(path: Path, trace: Iterable[tuple[SupportsFloat, SupportsFloat]]) -> None:
    """Write loss and gradient norm of each step."""
    write_csv(path, ("step", "loss", "grad_norm"),
              ((step, float(loss), float(norm)) for step, (loss, norm) in enumerate(trace, 1)))


def read_trace(path: Path) -> list[tuple[float, float]]:
    """Read what `write_trace` wrote."""
    with open(path, encoding="utf-8", newline="") as file:
        return [(float(row["loss"]), float(row["grad_norm"])) for row in csv.DictReader(file)]
