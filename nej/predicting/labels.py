"""Labels of papers as a table: what a file that is labelled has of each."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from nej import InputError
from nej.predicting.windows import Window
from nej.prediction import Backend, category_names, softmax


@dataclass(frozen=True)
class Labelling:
    """How papers are labelled."""

    backend: Backend
    threshold: float | None  # under this probability the model abstains
    top_k: int


@dataclass(frozen=True)
class Label:
    """What a paper is labelled with."""

    categories: list[tuple[str, str, float]]  # code, name, probability; the most probable first
    abstained: bool


def abstaining_under(backend: Backend, wanted_accuracy: float | None) -> float | None:
    """Return the probability under which to abstain; None never does, as for an accuracy of 0.

    Raises:
        InputError: no accuracy is that.
    """
    if wanted_accuracy is not None and not 0 <= wanted_accuracy <= 1:
        raise InputError(f"--wanted_accuracy is {wanted_accuracy:g}; it must be from 0 to 1 (0 "
                         "never abstains)")
    return backend.threshold(wanted_accuracy) if wanted_accuracy else None


def ranked(logits: np.ndarray, how: Labelling) -> list[Label]:
    """Return the label of each paper by its logits, (papers, classes)."""
    probabilities = softmax(logits, how.backend.temperature)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :how.top_k]
    codes, names = how.backend.names, category_names()
    return [Label([(codes[index], names.get(codes[index], codes[index]), probability)
                   for index, probability in zip(order, row)],
                  how.threshold is not None and row[0] < how.threshold)
            for order, row in zip(best.tolist(),
                                  np.take_along_axis(probabilities, best, axis=1).tolist())]


def schema(top_k: int) -> pa.Schema:
    """Return the columns, with those of the `top_k` most probable categories."""
    more = [column for rank in range(2, top_k + 1) for column in (
        (f"category_{rank}", pa.string()), (f"probability_{rank}", pa.float32()))]
    return pa.schema([
        ("row", pa.int64()), ("id", pa.string()), ("category", pa.string()), ("name", pa.string()),
        ("probability", pa.float32()), *more, ("abstained", pa.bool_()), ("truncated", pa.bool_()),
        ("reason", pa.string())])


def label(window: Window, read: list[dict[str, Any]], how: Labelling) -> pa.Table:
    """Return a window's labels; `read` are its good papers, as the model reads them."""
    columns: dict[str, list] = {name: [None] * len(window.papers)
                                for name in schema(how.top_k).names}
    columns["row"] = [window.first_row + place for place in range(len(window.papers))]
    columns["id"] = [identity for identity, *_ in window.papers]
    columns["reason"] = [window.faults.get(place) for place in range(len(window.papers))]
    labels = ranked(how.backend.run(read, description=None).logits, how)
    for place, paper, found in zip(window.good, read, labels):
        for rank, (code, _, probability) in enumerate(found.categories, 1):
            end = f"_{rank}" if rank > 1 else ""
            columns[f"category{end}"][place] = code
            columns[f"probability{end}"][place] = probability
        columns["name"][place] = found.categories[0][1]
        columns["abstained"][place] = found.abstained
        columns["truncated"][place] = paper["truncated"]
    return pa.table(columns, schema=schema(how.top_k))


@contextmanager
def writing(kind: str, file: BinaryIO, columns: pa.Schema
            ) -> Iterator[Callable[[pa.Table], Any]]:
    """Yield what appends a table to a file of a kind of records.KINDS."""
    if kind == ".parquet":
        with pq.ParquetWriter(file, columns) as writer:
            yield writer.write_table
    elif kind == ".csv":
        with pa_csv.CSVWriter(file, columns) as writer:
            yield writer.write_table
    else:
        yield lambda table: file.write("".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode())


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
