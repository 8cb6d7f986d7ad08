"""The rows of a CSV of papers: read and checked, whatever their number."""

import csv
import os
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from xxhash import xxh3_64_intdigest

from nej import InputError
from nej.splits import hashes

KAGGLE_COLUMNS = (
    "id", "title", "category", "category_code", "published_date", "updated_date", "authors",
    "first_author", "summary", "summary_word_count",
)
COLUMNS = ("id", "title", "category", "category_code", "summary")  # what nej needs
TEXTS = ("id", "title", "summary")
LABELS = ("category_code", "category")
PUBLISHED = "published_date"
# 2101.00001v2, math.GT/0309136 or cs-9308101v1, each with or without Kaggle's abs- before it
ARXIV_ID = re.compile(
    r"(?:abs-)?(?P<paper>\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Za-z-]+)?[/-]\d{7})"
    r"(?:v(?P<version>\d{1,4}))?")
BLOCK_BYTES = 8 << 20  # a row must fit into a block
LONGEST_BYTES = 1 << 20  # of a field; over that a quote is missing
CACHED_BYTES = 1 << 18  # what numpy goes through at a time, so that it stays in the cache
THREADS = 2  # that clean; reading and Arrow have others
NOTICE_BYTES = 400  # a notice of withdrawal is shorter
WITHDRAWN = (
    r"(?i)\b(this|the|our) (paper|article|submission|manuscript|preprint|version|work|note|report|"
    r"thesis)( \([^)]*\))? (is|was|has been|have been|is being|had to be) (\w+ ){0,2}"
    r"(withdrawn|retracted)\b|^\W*(withdrawn|retracted)\b"
    r"|\bwithdrawn (by|from) (the |this )?(authors?|submitter|admin|arxiv|archive)")
SPACES = r"[\s\v\x{85}\p{Z}]+"  # what Unicode calls white space
# bytes that may begin or be white space other than a space: ASCII's, and of U+0085 to U+3000
_ODD = np.zeros(256, bool)
_ODD[[*range(32), 0xC2, 0xE1, 0xE2, 0xE3]] = True


def require(path: Path) -> Path:
    """Return `path` if it is a file, else raise InputError with the way to get it."""
    if not path.is_file():
        raise InputError(f"data_path: no file {path}; `make data` gets Kaggle's file as "
                         "data/arxiv.csv, `make sample` the sample")
    if not os.access(path, os.R_OK):
        raise InputError(f"data_path: {path} may not be read; change its permissions")
    return path


def check_header(path: Path, *, named: Path | None = None) -> list[str]:
    """Return the columns of the CSV at `path` (spoken of as `named`).

    Raises:
        InputError: one that nej needs is not among them.
    """
    named = named or path
    try:
        with open(path, "rb") as handle:
            line = handle.readline(1 << 16).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{named}: row 1 is not UTF-8 ({error.reason} at byte {error.start}); "
                         "save the file as UTF-8") from error
    if "\r" in line.rstrip("\r\n"):
        raise InputError(f"{named}: its lines end with CR alone; save it with CRLF or LF")
    header = next(csv.reader([line]), [])
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        other = next((s for s in ("\t", ";", "|") if set(COLUMNS) <= set(line.strip().split(s))),
                     None)
        if other:
            raise InputError(f"{named}: its columns are separated by {other!r}; save it with "
                             "commas")
        raise InputError(
            f"{named}: the header (row 1) lacks {', '.join(missing)}; found: "
            f"{', '.join(header)[:200] or 'nothing'}; needed: {', '.join(KAGGLE_COLUMNS)}")
    return header


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


@dataclass(frozen=True)
class Reject:
    """A row that is left out, and why."""

    row: int
    id: str
    kind: str
    reason: str
    of: str | None = None  # id of the paper that it repeats


