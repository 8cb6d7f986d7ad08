"""A whole file of papers, labelled: streamed, resumable, by one process or several."""

import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from accelerate import PartialState
from tqdm import tqdm

from nej import InputError
from nej.backends import backend_name, load_backend
from nej.checkpoints import sole_run
from nej.config import load_config
from nej.device import check_processes, explained_partners, prepare_device
from nej.fields import is_text
from nej.files import CONFIG_FILE, replacing, write_json
from nej.prediction import Backend, category_names, softmax
from nej.records import KINDS, LONGEST, PIPE, Records, open_records

logger = logging.getLogger(__name__)

WINDOW_PAPERS = 2048  # sorted by length, labelled and kept together
WINDOW_CHARACTERS = 16 << 20
RECORD = "run.json"  # in the folder of an unfinished file: what its parts were made from
WEEK_SECONDS = 7 * 24 * 3600  # that a process waits for slower ones


@dataclass(frozen=True)
class Labelling:
    """How papers are labelled."""

    backend: Backend
    threshold: float | None  # under this probability the model abstains
    top_k: int


@dataclass(frozen=True)
class Window:
    """Neighbouring papers of a file."""

    number: int
    first_row: int  # the file's papers are counted from 1
    papers: list[tuple[str, str, str]]  # id, title, summary
    faults: dict[int, str]  # why a paper cannot be labelled, by its place
    total: int | None  # of all papers of the file, as far as one can tell by now


@dataclass
class Summary:
    """What became of a file's papers."""

    papers: int = 0
    abstained: int = 0
    truncated: int = 0
    bad: Counter = field(default_factory=Counter)  # papers by reason, the lines left out
    first_bad: dict[str, int] = field(default_factory=dict)  # row by reason

    def add(self, table: pa.Table) -> None:
        """Count the papers of a part."""
        rows, reasons = table["row"], table["reason"].to_pylist()
        self.papers += len(rows)
        self.abstained += sum(filter(None, table["abstained"].to_pylist()))
        self.truncated += sum(filter(None, table["truncated"].to_pylist()))
        for row, reason in zip(rows, reasons):
            if reason:
                kind = reason.split(" (")[0]
                self.bad[kind] += 1
                self.first_bad.setdefault(kind, row.as_py())

    def text(self) -> str:
        """Return the counts, and the reasons with the first row of each."""
        lines = [f"{self.papers:,} papers: {self.papers - self.bad.total():,} labelled, of them "
                 f"{self.abstained:,} under the threshold and {self.truncated:,} truncated; "
                 f"{self.bad.total():,} not labelled"]
        return "\n".join(lines + [f"  {count:>7,}  {reason} (first: row {self.first_bad[reason]})"
                                  for reason, count in self.bad.most_common()])


def label_file(model_dir: Path, source: Path, target: Path, *, backend: str | None = None,
               wanted_accuracy: float | None = 0.9, top_k: int = 1) -> Summary | None:
    """Label the papers of a CSV, JSON Lines or Parquet file; PIPE is standard input or output.

    Whole windows are kept in `target`.partial, so that the same call goes on after a kill, with as
    many processes as there are then. `target` appears as a whole at the end.

    Args:
        backend: as in `load_backend`.
        wanted_accuracy: as in Backend.threshold; None never abstains.
        top_k: how many categories of each paper to name.

    Returns:
        The counts; None in all processes but the first.

    Raises:
        InputError: no model, a file that cannot be read or written, another unfinished run, or
            a pipe and several processes.
    """
    check_processes()
    config = replace(load_config(model_dir / CONFIG_FILE), ddp_timeout=WEEK_SECONDS)
    prepare_device(config)
    kind = _kind_of_target(target)
    if PartialState().num_processes > 1 and PIPE in (source, target):
        raise InputError("several processes cannot share a pipe; name files, or start one process")

    def labelling(backend: Backend) -> Labelling:
        if not 1 <= top_k <= len(backend.names):
            raise InputError(f"--top_k is {top_k}; {model_dir} knows {len(backend.names)} "
                             "categories")
        threshold = backend.threshold(wanted_accuracy) if wanted_accuracy else None
        return Labelling(backend, threshold, top_k)
    with open_records(source, needed=["summary"]) as records:
        if target == PIPE:
            return _to_pipe(records, labelling(load_backend(model_dir, backend)))
        with sole_run(target, option="--output"), explained_partners():
            return _to_file(records, model_dir, source, target, kind, backend, labelling)


