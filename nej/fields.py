"""The fields of a batch of rows: trimmed, checked, and what is known of them as arrays."""

import re
from datetime import date
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

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
LONGEST_BYTES = 1 << 20  # of a field; over that a quote is missing
CACHED_BYTES = 1 << 18  # what numpy goes through at a time, so that it stays in the cache
NOTICE_BYTES = 400  # a notice of withdrawal is shorter
WITHDRAWN = (
    r"(?i)\b(this|the|our) (paper|article|submission|manuscript|preprint|version|work|note|report|"
    r"thesis)( \([^)]*\))? (is|was|has been|have been|is being|had to be) (\w+ ){0,2}"
    r"(withdrawn|retracted)\b|^\W*(withdrawn|retracted)\b"
    r"|\bwithdrawn (by|from) (the |this )?(authors?|submitter|admin|arxiv|archive)")
FIRST_DAY = date(1970, 1, 1).toordinal()
NO_DATE = int(np.datetime64("NaT").astype(np.int64))
# bytes that may begin or be white space other than a space: ASCII's, and of U+0085 to U+3000
_ODD = np.zeros(256, bool)
_ODD[[*range(32), 0xC2, 0xE1, 0xE2, 0xE3]] = True


def clean_batch(batch: pa.RecordBatch) -> tuple[
        pa.RecordBatch, dict[int, tuple[str, str]], dict[str, np.ndarray], pa.RecordBatch]:
    """Return the TEXTS of the good rows, id and fault of each bad row by its index, arrays of what
    is known of the good ones, and their LABELS.
    """
    batch = pa.record_batch({name: collapse_spaces(batch[name]) for name in batch.schema.names})
    found = {index: (batch["id"][index].as_py(), fault) for index, fault in _faults(batch).items()}
    if found:
        good = np.delete(np.arange(len(batch)), list(found))
        batch = batch.take(pa.array(good, pa.int64()))
    ids, version = split_versions(batch["id"])
    arrays = {
        "hash": hashes(ids.cast(pa.binary()).to_pylist()), "version": version,
        "summary": _hash_small(batch["summary"]),
        "withdrawn": _notices(batch["summary"]),
        "published": _dates(batch[PUBLISHED]) if PUBLISHED in batch.schema.names else
        np.full(len(batch), "NaT", "datetime64[D]")}
    texts = pa.record_batch([ids, batch["title"], batch["summary"]], names=TEXTS)
    return texts, found, arrays, batch.select(LABELS)


def _hash_small(texts: pa.Array) -> np.ndarray:
    """Return a hash of each text with A to Z as small letters, uint64."""
    offsets, data = _buffers(texts)
    small = np.empty_like(data)
    for start in range(0, len(data), CACHED_BYTES):
        piece = data[start:start + CACHED_BYTES]
        capital = piece - np.uint8(ord("A")) < 26  # under A it wraps around
        np.add(piece, capital.view(np.uint8) << np.uint8(5), out=small[start:start + CACHED_BYTES])
    view, ends = small.data, offsets.tolist()
    return np.fromiter((xxh3_64_intdigest(view[start:end]) for start, end in pairwise(ends)),
                       np.uint64, len(texts))


def split_versions(ids: pa.Array) -> tuple[pa.Array, np.ndarray]:
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


def collapse_spaces(texts: pa.Array) -> pa.Array:
    """Trim, and make one space of each run of white space; only texts that need it are touched."""
    odd = _odd_texts(texts)
    if len(odd) == 0:
        return texts
    mask = np.zeros(len(texts), bool)
    mask[odd] = True
    clean = [" ".join(text.split()) for text in texts.take(pa.array(odd)).to_pylist()]
    return pc.replace_with_mask(texts, mask, pa.array(clean, pa.string()))


def is_text(value: str) -> bool:
    """Return whether a string can be written: it has no half of a surrogate pair in it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _odd_texts(texts: pa.Array) -> np.ndarray:
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
    return np.flatnonzero(odd)


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
    days = np.array([_days(text) for text in found.dictionary.to_pylist()], np.int64)
    return days.view("datetime64[D]")[found.indices.to_numpy()]


@lru_cache(maxsize=1 << 15)
def _days(text: str) -> int:
    """Return the days from 1970 to a date, numpy's number for no date if it is not known."""
    found = parse_date(text)
    return NO_DATE if found is None else found.toordinal() - FIRST_DAY


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


def parse_id(text: str) -> tuple[str, int] | None:
    """Return an arXiv id's paper and version, None if it is no arXiv id."""
    match = ARXIV_ID.fullmatch(text.strip())
    if match is None:
        return None
    return match["paper"].replace("/", "-"), int(match["version"] or 1)


def arxiv_link(paper: str) -> str:
    """Return the address of a paper on arXiv; empty if its id is none of arXiv's."""
    match = ARXIV_ID.fullmatch(paper)
    if match is None:
        return ""
    # cs-9308101 of Kaggle's file is cs/9308101
    return "https://arxiv.org/abs/" + re.sub(r"-(?=\d{7}$)", "/", match["paper"])
