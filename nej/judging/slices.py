"""Accuracy of parts of the test papers: old and new, short and long, field by field."""

from typing import Any

import numpy as np

from nej.judging.calibration import share
from nej.metrics import Predictions

MOST_YEARS = 12  # more of them are put together in spans of five


def slices(columns: dict[str, list], predictions: Predictions) -> list[dict[str, Any]]:
    """Return accuracy with its interval for each value of each way to cut the papers.

    Args:
        columns: text, truncated, published (date or None), category_code and, where it is known,
            cross_listed (bool) of each paper.

    Returns:
        slice, value, papers, accuracy, interval; slices that do not cut are left out.
    """
    words = np.array([len(text.split()) for text in columns["text"]])
    bounds = np.unique(np.quantile(words, [0.25, 0.5, 0.75]).astype(int))
    values = {
        "year": _years(columns["published"]),
        "length": [_range(bounds, int(np.searchsorted(bounds, count))) for count in words],
        "truncated": ["yes" if cut else "no" for cut in columns["truncated"]],
        "area": [code.partition(".")[0] for code in columns["category_code"]]}
    if "cross_listed" in columns:
        values["cross-listed"] = ["yes" if there else "no" for there in columns["cross_listed"]]
    found = []
    for name, value_of in values.items():
        order = sorted(set(value_of), key=lambda value: (value == "no date", _number(value), value))
        if len(order) > 1:
            of = np.array(value_of)
            found += [{"slice": name, "value": value, **share(predictions.right[of == value])}
                      for value in order]
    return found


def _years(published: list) -> list[str]:
    years = {day.year for day in published if day is not None}
    if len(years) <= MOST_YEARS:
        return ["no date" if day is None else str(day.year) for day in published]
    return ["no date" if day is None else f"{day.year // 5 * 5}-{day.year // 5 * 5 + 4}"
            for day in published]


def _range(bounds: np.ndarray, index: int) -> str:
    """Return the words that a quarter of the papers has, `91-150 words` for one."""
    if index == 0:
        return f"to {bounds[0]} words"
    if index == len(bounds):
        return f"over {bounds[-1]} words"
    return f"{bounds[index - 1] + 1}-{bounds[index]} words"


def _number(value: str) -> float:
    """Return the first number in a slice's value, to sort by; `over 200` comes last."""
    digits = "".join(c if c.isdigit() else " " for c in value).split()
    return (float(digits[0]) if digits else 0) + value.startswith("over") * 0.5