def _to_pipe(records: Records, how: Labelling) -> Summary:
    summary = Summary()
    kind = ".csv" if records.kind == ".csv" else ".jsonl"
    try:
        with (open(sys.stdout.fileno(), "wb", closefd=False) as file,
              _writer(kind, file, _schema(how.top_k)) as write):
            for window in _in_advance(_windows(records, how)):
                table = _label(*window, how)
                summary.add(table)
                write(table)
                file.flush()
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return summary


def _to_file(records: Records, model_dir: Path, source: Path, target: Path, kind: str,
             backend: str | None, labelling: Callable[[Backend], Labelling]) -> Summary | None:
    state, partial = PartialState(), target.with_name(target.name + ".partial")
    made_from = {"source": _mark(source), "model": _model_mark(model_dir)}
    if state.is_main_process:
        before = _unfinished(partial, made_from) if source != PIPE else None
        how = labelling(load_backend(model_dir, before["backend"] if before and not backend
                                     else backend))
        record = made_from | {"backend": backend_name(how.backend), "top_k": how.top_k,
                              "threshold": how.threshold, "window_papers": WINDOW_PAPERS}
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
    for window, *read in _with_progress(_in_advance(_windows(records, how, partial))):
        windows = window.number + 1
        if read:
            with replacing(_part(partial, window.number)) as aside:
                pq.write_table(_label(window, *read, how), aside)
    if _mark(source) != made_from["source"]:
        raise InputError(f"{source} was changed while it was read; delete {partial} and begin anew")
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    summary = _join([_part(partial, number) for number in range(windows)], target, kind,
                    _schema(how.top_k))
    shutil.rmtree(partial)
    return summary


def _kind_of_target(target: Path) -> str:
    if target == PIPE:
        return ""
    kind = target.suffix.lower()
    if kind not in KINDS:
        raise InputError(f"--output is {target}; its name must end in {', '.join(KINDS)}, or be -")
    if target.is_dir():
        raise InputError(f"--output is {target}, which is a folder; name a file")
    return kind


def _mark(source: Path) -> dict[str, Any]:
    """Return what tells a file from a later version of it."""
    if source == PIPE:
        return {"path": str(PIPE)}
    there = source.stat()
    return {"path": str(source.resolve()), "size_bytes": there.st_size,
            "modified_ns": there.st_mtime_ns}


