"""Unfinished runs: whose folder it is, and which checkpoint can be gone on from."""

import csv
import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState

from nej import InputError
from nej.config import Config
from nej.files import checksum, flush, write_csv, write_json
from nej.rows import require

logger = logging.getLogger(__name__)

CONFIG_FILE = "training_config.json"
CHECKSUMS = "checksums.json"  # in each checkpoint
TRACE = "steps.csv"  # in each checkpoint and in the model directory
RECORD = Path("checkpoints", "run.json")  # in the folder of an unfinished run
# keys that do not change what is learned: an unfinished run goes on under other values of these
FREE_KEYS = {"data_path", "output_dir", "overwrite_output_dir", "report_to", "run_name",
             "reports_dir", "do_predict", "dataloader_num_workers", "short_summary_words",
             "small_category_papers"}


def unfinished_run(config: Config) -> tuple[Path, Path | None]:
    """Make sure that output_dir is free or holds this run unfinished; write nothing.

    Returns:
        The folder that the run works in, and the checkpoint to go on from, None for the beginning.

    Raises:
        InputError: a finished run, another run or something else is there.
    """
    model_dir = Path(config.output_dir)
    work_dir = model_dir.with_name(model_dir.name + ".partial")
    if (model_dir / CONFIG_FILE).exists() and not config.overwrite_output_dir:
        raise InputError(
            f"output_dir: {model_dir} holds a finished run (scripts/evaluate.py judges it); name "
            "another --output_dir, or replace it with --overwrite_output_dir true")
    if model_dir.exists() and not (model_dir / CONFIG_FILE).exists() and (
            not model_dir.is_dir() or any(model_dir.iterdir())):
        raise InputError(f"output_dir: {model_dir} holds something else than a run of nej, which "
                         "is never replaced; name another --output_dir")
    if not work_dir.exists():
        return work_dir, None
    changes = _changes(work_dir / RECORD, _identity(config))
    if changes and config.overwrite_output_dir:
        return work_dir, None
    if changes:
        raise InputError(
            f"output_dir: {work_dir} holds another run, unfinished ({', '.join(changes)}); go on "
            "with its settings, name another --output_dir, or discard it with "
            "--overwrite_output_dir true")
    checkpoint = newest_intact(work_dir / "checkpoints")
    logger.info("going on from %s", checkpoint or "the beginning: no checkpoint yet")
    return work_dir, checkpoint


def mark_unfinished(work_dir: Path, config: Config, *, clear: bool) -> None:
    """Write whose run `work_dir` holds; `clear` it first when the run begins at the beginning."""
    state = PartialState()
    state.wait_for_everyone()  # all processes have looked before one of them writes
    if state.is_main_process:
        if clear:
            shutil.rmtree(work_dir, ignore_errors=True)
        write_json(work_dir / RECORD, _identity(config))
    state.wait_for_everyone()


def _identity(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config) | {
        "data's sha256": checksum(require(Path(config.data_path)))}


def _changes(record: Path, run: dict[str, Any]) -> list[str]:
    """Return what differs from the unfinished run that `record` tells of."""
    try:
        before = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return [f"no {record.name} in it"]
    return [f"{key}: {before.get(key)!r} there, {value!r} here"
            for key, value in run.items() if key not in FREE_KEYS and before.get(key) != value]


def seal(checkpoint: Path) -> None:
    """Write the checksums of a checkpoint's files into it, and all of it to the disk."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    write_json(checkpoint / CHECKSUMS, {path.name: checksum(path) for path in files})
    flush(checkpoint)


def newest_intact(folder: Path) -> Path | None:
    """Return the checkpoint with the most steps that is as it was saved, None if there is none.

    So must be the one with the best metric until then, whose weights the run would end with.
    Trainer itself takes the newest folder, broken or not, and fails on one that a kill left half
    written (transformers issue 35782).
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for checkpoint in reversed(found):
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


def write_trace(path: Path, trace: list[tuple[float, float]]) -> None:
    """Write loss and gradient norm of each step."""
    write_csv(path, ("step", "loss", "grad_norm"),
              ((step, *values) for step, values in enumerate(trace, 1)))


def read_trace(path: Path) -> list[tuple[float, float]]:
    """Read what `write_trace` wrote."""
    with open(path, encoding="utf-8", newline="") as file:
        return [(float(row["loss"]), float(row["grad_norm"])) for row in csv.DictReader(file)]
