"""The rows of a CSV of papers: read and checked, whatever their number."""

import csv
import io
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from tqdm import tqdm

from nej import InputError
from nej.fields import COLUMNS, KAGGLE_COLUMNS, LABELS, PUBLISHED, TEXTS, clean_batch
from nej.files import require
from nej.workers import in_processes, in_threads

BLOCK_BYTES = 8 << 20  # a row must fit into a block
PART_BYTES = 16 << 20  # that a process reads at a time, or up to twice as many
LONGEST_HEADER = 1 << 16  # bytes


def check_header(path: Path, *, named: Path | None = None) -> list[str]:
    """Return the columns of the CSV at `path` (spoken of as `named`).

    Raises:
        InputError: one that nej needs is not among them.
    """
    return parse_header(_first_line(path), named=named or path, needed=COLUMNS)


def parse_header(line: bytes, *, named: Path | str, needed: Collection[str],
                 aliases: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Return the columns that the first line of a CSV names.

    Args:
        named: what the file is called in an error.
        needed: columns that must be among them, also under one of the aliases.

    Raises:
        InputError: one of those is not among them, or twice; the line is none of UTF-8, or not
            whole.
    """
    if b"\0" in line:
        raise InputError(f"{named}: row 1 is not UTF-8 (it has NUL bytes, as UTF-16 has); save it "
                         "as UTF-8")
    if b"\r" in line.rstrip(b"\r\n"):
        raise InputError(f"{named}: its lines end with CR alone; save it with CRLF or LF")
    if len(line) == LONGEST_HEADER or line.count(b'"') % 2:
        raise InputError(f"{named}: the header (row 1) is over {LONGEST_HEADER:,} bytes long or "
                         "has a line break in a name; give its columns short names")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{named}: row 1 is not UTF-8 ({error.reason} at byte {error.start}); "
                         "save the file as UTF-8") from error
    header = next(csv.reader([text]), [])
    for column in needed:
        if header.count(column) > 1:
            raise InputError(f"{named}: the header (row 1) has {column!r} {header.count(column)} "
                             "times; rename or delete one of them")

    def lacking(columns: list[str]) -> list[str]:
        known = {aliases.get(column, column) for column in columns}
        return [column for column in needed if column not in known]
    missing = lacking(header)
    if missing:
        other = next((s for s in ("\t", ";", "|") if not lacking(text.strip().split(s))), None)
        if other:
            raise InputError(f"{named}: its columns are separated by {other!r}; save it with "
                             "commas")
        whole = KAGGLE_COLUMNS if set(needed) == set(COLUMNS) else needed
        raise InputError(
            f"{named}: the header (row 1) lacks {', '.join(missing)}; found: "
            f"{', '.join(header)[:200] or 'nothing'}; needed: {', '.join(whole)}")
    return header


def _first_line(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.readline(LONGEST_HEADER)


@dataclass
class Rows:
    """What is known of each good row, as arrays in the file's order."""

    row: np.ndarray  # int64, its number; the header is row 1, and blank lines do not count
    id: pa.ChunkedArray  # of strings, without the version
    hash: np.ndarray  # uint64, of the id
    version: np.ndarray  # int16, 0 where there is none
    summary: np.ndarray  # uint64, hash of the summary, A to Z as small letters
    withdrawn: np.ndarray  # bool
    published: np.ndarray  # datetime64[D]
    labels: dict[str, np.ndarray]  # int32, index into names
    names: dict[str, pa.Array]
    sketches: list[np.ndarray]  # of the summaries, on disk, by file


@dataclass(frozen=True)
class Reject:
    """A row that is left out, and why."""

    row: int
    id: str
    kind: str
    reason: str
    of: str | None = None  # id of the paper that it repeats


def read_rows(path: Path, folder: Path, *, sketch: Callable[[pa.Array], np.ndarray] | None = None
              ) -> tuple[Rows, list[Reject], list[Path]]:
    """Read the CSV at `path`; write the TEXTS of its good rows to `folder`, as Arrow streams.

    White space is collapsed. About 100 bytes a row are in memory, the rest on disk. A large file is
    read by several processes.

    Args:
        sketch: makes an array (..., texts) of a batch of summaries, which is kept on disk.

    Returns:
        What is known of the good rows; the bad ones: a wrong number of fields, an empty id,
        summary or category, a NUL character, a field of over 1 MiB, a second header; and the
        streams, in the order of the rows.

    Raises:
        InputError: no file, a missing column, not UTF-8, a missing quote.
    """
    header = check_header(require(path))
    parts = [(*part, folder / f"papers-{number}.arrow")
             for number, part in enumerate(_cut(path, _how_many_parts(path)))]
    read = partial(_read_part, path, header, sketch)
    try:
        if len(parts) == 1:
            found = [read(parts[0])]
        else:
            found = list(tqdm(in_processes(read, parts), desc=f"Read {path}", total=len(parts),
                              unit=" parts", disable=None))
    except pa.ArrowInvalid as error:  # a field that is larger than a block
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}; correct or delete the row "
                         "(the header is row 1, blank lines do not count)") from error
    except BrokenProcessPool as error:
        raise InputError(f"{path}: a process that read it was killed, as a rule for want of "
                         "memory; free some and give the same command again") from error
    return *_join(found), [file for *_, file in parts]


