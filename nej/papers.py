"""The papers of a CSV: one row of each, and what became of every other row."""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from nej import InputError
from nej.duplicates import BANDS, near_duplicates, sketch
from nej.fields import TEXTS
from nej.rows import Reject, Rows, read_rows
from nej.splits import to_positions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CleanPapers:
    """The papers of a CSV that are kept, on disk, and what became of every other row.

    `rows` = papers kept + rows rejected. Arrays are by paper, in the file's order.
    """

    path: Path  # the CSV
    rows: int
    rejects: pa.Table  # the fields of Reject, by row
    positions: np.ndarray  # float64 in [0, 1), from which the split follows
    published: np.ndarray  # datetime64[D], NaT where there is no date
    labels: dict[str, pa.DictionaryArray]  # category_code and category
    files: list[Path]  # Arrow streams of the TEXTS of all good rows
    kept: np.ndarray  # bool, by row of the files

    def __len__(self) -> int:
        return len(self.positions)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the kept papers' TEXTS; one batch is in memory at a time."""
        return _kept_batches(self.files, self.kept)

    def table(self) -> pa.Table:
        """Return id (without its version), title, summary, category_code and category."""
        texts = pa.Table.from_batches(self.batches(), pa.schema([(c, pa.string()) for c in TEXTS]))
        for column, labels in self.labels.items():
            texts = texts.append_column(column, labels.cast(pa.string()))
        return texts

    def rejected(self) -> dict[str, int]:
        """Return the rejects of each kind, most first."""
        return dict(Counter(self.rejects["kind"].to_pylist()).most_common())

    def counts(self, column: str) -> dict[str, int]:
        """Return the papers of each label in `column`."""
        labels = self.labels[column]
        counts = np.bincount(labels.indices.to_numpy(), minlength=len(labels.dictionary))
        return {name: count for name, count in zip(labels.dictionary.to_pylist(), counts.tolist())
                if count}


def read_papers(path: Path) -> pa.Table:
    """Read a CSV of papers into memory; near-duplicates are kept. See `clean` for the rest."""
    with tempfile.TemporaryDirectory() as scratch:
        return clean(path, Path(scratch), near_duplicate_threshold=None).table()


def clean(path: Path, scratch: Path, *, max_bad_rows: int = 0,
          near_duplicate_threshold: float | None = 0.8) -> CleanPapers:
    """Read a CSV and keep one row of each paper.

    Left out are bad rows (see `read_rows`), all versions of a paper (`abs-2101.00001v2`) but the
    newest, notices that a paper was withdrawn, and papers with the summary of an earlier row, or
    nearly. The earlier of two papers is the one that came into the file first, in whatever version:
    new papers push out none that were there, only a reworded version may.

    Args:
        scratch: a folder for the papers' texts; it must live as long as the result.
        max_bad_rows: how many bad rows there may be.
        near_duplicate_threshold: the similarity (`duplicates.near_duplicates`) from which a summary
            counts as repeated; None looks for equal ones only.

    Raises:
        InputError: an unreadable file, no papers, or too many bad rows.
    """
    rows, bad, files = read_rows(
        path, scratch, sketch=None if near_duplicate_threshold is None else sketch)
    total = len(rows.row) + len(bad)
    if total == 0:
        raise InputError(f"{path}: no papers, only a header; fetch the file again")
    if len(bad) > max_bad_rows:
        first = min(bad, key=lambda reject: reject.row)
        raise InputError(
            f"{path}: row {first.row} (id {first.id[:40]!r}) {first.reason}; correct or delete it"
            + f" (there are {len(bad):,} bad rows)" * (len(bad) > 1)
            + f", or leave bad rows out with --max_bad_rows {len(bad)}")
    kept = np.ones(len(rows.row), bool)
    rejects = bad
    for find in (_older_versions, _withdrawn, _same_summaries):
        if kept.any():
            rejects += find(rows, kept)
    if not kept.any():
        raise InputError(f"{path}: no papers are left of its {total:,} rows; fetch it again")
    if near_duplicate_threshold is not None:
        rejects += _near_duplicates(rows, kept, files, near_duplicate_threshold)
    papers = CleanPapers(
        path=path, rows=total,
        rejects=_as_table(sorted(rejects, key=lambda reject: reject.row)),
        positions=to_positions(rows.hash[kept]), published=rows.published[kept],
        labels={name: pa.DictionaryArray.from_arrays(codes[kept], rows.names[name])
                for name, codes in rows.labels.items()},
        files=files, kept=kept)
    logger.info("%s: %d rows, %d papers%s", path, total, len(papers), "".join(
        f"; left out as {kind}: {count}" for kind, count in papers.rejected().items()))
    return papers


