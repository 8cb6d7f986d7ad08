"""A whole file of papers, labelled: resumable, by one process or several."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from tqdm import tqdm

from nej import InputError
from nej.checkpoints import sole_run
from nej.config import load_config
from nej.data.records import KINDS, PIPE, Records, open_records
from nej.device import check_processes, explained_partners, prepare_device
from nej.files import (
    CONFIG_FILE, explained_writes, never_began, read_manifest, replacing, require_model, write_json,
)
from nej.predicting.backends import backend_name, load_backend
from nej.predicting.labels import Labelling, Summary, abstaining_under, label, schema, writing
from nej.predicting.windows import WINDOW_PAPERS, cut, in_advance
from nej.prediction import Backend

logger = logging.getLogger(__name__)

RECORD = "run.json"  # in the folder of an unfinished file: what its parts were made from
WEEK_SECONDS = 7 * 24 * 3600  # that a process waits for slower ones


def label_file(model_dir: Path, source: Path, target: Path, *, backend: str | None = None,
               wanted_accuracy: float | None = 0.9, top_k: int = 1) -> Summary | None:
    """Label the papers of a CSV, JSON Lines or Parquet file; PIPE is standard input or output.

    Whole windows are kept in `target`.partial, so that the same call goes on after a kill, with as
    many processes as there are then. `target` appears as a whole at the end.

    Args:
        backend: as in `load_backend`.
        wanted_accuracy: as in Backend.threshold, from 0 to 1; None and 0 never abstain.
        top_k: how many categories of each paper to name.

    Returns:
        The counts; None in all processes but the first.

    Raises:
        InputError: no model, a file that cannot be read or written, another unfinished run, or
            a pipe and several processes.
    """
    check_processes()
    model_dir = model_dir.resolve()  # a link may be moved meanwhile
    require_model(model_dir)
    prepare_device(replace(load_config(model_dir / CONFIG_FILE), ddp_timeout=WEEK_SECONDS))
    kind = _kind_of_target(source, target)
    if PartialState().num_processes > 1 and PIPE in (source, target):
        raise InputError("several processes cannot share a pipe; name files, or start one process")

    def labelling(backend: Backend) -> Labelling:
        if not 1 <= top_k <= len(backend.names):
            raise InputError(f"--top_k is {top_k}; {model_dir} knows {len(backend.names)} "
                             "categories")
        return Labelling(backend, abstaining_under(backend, wanted_accuracy), top_k)
    with open_records(source, needed=["summary"]) as records:
        if target == PIPE:
            return _to_pipe(records, labelling(load_backend(model_dir, backend)))
        with sole_run(target, option="--output"), explained_partners():
            return _to_file(records, model_dir, source, target, kind, backend, labelling)


def _to_pipe(records: Records, how: Labelling) -> Summary:
    summary = Summary()
    kind = ".csv" if records.kind == ".csv" else ".jsonl"
    try:
        with (explained_writes(Path("standard output")),
              open(sys.stdout.fileno(), "wb", closefd=False) as file,
              writing(kind, file, schema(how.top_k)) as write):
            for window, read in in_advance(_windows(records, how)):
                table = label(window, read, how)
                summary.add(table)
                write(table)
                file.flush()
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return summary


def _to_file(records: Records, model_dir: Path, source: Path, target: Path, kind: str,
             backend: str | None, labelling: Callable[[Backend], Labelling]) -> Summary | None:
    state, partial = PartialState(), target.with_name(target.name + ".partial")
    made_from = {"source": _mark(source),
                 "weights_sha256": read_manifest(model_dir)["weights_sha256"]}
    if state.is_main_process:
        before = _unfinished(partial, made_from)
        how = labelling(load_backend(model_dir, before["backend"] if before and not backend
                                     else backend))
        record = made_from | {"backend": backend_name(how.backend), "top_k": how.top_k,
                              "threshold": how.threshold, "temperature": how.backend.temperature,
                              "window_papers": WINDOW_PAPERS}
        _begin(partial, record, before)
    state.wait_for_everyone()
    if not state.is_main_process:
        try:
            record = json.loads((partial / RECORD).read_text("utf-8"))
        except OSError as error:
            raise InputError(f"{partial} of the first process is not to be seen from this one; all "
                             "hosts must write into one shared folder") from error
        how = labelling(load_backend(model_dir, record["backend"]))
    windows = 0
    try:
        for window, *read in _with_progress(in_advance(_windows(records, how, partial))):
            windows = window.number + 1
            if read:
                with replacing(_part(partial, window.number)) as aside:
                    pq.write_table(label(window, read[0], how), aside)
    except InputError:
        if state.num_processes == 1 and not _has_parts(partial):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if _mark(source) != made_from["source"]:
        raise InputError(f"{source} was changed while it was read; delete {partial} and begin anew")
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    whole = partial / target.name  # a kill leaves nothing beside the target
    summary = _join([_part(partial, number) for number in range(windows)], whole, kind,
                    schema(how.top_k))
    os.replace(whole, target)
    shutil.rmtree(partial)
    return summary


def _kind_of_target(source: Path, target: Path) -> str:
    if target == PIPE:
        return ""
    kind = target.suffix.lower()
    if kind not in KINDS:
        raise InputError(f"--output is {target}; its name must end in {', '.join(KINDS)}, or be -")
    if target.is_dir():
        raise InputError(f"--output is {target}, which is a folder; name a file")
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"--output is {target}, which is the file that is read; name another")
    return kind


def _mark(source: Path) -> dict[str, Any]:
    """Return what tells a file from a later version of it."""
    if source == PIPE:
        return {"path": str(PIPE)}
    there = source.stat()
    return {"path": str(source.resolve()), "size_bytes": there.st_size,
            "modified_ns": there.st_mtime_ns}


def _unfinished(partial: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of an unfinished run, None if there is none to go on with: it has no part
    yet, or its input was a pipe, which cannot be read twice.

    Raises:
        InputError: it is of another file or model, or what is there is no such run.
    """
    try:
        before = json.loads((partial / RECORD).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if partial.exists() and not never_began(partial / RECORD, partial):
            raise InputError(f"{partial} is in the way, and no unfinished run: it has no {RECORD}; "
                             "delete it to begin anew, or name another --output") from error
        return None
    if before["source"] == _mark(PIPE) or not _has_parts(partial):
        return None
    for key, name in (("source", "file"), ("weights_sha256", "model")):
        if before[key] != made_from[key]:
            raise InputError(f"{partial} holds an unfinished run of another {name}, or of what it "
                             "was then; delete it to begin anew, or name another --output")
    return before


def _begin(partial: Path, record: dict[str, Any], before: dict[str, Any] | None) -> None:
    """Make the folder of parts, or make sure that those in it fit."""
    if before is None:
        shutil.rmtree(partial, ignore_errors=True)
        write_json(partial / RECORD, record)
        return
    different = [key for key in record if record[key] != before[key]]
    if different:
        raise InputError(
            f"{partial} holds an unfinished run with another {different[0]} "
            f"({before[different[0]]}, and now {record[different[0]]}); give the same again, or "
            "delete it to begin anew")
    logger.info("going on after %d papers or nearly so, in %s",
                WINDOW_PAPERS * len(list(partial.glob("*.parquet"))), partial)


def _part(partial: Path, number: int) -> Path:
    return partial / f"{number:08}.parquet"


def _has_parts(partial: Path) -> bool:
    return any(partial.glob("*.parquet"))


def _windows(records: Records, how: Labelling, partial: Path | None = None) -> Iterator[tuple]:
    """Yield each Window; with what the model is to read, unless another process has it or its part
    is there already.
    """
    state = PartialState()
    if "title" in how.backend.config.text_fields and "title" not in (records.columns or ["title"]):
        logger.warning("the file has no column title, and %s was trained to read titles too",
                       how.backend.model_dir)
    for window in cut(records):
        mine = window.number % state.num_processes == state.process_index
        if mine and not (partial and _part(partial, window.number).exists()):
            good = window.good.values()
            yield window, how.backend.read([summary for *_, summary in good],
                                           [title for _, title, _ in good])
        else:
            yield (window,)


def _with_progress(items: Iterator[tuple]) -> Iterator[tuple]:
    """Yield the items; show how many papers are done, and the time left by those done now."""
    quiet = None if PartialState().is_main_process else True
    with tqdm(desc="Label", unit=" papers", disable=quiet) as bar:
        for item in items:
            yield item
            window, *read = item
            bar.total = window.total
            if not read and not bar.disable:
                bar.initial += len(window.papers)
            bar.update(len(window.papers))


def _join(parts: list[Path], target: Path, kind: str, schema: pa.Schema) -> Summary:
    """Write the parts into `target`, in their order."""
    summary = Summary()
    with (replacing(target) as aside, open(aside, "wb") as file,
          writing(kind, file, schema) as write):
        for part in parts:
            table = pq.read_table(part)
            if table["row"][0].as_py() != summary.papers + 1:
                raise RuntimeError(f"{part} does not begin with row {summary.papers + 1}")
            summary.add(table)
            write(table)
    return summary
