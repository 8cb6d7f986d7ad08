"""Records of files of papers, one after the other: CSV, JSON Lines, Parquet, or a pipe."""

import csv
import io
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nej import InputError
from nej.fields import COLUMNS, KAGGLE_COLUMNS
from nej.rows import LONGEST_HEADER, parse_header

PIPE = Path("-")  # standard input or output
KINDS = (".csv", ".jsonl", ".json", ".parquet")
ALIASES = {"abstract": "summary", "categories": "category_code", "published": "published_date",
           "updated": "updated_date", "update_date": "updated_date"}
NEEDED = [column for column in COLUMNS if column != "category"]  # which the code tells
KNOWN = {*KAGGLE_COLUMNS, *ALIASES}  # nobody needs another column
LONGEST = 1 << 20  # characters of a field
csv.field_size_limit(16 * LONGEST)  # over that a quote is missing


@dataclass(frozen=True)
class Records:
    """A file's records as they are read, and how much of the file that was."""

    kind: str  # of KINDS
    columns: list[str] | None  # under their own names; None where each record has its own
    rows: Iterator[tuple[int, dict[str, Any] | None]]  # line, record; None if it is none
    share_read: Callable[[], float | None]  # None where it is not known


def own_names(record: dict[str, Any]) -> dict[str, Any]:
    """Return what is not empty of a record, under own names; one of ALIASES only stands in."""
    full = {key: value for key, value in record.items()
            if value not in (None, []) and str(value).strip()}
    return ({ALIASES[key]: value for key, value in full.items() if key in ALIASES}
            | {key: value for key, value in full.items() if key not in ALIASES})


def read_records(sources: Iterable[Path]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield each record with its place, `file:line`; one that cannot be parsed is None.

    Raises:
        InputError: a file is not there, of another kind, or lacks what adding papers needs.
    """
    for source in sources:
        with open_records(Path(source), needed=NEEDED) as records:
            for line, record in records.rows:
                yield f"{source}:{line}", record


@contextmanager
def open_records(source: Path, *, needed: Collection[str]) -> Iterator[Records]:
    """Open a file, or the standard input as PIPE, to read its records.

    Bytes that are not UTF-8 become surrogates, so that whoever needs the text can tell. Of a
    Parquet file the KNOWN columns are read.

    Args:
        needed: columns that a CSV or Parquet file must have, also under one of ALIASES.

    Raises:
        InputError: no such file, one that may not be read, of another kind, a JSON array, a
            missing column, not a whole Parquet file; and while it is read, a CSV with a field of
            over 16 MiB.
    """
    if source == PIPE:
        # a second reader of the same descriptor, so that closing it leaves sys.stdin alone
        with open(sys.stdin.fileno(), "rb", closefd=False) as pipe:
            yield _read(pipe, _kind_of_pipe(pipe), "standard input", needed, size=None)
        return
    if not source.is_file():
        raise InputError(f"no file {source}; name a CSV, JSON Lines or Parquet file")
    kind = source.suffix.lower()
    if kind not in KINDS:
        raise InputError(f"{source}: its name must end in {', '.join(KINDS)}")
    with _open(source) as file:
        yield _read(file, kind, str(source), needed, size=source.stat().st_size)


def _open(source: Path) -> io.BufferedReader:
    try:
        return open(source, "rb")
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}; change its permissions, or "
                         "name another file") from error


def _kind_of_pipe(pipe: io.BufferedReader) -> str:
    start = pipe.peek(4)
    if start.startswith(b"PAR1"):
        raise InputError("standard input: a Parquet file cannot be read from a pipe; name the "
                         "file, or send CSV or JSON Lines")
    return ".jsonl" if _json_begins(start).startswith((b"{", b"[")) else ".csv"


def _json_begins(start: bytes) -> bytes:
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()


def _check_json_lines(start: bytes, named: str) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start[:4]:
        raise InputError(f"{named} is not UTF-8 but looks like UTF-16; save it as UTF-8")
    if _json_begins(start).startswith(b"["):
        raise InputError(f"{named} is a JSON array; save it as JSON Lines (one object a line)")


def _read(file: io.BufferedReader, kind: str, named: str, needed: Collection[str], *,
          size: int | None) -> Records:
    if kind == ".parquet":
        return _parquet_records(file, named, needed)
    columns = None
    if kind == ".csv":
        columns = parse_header(file.readline(LONGEST_HEADER), named=named, needed=needed,
                               aliases=ALIASES)
    else:
        _check_json_lines(file.peek(1024), named)
    text = io.TextIOWrapper(file, "utf-8-sig" if columns is None else "utf-8",
                            errors="surrogateescape", newline="" if columns else None)
    return Records(kind, columns,
                   _csv_records(text, columns, named) if columns else _json_records(text),
                   lambda: (1.0 if file.closed else file.tell() / size) if size else None)


def _csv_records(file: Iterable[str], columns: list[str], named: str
                 ) -> Iterator[tuple[int, dict[str, Any] | None]]:
    reader = csv.reader(file, strict=True)  # else a missing quote swallows rows without a word
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            line = reader.line_num + 1  # after the header
            if "limit" in str(error):
                raise InputError(f"{named}: after line {line}: {error}; is a quote missing?"
                                 ) from error
            yield line, None  # and the next line begins a row
            continue
        if row:
            whole = len(row) == len(columns)
            yield reader.line_num + 1, dict(zip(columns, row)) if whole else None


def _json_records(file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        yield number, record if isinstance(record, dict) else None


def _parquet_records(source: BinaryIO, named: str, needed: Collection[str]) -> Records:
    try:
        file = pq.ParquetFile(source)
    except pa.ArrowException as error:
        raise _not_whole(named, error) from error
    columns = file.schema_arrow.names
    known = {ALIASES.get(name, name) for name in columns}
    missing = [column for column in needed if column not in known]
    if missing:
        raise InputError(f"{named}: lacks {', '.join(missing)}; found: {', '.join(columns)[:200]}")
    done = [0]

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            # dictionaries take many times a table's memory
            for batch in file.iter_batches(1024, columns=[name for name in columns
                                                          if name in KNOWN]):
                for values in zip(*map(_values, batch.columns)):
                    done[0] += 1
                    yield done[0], dict(zip(batch.schema.names, values))
        except (pa.ArrowException, OSError) as error:
            raise _not_whole(named, error) from error
    return Records(".parquet", columns, rows(), lambda: done[0] / max(1, file.metadata.num_rows))


def _not_whole(named: str, error: Exception) -> InputError:
    return InputError(f"{named}: not a whole Parquet file ({' '.join(str(error).split())[:100]})")


def _values(column: pa.Array) -> list[Any]:
    """Return a column's values; None for one that Python has not, as a day in the year 10000."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return [_value(item) for item in column]


def _value(item: pa.Scalar) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        if pa.types.is_nested(item.type):
            return None
        return item.cast(pa.binary()).as_py().decode("utf-8", "surrogateescape")
    except (ValueError, OverflowError):
        return None
