"""A file of papers whose classes are known, to judge a model on."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import datasets

from nej import InputError
from nej.config import OTHER
from nej.data.records import own_names, read_records
from nej.fields import parse_date, parse_id
from nej.predicting.windows import as_paper
from nej.prediction import Classifier

logger = logging.getLogger(__name__)


def read_labelled(path: Path, classifier: Classifier, *, seen: set[str]
                  ) -> tuple[datasets.Dataset, dict[str, list]]:
    """Return the papers of a CSV, JSON Lines or Parquet file that are of the model's classes.

    Args:
        seen: ids, without version, of papers to leave out: the model was trained on them.

    Returns:
        Papers with the columns of a split of `load_dataset`; and, if the file lists all
        categories of a paper, `all_categories` and `cross_listed` of each.

    Raises:
        InputError: the file cannot be read, or no paper of it is left.
    """
    column, names = classifier.config.label_column, classifier.names
    gathers = classifier.config.other_categories == "gather" and names[-1] == OTHER
    newest: dict[str, dict[str, Any]] = {}
    left_out: Counter[str] = Counter()
    known = {_paper(name) for name in seen}
    for _, record in read_records([path]):
        reason, row = _as_row(record, column)
        if reason is None and gathers and row["label"] and row["label"] not in names:
            row["label"] = OTHER
        if reason is None and row["label"] not in names:
            reason = "of another category"
        elif reason is None and _paper(row["id"]) in known:
            reason = "of the training or validation papers"
        if reason is not None:
            left_out[reason] += 1
        elif row["version"] >= newest.get(row["id"], row)["version"]:
            newest[row["id"]] = row
    rows = list(newest.values())
    logger.info("%s: %d papers%s", path, len(rows), "".join(
        f"; left out, {reason}: {count}" for reason, count in left_out.most_common()))
    if not rows:
        raise InputError(f"{path}: no paper is left to judge on ("
                         + ", ".join(f"{count} {reason}" for reason, count in left_out.items())
                         + "); name a file with papers of the model's categories")
    read = classifier.read([row["summary"] for row in rows], [row["title"] for row in rows])
    codes = sorted({row["category_code"] for row in rows})
    papers = datasets.Dataset.from_dict({
        **{name: [row[name] for row in rows] for name in ("id", "title", "published")},
        "label": [names.index(row["label"]) for row in rows],
        "category_code": [codes.index(row["category_code"]) for row in rows],
        **{name: [paper[name] for paper in read]
           for name in ("text", "input_ids", "length", "truncated")},
    }, features=datasets.Features({
        "id": datasets.Value("string"), "title": datasets.Value("string"),
        "published": datasets.Value("date32"), "label": datasets.ClassLabel(names=names),
        "category_code": datasets.ClassLabel(names=codes), "text": datasets.Value("string"),
        "input_ids": datasets.List(datasets.Value("int32")), "length": datasets.Value("int32"),
        "truncated": datasets.Value("bool")}))
    listed = [row["all_categories"] for row in rows]
    if not any(len(categories) > 1 for categories in listed):
        return papers, {}
    return papers, {"all_categories": listed,
                    "cross_listed": [len(categories) > 1 for categories in listed]}


def _paper(name: str) -> str:
    """Return an id in the one spelling of all that it may have; as it is if it is not arXiv's."""
    identity = parse_id(name)
    return identity[0] if identity else name


def _as_row(record: dict[str, Any] | None, label_column: str
            ) -> tuple[str | None, dict[str, Any]]:
    """Return why a record is of no use (None if it is), and what is needed of it."""
    (_, title, summary), fault = as_paper(record, 0)
    if record is None or fault:
        return (fault or "").partition(" (")[0], {}  # without the line
    record = own_names(record)
    codes = record.get("category_code") or []
    codes = codes if isinstance(codes, list) else str(codes).split()
    identity = parse_id(str(record.get("id") or ""))
    if identity is None or not codes:
        return "without an arXiv id or a category", {}
    published = parse_date(str(record.get("published_date") or ""))
    return None, {
        "id": ("abs-" if identity[0][0].isdigit() else "") + identity[0],
        "version": identity[1], "title": " ".join(title.split()),
        "summary": summary, "category_code": codes[0],
        "all_categories": codes, "published": published,
        "label": codes[0] if label_column == "category_code" else record.get("category")}