def _older_versions(rows: Rows, kept: np.ndarray) -> Iterator[Reject]:
    """Keep of each paper the highest version, and of that the first row."""
    several = _not_alone(rows.hash)
    order = several[np.lexsort((-rows.version[several].astype(int), rows.hash[several]))]
    for index, first in _repeats(rows.hash, order):
        if rows.version[index] < rows.version[first]:
            yield _repeat(rows, kept, index, first, "older version", "has the newer version in")
        else:
            yield _repeat(rows, kept, index, first, "repeated row", "has the id of")


def _withdrawn(rows: Rows, kept: np.ndarray) -> Iterator[Reject]:
    for index in np.flatnonzero(kept & rows.withdrawn):
        kept[index] = False
        yield Reject(int(rows.row[index]), rows.id[index].as_py(), "withdrawn",
                     "is a notice that the paper was withdrawn")


def _same_summaries(rows: Rows, kept: np.ndarray) -> Iterator[Reject]:
    order = np.flatnonzero(kept)
    order = order[_not_alone(rows.summary[order])]
    order = order[np.lexsort((_first_rows(rows, order), rows.summary[order]))]
    for index, first in _repeats(rows.summary, order):
        yield _repeat(rows, kept, index, first, "repeated summary", "has the summary of")


def _near_duplicates(rows: Rows, kept: np.ndarray, files: list[Path], threshold: float
                     ) -> Iterator[Reject]:
    index = np.flatnonzero(kept)
    found = near_duplicates(
        (batch["summary"] for batch in _kept_batches(files, kept)),
        (np.concatenate([part[band] for part in rows.sketches])[kept] for band in range(BANDS)),
        threshold=threshold, ranks=_first_rows(rows, index).tolist())
    # near_duplicates has read all that `kept` lets through; it changes only now
    for later, (earlier, similarity) in found.items():
        yield _repeat(rows, kept, index[later], index[earlier], "near-duplicate",
                      f"has a summary that is {similarity:.0%} that of")


def _first_rows(rows: Rows, index: np.ndarray) -> np.ndarray:
    """Return for each row of `index` the first row of the same paper, int64."""
    first = rows.row.copy()
    several = _not_alone(rows.hash)
    _, where, paper = np.unique(rows.hash[several], return_index=True, return_inverse=True)
    first[several] = rows.row[several[where[paper]]]
    return first[index]


def _not_alone(values: np.ndarray) -> np.ndarray:
    """Return the indices, ascending, of values that are there more than once."""
    order = np.argsort(values)
    same = values[order][1:] == values[order][:-1]
    return np.sort(order[np.append(same, False) | np.append(False, same)]) if len(order) else order


def _repeats(values: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (index, index of the first in `order` with the same value) for all others."""
    values = values[order]
    is_first = np.append(True, values[1:] != values[:-1])[:len(order)]
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    for place in np.flatnonzero(~is_first):
        yield order[place], first[place]


def _repeat(rows: Rows, kept: np.ndarray, index: int, of: int, kind: str, says: str) -> Reject:
    kept[index] = False
    return Reject(int(rows.row[index]), rows.id[index].as_py(), kind, f"{says} row {rows.row[of]}",
                  rows.id[of].as_py())


def _as_table(rejects: list[Reject]) -> pa.Table:
    return pa.table({field.name: pa.array([getattr(reject, field.name) for reject in rejects],
                                          pa.int64() if field.name == "row" else pa.string())
                     for field in fields(Reject)})


def _kept_batches(files: list[Path], kept: np.ndarray) -> Iterator[pa.RecordBatch]:
    start = 0
    for file in files:
        with pa.OSFile(str(file)) as source, pa.ipc.open_stream(source) as stream:
            for batch in stream:
                yield batch.filter(pa.array(kept[start:start + len(batch)]))
                start += len(batch)