def _model_mark(model_dir: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((model_dir / "manifest.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}  # loading it will tell
    return {"weights_sha256": manifest["weights_sha256"]}


def _unfinished(partial: Path, made_from: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of an unfinished run, None if there is none.

    Raises:
        InputError: it is of another file or model.
    """
    try:
        before = json.loads((partial / RECORD).read_text("utf-8"))
    except FileNotFoundError:
        return None
    different = [key for key in made_from if before[key] != made_from[key]]
    if different:
        raise InputError(f"{partial} holds an unfinished run of another {' and '.join(different)}; "
                         "delete it to begin anew, or name another --output")
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


def _windows(records: Records, how: Labelling, partial: Path | None = None) -> Iterator[tuple]:
    """Yield each Window; with what the model is to read, unless another process has it or its part
    is there already.
    """
    state = PartialState()
    if "title" in how.backend.config.text_fields and "title" not in (records.columns or ["title"]):
        logger.warning("the file has no column title, and %s was trained to read titles too",
                       how.backend.model_dir)
    for window in _cut(records):
        mine = window.number % state.num_processes == state.process_index
        if mine and not (partial and _part(partial, window.number).exists()):
            yield window, how.backend.read(
                [summary for place, (_, _, summary) in enumerate(window.papers)
                 if place not in window.faults],
                [title for place, (_, title, _) in enumerate(window.papers)
                 if place not in window.faults])
        else:
            yield (window,)


def _cut(records: Records) -> Iterator[Window]:
    number, first_row, papers, faults, characters = 0, 1, [], {}, 0

    def window() -> Window:
        share = records.share_read()
        total = round((first_row + len(papers) - 1) / share) if share else None
        return Window(number, first_row, papers, faults, total)
    for line, record in records.rows:
        paper, fault = _as_paper(record, line)
        if fault:
            faults[len(papers)] = fault
        papers.append(paper)
        characters += sum(map(len, paper))
        if len(papers) == WINDOW_PAPERS or characters > WINDOW_CHARACTERS:
            yield window()
            number, first_row = number + 1, first_row + len(papers)
            papers, faults, characters = [], {}, 0
    if papers:
        yield window()


def _as_paper(record: dict[str, Any] | None, line: int
              ) -> tuple[tuple[str, str, str], str | None]:
    """Return id, title and summary of a record, and why it cannot be labelled (None if it can)."""
    if record is None:
        return ("", "", ""), f"cannot be parsed (line {line})"
    identity = "" if record.get("id") is None else str(record["id"])[:1000]
    identity = identity.encode("utf-8", "backslashreplace").decode()
    texts = {"title": record.get("title"), "summary": record.get("summary", record.get("abstract"))}
    for name, text in texts.items():
        if name == "summary" and (text is None or isinstance(text, str) and not text.strip()):
            return (identity, "", ""), "has no summary"
        text = "" if text is None else text
        fault = None
        if not isinstance(text, str):
            fault = f"its {name} is no text"
        elif len(text) > LONGEST:
            fault = f"has a {name} of over {LONGEST:,} characters"
        elif "\0" in text:
            fault = f"has a NUL character in its {name}"
        elif not is_text(text):
            fault = f"its {name} is not UTF-8"
        if fault:
            return (identity, "", ""), fault
    return (identity, texts["title"] or "", texts["summary"]), None


def _in_advance(items: Iterator[tuple]) -> Iterator[tuple]:
    """Yield the items; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _with_progress(items: Iterator[tuple]) -> Iterator[tuple]:
    """Yield the items; show how many papers are done, and the time left by those done now."""
    quiet = None if PartialState().is_main_process else True
    with tqdm(desc="Label", unit=" papers", disable=quiet) as bar:
        for item in items:
            yield item
            window, *read = item
            bar.total = window.total
            if not read:
                bar.initial += len(window.papers)
            bar.update(len(window.papers))


def _schema(top_k: int) -> pa.Schema:
    more = [column for rank in range(2, top_k + 1) for column in (
        (f"category_{rank}", pa.string()), (f"probability_{rank}", pa.float32()))]
    return pa.schema([
        ("row", pa.int64()), ("id", pa.string()), ("category", pa.string()), ("name", pa.string()),
        ("probability", pa.float32()), *more, ("abstained", pa.bool_()), ("truncated", pa.bool_()),
        ("reason", pa.string())])


def _label(window: Window, read: list[dict[str, Any]], how: Labelling) -> pa.Table:
    """Return a window's labels; `read` are its good papers, as the model reads them."""
    good = [place for place in range(len(window.papers)) if place not in window.faults]
    columns: dict[str, list] = {name: [None] * len(window.papers)
                                for name in _schema(how.top_k).names}
    columns["row"] = range(window.first_row, window.first_row + len(window.papers))
    columns["id"] = [identity for identity, *_ in window.papers]
    columns["reason"] = [window.faults.get(place) for place in range(len(window.papers))]
    logits = how.backend.run(read, description=None).logits
    probabilities = softmax(logits, how.backend.temperature)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :how.top_k]
    names = how.backend.names
    for place, paper, row, order in zip(good, read, probabilities, best):
        for rank, index in enumerate(order, 1):
            end = f"_{rank}" if rank > 1 else ""
            columns[f"category{end}"][place] = names[index]
            columns[f"probability{end}"][place] = row[index]
        columns["name"][place] = category_names().get(names[order[0]], names[order[0]])
        columns["abstained"][place] = how.threshold is not None and row[order[0]] < how.threshold
        columns["truncated"][place] = paper["truncated"]
    return pa.table(columns, schema=_schema(how.top_k))


@contextmanager
def _writer(kind: str, file: BinaryIO, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    if kind == ".parquet":
        with pq.ParquetWriter(file, schema) as writer:
            yield writer.write_table
    elif kind == ".csv":
        with pa_csv.CSVWriter(file, schema) as writer:
            yield writer.write_table
    else:
        yield lambda table: file.write("".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode())


def _join(parts: list[Path], target: Path, kind: str, schema: pa.Schema) -> Summary:
    """Write the parts into `target`, in their order."""
    summary = Summary()
    with (replacing(target) as aside, open(aside, "wb") as file,
          _writer(kind, file, schema) as write):
        for part in parts:
            table = pq.read_table(part)
            if table["row"][0].as_py() != summary.papers + 1:
                raise RuntimeError(f"{part} does not begin with row {summary.papers + 1}")
            summary.add(table)
            write(table)
    return summary