def _how_many_parts(path: Path) -> int:
    if sys.platform != "linux":  # elsewhere processes cannot safely inherit what is loaded
        return 1
    return max(1, path.stat().st_size // PART_BYTES)


def _cut(path: Path, parts: int) -> list[tuple[int, int]]:
    """Check the bytes of the file and cut it between rows; return where each part begins and ends.

    Raises:
        InputError: it is not UTF-8, or has a quote too few or too many.
    """
    start, size = len(_first_line(path)), path.stat().st_size
    quotes, end = 0, start
    cuts, clean = [start], True
    for length, utf8, pieces_quotes, stray in in_threads(_check_lines, _whole_lines(path, start)):
        if not utf8:
            raise InputError(f"{path}: {_not_utf8(path)}")
        # after an even number of quotes the end of a line is that of a row, unless there was
        # a quote in the middle of a field that is not quoted
        clean = clean and not stray[quotes % 2]
        quotes += pieces_quotes
        end += length
        if (clean and quotes % 2 == 0 and start < end < size
                and end >= start + len(cuts) * (size - start) / parts):
            cuts.append(end)
    if quotes % 2:
        raise InputError(f"{path}: has an odd number of quotes ({quotes:,}), so that one is "
                         "missing, or the file was cut off; fetch it again, or correct the row")
    return list(zip(cuts, [*cuts[1:], size]))


def _whole_lines(path: Path, start: int) -> Iterator[bytes]:
    """Yield the file from `start` on, in pieces that end with a line."""
    with open(path, "rb") as file:
        file.seek(start)
        while piece := file.read(BLOCK_BYTES):
            yield piece + file.readline()


def _check_lines(lines: bytes) -> tuple[int, bool, int, tuple[bool, bool]]:
    """Return of some lines the bytes, whether they are UTF-8 (Arrow tells ten times as fast as
    Python), the number of quotes, and whether one that opens a field is not at its beginning, if
    the first opens one and if it closes one.
    """
    ends = pa.py_buffer(np.array([0, len(lines)], np.int32))
    text = pa.Array.from_buffers(pa.binary(), 1, [None, ends, pa.py_buffer(lines)])
    found = np.frombuffer(lines, np.uint8)
    quotes = np.flatnonzero(found == ord('"'))
    before = found[quotes - 1]  # the first byte's is the last one, the end of a line
    stray = (before != ord(",")) & (before != ord("\n")) & (before != ord('"'))
    try:
        text.cast(pa.string())
        utf8 = True
    except pa.ArrowInvalid:
        utf8 = False
    return len(lines), utf8, len(quotes), (bool(stray[::2].any()), bool(stray[1::2].any()))


def _not_utf8(path: Path) -> str:
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                return (f"line {number} is not UTF-8 (byte {line[wrong.start]:#04x} at "
                        f"{wrong.start}); save the file as UTF-8")
    raise AssertionError("every line is UTF-8, but the file is not")


@dataclass
class _Part:
    """What was found in a part of the file."""

    rows: int
    bad: list[Reject]  # rows are counted from 0
    arrays: dict[str, list[np.ndarray]]  # the fields of Rows, and labels, by batch
    ids: list[pa.Array]
    names: dict[str, list[str]]
    sketches: Path | None


def _read_part(path: Path, header: list[str], sketch: Callable | None,
               part: tuple[int, int, Path]) -> _Part:
    """Do what `read_rows` does, for the bytes from `start` to `end` of a file that was checked."""
    start, end, file = part
    wrong: list[tuple[int, int, int, str]] = []  # rows with a wrong number of fields

    def note(row: pa_csv.InvalidRow) -> str:
        wrong.append((row.number - 1, row.actual_columns, row.expected_columns,
                      row.text.split(",", 1)[0][:100]))
        return "skip"

    arrays: dict[str, list] = defaultdict(list)
    vocabulary: dict[str, dict[str, int]] = {column: {} for column in LABELS}
    faults: list[tuple[int, str, str]] = []  # number among the parsed rows, id, reason
    ids: list[pa.Array] = []
    sketched: list[np.ndarray] = []
    parsed = 0
    schema = pa.schema([(column, pa.string()) for column in TEXTS])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in _batches(path, header, start, end, note):
            texts, found, known, labels = clean_batch(batch)
            rows = len(batch)
            faults += [(parsed + index, *fault) for index, fault in found.items()]
            arrays["row"].append(np.delete(np.arange(parsed, parsed + rows), list(found)))
            parsed += rows
            writer.write_batch(texts.cast(schema))
            ids.append(texts["id"])
            if sketch is not None:
                sketched.append(sketch(texts["summary"]))
            for name, array in known.items():
                arrays[name].append(array)
            for column in LABELS:
                arrays[column].append(_codes(labels[column], vocabulary[column]))
    # rows with a wrong number of fields are not among those that were parsed, but have numbers
    is_parsed = np.ones(parsed + len(wrong), bool)
    is_parsed[[row for row, *_ in wrong]] = False
    number = np.flatnonzero(is_parsed)
    bad = [Reject(int(number[row]), name, "bad row", why) for row, name, why in faults]
    bad += [Reject(row, name, "bad row", f"has {there} fields and not {wanted}")
            for row, there, wanted, name in wrong]
    arrays["row"] = [number[rows] for rows in arrays["row"]]
    if sketched:
        content = io.BytesIO()  # np.save itself does not say when a disk is full
        np.save(content, np.ascontiguousarray(np.concatenate(sketched, axis=-1)))  # row by row
        file.with_suffix(".npy").write_bytes(content.getbuffer())
    return _Part(parsed + len(wrong), bad, dict(arrays), ids,
                 {column: list(names) for column, names in vocabulary.items()},
                 file.with_suffix(".npy") if sketched else None)


def _batches(path: Path, header: list[str], start: int, end: int,
             note: Callable[[pa_csv.InvalidRow], str]) -> Iterator[pa.RecordBatch]:
    if start == end:
        return
    columns = [column for column in (*COLUMNS, PUBLISHED) if column in header]
    with pa.OSFile(str(path)) as source:
        yield from pa_csv.open_csv(
            source.get_stream(start, end - start),
            # one thread: it is faster here, and only then Arrow knows the number of a row
            read_options=pa_csv.ReadOptions(
                block_size=BLOCK_BYTES, use_threads=False, column_names=header),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            convert_options=pa_csv.ConvertOptions(
                include_columns=columns, column_types={c: pa.string() for c in columns},
                strings_can_be_null=False, check_utf8=False))


def _codes(labels: pa.Array, vocabulary: dict[str, int]) -> np.ndarray:
    """Return each label's number in `vocabulary`, int32, after adding those that are new."""
    found = labels.dictionary_encode()
    numbers = [vocabulary.setdefault(name, len(vocabulary))
               for name in found.dictionary.to_pylist()]
    return np.array(numbers, np.int32)[found.indices.to_numpy()] if numbers else np.array(
        [], np.int32)


def _join(parts: list[_Part]) -> tuple[Rows, list[Reject]]:
    """Put the parts of a file together."""
    vocabulary: dict[str, dict[str, int]] = {column: {} for column in LABELS}
    bad: list[Reject] = []
    before = 2  # the header is row 1
    for part in parts:
        for column, names in part.names.items():
            numbers = np.array([vocabulary[column].setdefault(name, len(vocabulary[column]))
                                for name in names], np.int32)
            part.arrays[column] = [numbers[codes] for codes in part.arrays.get(column, [])]
        part.arrays["row"] = [rows + before for rows in part.arrays["row"]]
        bad += [Reject(reject.row + before, reject.id, reject.kind, reject.reason)
                for reject in part.bad]
        before += part.rows
    kinds: dict[str, Any] = {
        "row": np.int64, "hash": np.uint64, "version": np.int16, "summary": np.uint64,
        "withdrawn": bool, "published": "datetime64[D]", **dict.fromkeys(LABELS, np.int32)}
    arrays = {name: np.concatenate(
        [array for part in parts for array in part.arrays.get(name, [])] or [np.array([], kind)])
        for name, kind in kinds.items()}
    return Rows(
        id=pa.chunked_array([ids for part in parts for ids in part.ids], pa.string()),
        labels={column: arrays.pop(column) for column in LABELS},
        names={column: pa.array(list(names), pa.string()) for column, names in vocabulary.items()},
        sketches=[np.load(part.sketches, mmap_mode="r") for part in parts if part.sketches],
        **arrays), bad