def read_rows(path: Path, file: Path) -> tuple[Rows, list[Reject]]:
    """Read the CSV at `path`; write the TEXTS of its good rows to `file`, an Arrow stream.

    White space is collapsed. About 100 bytes a row are in memory, the rest on disk.

    Returns:
        What is known of the good rows, and the bad ones: a wrong number of fields, an empty id,
        summary or category, a NUL character, a field of over 1 MiB, a second header.

    Raises:
        InputError: no file, a missing column, not UTF-8, a missing quote.
    """
    columns = [c for c in (*COLUMNS, PUBLISHED) if c in check_header(require(path))]
    _check_bytes(path)
    try:
        return _write_rows(path, file, columns)
    except pa.ArrowInvalid as error:  # a field that is larger than a block
        raise InputError(f"{path}: {' '.join(str(error).split())[:200]}; correct or delete the row "
                         "(the header is row 1, blank lines do not count)") from error


def _check_bytes(path: Path) -> None:
    """Raise InputError if the file is not UTF-8 or has a quote too few or too many."""
    found = list(_in_threads(_check_lines, _whole_lines(path)))
    if not all(fine for fine, _ in found):
        raise InputError(f"{path}: {_not_utf8(path)}")
    quotes = sum(quotes for _, quotes in found)
    if quotes % 2:
        raise InputError(f"{path}: has an odd number of quotes ({quotes:,}), so that one is "
                         "missing, or the file was cut off; fetch it again, or correct the row")


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the file in pieces that end with a line."""
    with open(path, "rb") as file:
        while piece := file.read(BLOCK_BYTES):
            yield piece + file.readline()


def _check_lines(lines: bytes) -> tuple[bool, int]:
    """Return whether the lines are UTF-8 (Arrow tells ten times as fast as Python), and quotes."""
    ends = pa.py_buffer(np.array([0, len(lines)], np.int32))
    text = pa.Array.from_buffers(pa.binary(), 1, [None, ends, pa.py_buffer(lines)])
    quotes = int(np.count_nonzero(np.frombuffer(lines, np.uint8) == ord('"')))
    try:
        text.cast(pa.string())
    except pa.ArrowInvalid:
        return False, quotes
    return True, quotes


def _not_utf8(path: Path) -> str:
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as wrong:
                return (f"line {number} is not UTF-8 (byte {line[wrong.start]:#04x} at "
                        f"{wrong.start}); save the file as UTF-8")
    raise AssertionError("every line is UTF-8, but the file is not")


def _write_rows(path: Path, file: Path, columns: list[str]) -> tuple[Rows, list[Reject]]:
    """Do what `read_rows` does, for a file whose bytes were checked."""
    wrong: list[tuple[int, int, int, str]] = []  # rows with a wrong number of fields

    def note(row: pa_csv.InvalidRow) -> str:
        wrong.append((row.number, row.actual_columns, row.expected_columns,
                      row.text.split(",", 1)[0][:100]))
        return "skip"

    reader = pa_csv.open_csv(
        path,
        # one thread: it is faster here, and only then Arrow knows the number of a row
        read_options=pa_csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
        convert_options=pa_csv.ConvertOptions(
            include_columns=columns, column_types={c: pa.string() for c in columns},
            strings_can_be_null=False, check_utf8=False))
    parts: dict[str, list] = defaultdict(list)
    vocabulary: dict[str, dict[str, int]] = {column: {} for column in LABELS}
    faults: list[tuple[int, str, str]] = []  # number among the parsed rows, id, reason
    parsed = 0
    schema = pa.schema([(column, pa.string()) for column in TEXTS])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for texts, found, arrays, labels in _in_threads(_clean_batch, reader):
            rows = len(texts) + len(found)
            faults += [(parsed + index, *fault) for index, fault in found.items()]
            parts["number"].append(np.delete(np.arange(parsed, parsed + rows), list(found)))
            parsed += rows
            writer.write_batch(texts.cast(schema))
            parts["id"].append(texts["id"])
            for name, array in arrays.items():
                parts[name].append(array)
            for column in LABELS:
                parts[column].append(_codes(labels[column], vocabulary[column]))
    # rows with a wrong number of fields are not among those that were parsed, but have numbers
    row = np.setdiff1d(np.arange(2, parsed + len(wrong) + 2), [number for number, *_ in wrong])
    bad = [Reject(int(row[number]), name, "bad row", why) for number, name, why in faults]
    bad += [Reject(number, name, "bad row", f"has {there} fields and not {wanted}")
            for number, there, wanted, name in wrong]
    arrays = {name: np.concatenate(part) for name, part in parts.items() if name != "id" and part}
    number = arrays.pop("number", np.array([], int))
    return Rows(
        row=row[number], id=pa.chunked_array(parts["id"], pa.string()),
        labels={column: arrays.pop(column, np.array([], np.int32)) for column in LABELS},
        names={column: pa.array(list(names), pa.string()) for column, names in vocabulary.items()},
        **{name: arrays.get(name, np.array([])) for name in (
            "hash", "version", "summary", "withdrawn", "published")}), bad


def _in_threads(function: Callable, items: Iterable) -> Iterator:
    """Yield function(item) of each item, in order; a few are worked on at a time."""
    with ThreadPoolExecutor(THREADS) as threads:
        coming = deque()
        for item in items:
            coming.append(threads.submit(function, item))
            if len(coming) > THREADS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _clean_batch(batch: pa.RecordBatch) -> tuple[
        pa.RecordBatch, dict[int, tuple[str, str]], dict[str, np.ndarray], pa.RecordBatch]:
    """Return the TEXTS of the good rows, id and fault of each bad row by its index, arrays of what
    is known of the good ones, and their LABELS.
    """
    batch = pa.record_batch({name: _collapse_spaces(batch[name]) for name in batch.schema.names})
    found = {index: (batch["id"][index].as_py(), fault) for index, fault in _faults(batch).items()}
    if found:
        good = np.delete(np.arange(len(batch)), list(found))
        batch = batch.take(pa.array(good, pa.int64()))
    ids, version = _split_versions(batch["id"])
    small = pc.ascii_lower(batch["summary"]).cast(pa.binary()).to_pylist()
    arrays = {
        "hash": hashes(ids.cast(pa.binary()).to_pylist()), "version": version,
        "summary": np.fromiter(map(xxh3_64_intdigest, small), np.uint64, len(small)),
        "withdrawn": _notices(batch["summary"]),
        "published": _dates(batch[PUBLISHED]) if PUBLISHED in batch.schema.names else
        np.full(len(batch), "NaT", "datetime64[D]")}
    texts = pa.record_batch([ids, batch["title"], batch["summary"]], names=TEXTS)
    return texts, found, arrays, batch.select(LABELS)


def _split_versions(ids: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return ids without their last `v` and up to four digits, and those as a number, int16.

    An id of no version, or of nothing else, stays and has version 0.
    """
    offsets, data = _buffers(ids)
    ends, sizes = offsets[1:], np.diff(offsets)
    digits, version = np.zeros(len(ids), int), np.zeros(len(ids), int)
    for place in range(1, 5):
        last = data[np.maximum(ends - place, 0)] if len(data) else np.zeros(len(ids), np.uint8)
        digit = (digits == place - 1) & (sizes > place) & (last - np.uint8(ord("0")) < 10)
        version[digit] += (last[digit] - ord("0")).astype(int) * 10 ** (place - 1)
        digits[digit] += 1
    before = np.maximum(ends - digits - 1, 0)
    has = (digits > 0) & (sizes > digits + 1)
    has[has] = data[before[has]] == ord("v")
    cut = np.where(has, digits + 1, 0)
    kept = np.ones(len(data), bool)
    for place in range(1, 6):
        kept[ends[cut >= place] - place] = False
    shorter = np.concatenate([[0], np.cumsum(sizes - cut)]).astype(np.int32)
    ids = pa.Array.from_buffers(
        pa.string(), len(ids), [None, pa.py_buffer(shorter), pa.py_buffer(data[kept])])
    return ids, np.where(has, version, 0).astype(np.int16)


