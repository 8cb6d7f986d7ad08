"""Parts of the test papers, each with its accuracy."""

from datetime import date

import numpy as np

from nej.judging.slices import slices
from nej.metrics import Predictions


def cut(**columns) -> dict[str, dict]:
    """Return the slices of papers of which every second is right, by slice and value."""
    papers = len(next(iter(columns.values())))
    right = np.arange(papers) % 2 == 0
    predictions = Predictions([""] * papers, np.where(right, 0, 1),
                              np.tile([0.8, 0.2], (papers, 1)), ["a", "b"])
    columns = {"text": ["one two"] * papers, "truncated": [False] * papers,
               "published": [None] * papers, "category_code": ["cs.LG"] * papers} | columns
    found: dict[str, dict] = {}
    for one in slices(columns, predictions):
        found.setdefault(one["slice"], {})[one["value"]] = one
    return found


def test_what_does_not_cut_is_left_out():
    assert cut(text=["one two"] * 8) == {}


def test_years_are_in_order_and_papers_without_a_date_last():
    days = [date(2019, 1, 1), None, date(2017, 5, 5), date(2019, 9, 9)]
    found = cut(published=days)["year"]
    assert list(found) == ["2017", "2019", "no date"]
    assert found["2019"]["papers"] == 2 and found["2019"]["accuracy"] == 0.5
    assert found["2017"]["accuracy"] == 1 and found["no date"]["accuracy"] == 0
    low, high = found["2017"]["interval"]
    assert 0 < low < 0.3 and high == 1


def test_many_years_are_put_together():
    found = cut(published=[date(year, 1, 1) for year in range(1993, 2026)])["year"]
    assert list(found)[:2] == ["1990-1994", "1995-1999"]
    assert sum(one["papers"] for one in found.values()) == 33


def test_lengths_are_quarters_of_the_papers():
    found = cut(text=["word " * count for count in range(1, 101)])["length"]
    assert list(found) == ["to 25 words", "26-50 words", "51-75 words", "over 75 words"]
    assert all(one["papers"] == 25 for one in found.values())


def test_areas_truncation_and_cross_lists():
    found = cut(category_code=["cs.LG", "math.ST", "cmp-lg", "cs.CV"],
                truncated=[True, False, True, True], cross_listed=[True, False, False, False])
    assert {area: one["papers"] for area, one in found["area"].items()} == {
        "cmp-lg": 1, "cs": 2, "math": 1}
    assert found["truncated"]["yes"]["papers"] == 3
    assert found["cross-listed"]["yes"]["accuracy"] == 1
