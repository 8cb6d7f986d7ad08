"""Adding papers to the data set: from CSV, JSON Lines or Parquet, merged by arXiv id."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nej import InputError
from nej.data.records import own_names, read_records
from nej.fields import KAGGLE_COLUMNS, LONGEST_BYTES, is_text, parse_id
from nej.files import replacing, require
from nej.rows import check_header


@dataclass
class Additions:
    """What became of each new row: rows = added + updated + already_there + rejected."""

    rows: int = 0
    added: int = 0
    updated: int = 0
    already_there: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)  # place, reason

    def text(self) -> str:
        """Return the counts, and the reasons with the first place of each."""
        lines = [f"{self.rows:,} rows: {self.added:,} added, {self.updated:,} updated, "
                 f"{self.already_there:,} already there, {len(self.rejected):,} rejected"]
        first: dict[str, str] = {}
        for place, reason in self.rejected:
            first.setdefault(reason, place)
        for reason, count in Counter(reason for _, reason in self.rejected).most_common():
            lines.append(f"  {count:>7,}  {reason} (first: {first[reason]})")
        return "\n".join(lines)


def add_papers(target: Path, sources: Iterable[Path]) -> Additions:
    """Merge the papers of `sources` into the CSV `target`.

    Of a paper that is there, the newest version stays (an id without a version counts as v1). The
    rows that stay keep their order, and new ones come after them, so that no paper changes its
    split and a version of the data is read as a difference to the one before.

    Raises:
        InputError: a file that cannot be read at all. `target` is replaced as a whole at the end,
            or is as it was.
    """
    check_header(require(target))
    result = Additions()
    names, newest = _what_is_there(target)
    new: dict[str, tuple[int, dict[str, str]]] = {}  # paper -> version, row
    for place, record in read_records(sources):
        result.rows += 1
        try:
            paper, version, row = _as_row(record, names)
        except ValueError as error:
            result.rejected.append((place, str(error)))
            continue
        if version <= (new[paper][0] if paper in new else newest.get(paper, -1)):
            result.already_there += 1
        else:
            result.already_there += paper in new  # the older one of two new ones
            new[paper] = version, row
    result.updated = sum(paper in newest for paper in new)
    result.added = len(new) - result.updated
    if new:
        with replacing(target) as aside:
            _merge(target, aside, new, newest)
    assert result.rows == (result.added + result.updated + result.already_there
                           + len(result.rejected))
    return result


def _merge(target: Path, aside: Path, new: dict[str, tuple[int, dict[str, str]]],
           newest: dict[str, int]) -> None:
    with open(target, "rb") as file:
        line_end = "\r\n" if file.readline(1 << 16).endswith(b"\r\n") else "\n"
    waiting = dict(new)
    with (open(target, encoding="utf-8-sig", newline="") as old,
          open(aside, "w", encoding="utf-8", newline="") as merged):
        reader = csv.DictReader(old)
        writer = csv.DictWriter(merged, reader.fieldnames or [], extrasaction="ignore",
                                lineterminator=line_end)
        writer.writeheader()
        for row in tqdm(_whole_rows(reader, target), desc="Merge", unit=" rows", disable=None):
            paper, version = parse_id(row["id"]) or ("", 0)
            if paper in waiting and version == newest[paper]:
                version, better = waiting.pop(paper)
                stem = re.sub(r"v\d+$", "", row["id"].strip())  # it decides on the split
                row = row | {column: value for column, value in better.items() if value} | {
                    "id": f"{stem}v{version}"}
            if line_end == "\n":  # csv before Python 3.13 writes them without quotes then
                row = {column: value.replace("\r", " ") for column, value in row.items()}
            writer.writerow(row)
        writer.writerows(row for _, row in waiting.values())


def _whole_rows(reader: csv.DictReader, path: Path) -> Iterator[dict[str, str]]:
    try:
        for row in reader:
            if None in row or None in row.values():
                columns = len(reader.fieldnames or [])
                raise InputError(f"{path}: line {reader.line_num}: not {columns} fields; correct "
                                 "or delete the row")
            yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: after line {reader.line_num}: {error}; correct the file"
                         ) from error


def _what_is_there(target: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Return the name that each category code has most often, and each paper's newest version."""
    counts: Counter[tuple[str, str]] = Counter()
    newest: dict[str, int] = {}
    with open(target, encoding="utf-8-sig", newline="") as file:
        for row in _whole_rows(csv.DictReader(file), target):
            counts[row["category_code"], row["category"]] += 1
            if identity := parse_id(row["id"]):
                newest[identity[0]] = max(identity[1], newest.get(identity[0], 0))
    return {code: name for (code, name), _ in reversed(counts.most_common())}, newest


def _as_row(
    record: dict[str, Any] | None, names: dict[str, str]
) -> tuple[str, int, dict[str, str]]:
    """Return paper, version and Kaggle's ten columns; raise ValueError with the reason."""
    if record is None:
        raise ValueError("cannot be parsed")
    record = own_names(record)
    row = {column: _text(record.get(column)) for column in KAGGLE_COLUMNS}
    codes = record.get("category_code")
    codes = codes if isinstance(codes, list) else _text(codes).split()
    row["category_code"] = _text(codes[0]) if codes else ""  # the first is the primary one
    for column in ("id", "title", "summary", "category_code"):
        if not row[column]:
            raise ValueError(f"no {column}")
    for column, value in row.items():
        if "\0" in value or "\ufffd" in value or not is_text(value):
            raise ValueError(f"{column} has characters that are none (a wrong encoding?)")
        if len(value.encode()) > LONGEST_BYTES:
            raise ValueError(f"{column} longer than {LONGEST_BYTES:,} bytes")
    identity = parse_id(row["id"])
    if identity is None:
        raise ValueError("id is not an arXiv id")
    paper, version = identity
    if row["category_code"] not in names:
        raise ValueError(f"category {row['category_code'][:40]!r} is not in the data set")
    authors = record.get("authors")
    if isinstance(authors, list):
        row["first_author"] = row["first_author"] or (_text(authors[0]) if authors else "")
        row["authors"] = str([_text(author) for author in authors])
    had_version = re.search(r"v\d+$", row["id"])
    new_style = paper[0].isdigit()
    row["id"] = f"{'abs-' * new_style}{paper}{f'v{version}' if had_version else ''}"
    row["category"] = names[row["category_code"]]
    row["summary_word_count"] = str(len(row["summary"].split()))
    return paper, version, row


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split())