def _collapse_spaces(texts: pa.Array) -> pa.Array:
    """Trim, and make one space of each run of white space; only texts that need it are touched."""
    odd = _odd_texts(texts)
    if len(odd) == 0:
        return texts
    clean = pc.utf8_trim_whitespace(
        pc.replace_substring_regex(texts.take(odd), SPACES, " "))
    mask = np.zeros(len(texts), bool)
    mask[odd.to_numpy()] = True
    return pc.replace_with_mask(texts, mask, clean)


def _odd_texts(texts: pa.Array) -> pa.Array:
    """Return the indices of texts that have other white space than single spaces inside."""
    offsets, data = _buffers(texts)
    odd = np.zeros(len(texts), bool)
    for start in range(0, len(data), CACHED_BYTES):
        piece = data[start:start + CACHED_BYTES + 1]
        space = piece == ord(" ")
        other = np.flatnonzero(piece - np.uint8(32) > 95)  # under 32 (it wraps around), over 127
        # two spaces that belong to different texts do no harm
        place = np.concatenate([other[_ODD[piece[other]]], np.flatnonzero(space[1:] & space[:-1])])
        odd[np.searchsorted(offsets, start + place, "right") - 1] = True
    full = np.flatnonzero(offsets[1:] > offsets[:-1])
    odd[full] |= (data[offsets[full]] == ord(" ")) | (data[offsets[full + 1] - 1] == ord(" "))
    return pa.array(np.flatnonzero(odd))


def _buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return where each text begins and the last one ends, int32, and the bytes of all, uint8."""
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, np.int32)[texts.offset:texts.offset + len(texts) + 1]
    data = np.frombuffer(data or b"", np.uint8)[offsets[0]:offsets[-1]]
    return offsets - offsets[0], data


def _faults(batch: pa.RecordBatch) -> dict[int, str]:
    """Return what is wrong with each bad row of a batch, by its index."""
    found: dict[int, str] = {}
    for column in batch.schema.names:
        texts = batch[column]
        sizes = pc.binary_length(texts).to_numpy()
        if column in COLUMNS and column != "title":
            found |= dict.fromkeys(np.flatnonzero(sizes == 0).tolist(), f"has an empty {column}")
        found |= dict.fromkeys(np.flatnonzero(sizes > LONGEST_BYTES).tolist(),
                               f"has a {column} of over 1 MiB; is a quote missing?")
        if _buffers(texts)[1].min(initial=1) == 0:
            nul = pc.match_substring(texts, "\0").to_numpy(zero_copy_only=False)
            found |= dict.fromkeys(np.flatnonzero(nul).tolist(), f"has a NUL character in {column}")
    header = pc.and_(pc.equal(batch["id"], "id"), pc.equal(batch["summary"], "summary"))
    return found | dict.fromkeys(np.flatnonzero(header).tolist(), "is a second header")


def _notices(summaries: pa.Array) -> np.ndarray:
    """Return whether each summary is a notice that the paper was withdrawn, bool."""
    short = np.flatnonzero(pc.binary_length(summaries).to_numpy() <= NOTICE_BYTES)
    notice = np.zeros(len(summaries), bool)
    notice[short] = pc.match_substring_regex(summaries.take(pa.array(short)), WITHDRAWN)
    return notice


def _dates(texts: pa.Array) -> np.ndarray:
    """Return datetime64[D], NaT for what `parse_date` does not know."""
    found = texts.dictionary_encode()
    dates = np.array([parse_date(text) for text in found.dictionary.to_pylist()], "datetime64[D]")
    return dates[found.indices.to_numpy()] if len(dates) else np.array([], "datetime64[D]")


@lru_cache(maxsize=1 << 15)
def parse_date(text: str) -> date | None:
    """Return the date of Kaggle's `3/7/21` or of ISO's `2021-03-07...`, None for anything else."""
    try:
        if "/" not in text:
            return date.fromisoformat(text[:10])
        month, day, year = map(int, text.split("/"))
        # arXiv began in 1991
        return date(year + (0 if year > 99 else 2000 if year < 91 else 1900), month, day)
    except (ValueError, OverflowError):
        return None


def _codes(labels: pa.Array, vocabulary: dict[str, int]) -> np.ndarray:
    """Return each label's number in `vocabulary`, int32, after adding those that are new."""
    found = labels.dictionary_encode()
    numbers = [vocabulary.setdefault(name, len(vocabulary))
               for name in found.dictionary.to_pylist()]
    return np.array(numbers, np.int32)[found.indices.to_numpy()] if numbers else np.array(
        [], np.int32)
