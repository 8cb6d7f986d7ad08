"""A paper's split is decided by its id alone."""

import csv
from collections import Counter
from hashlib import blake2b

import numpy as np
import pytest

from nej.fields import KAGGLE_COLUMNS
from nej.papers import read_papers
from nej.splits import SPLITS, assign, assign_by_date, positions

IDS = [f"abs-{year:02d}{month:02d}.{number:05d}"
       for year in range(10, 20) for month in range(1, 11) for number in range(200)]
KNOWN = {"abs-2101.00001": 0.10754033951128061, "cs-9308101": 0.7223564414221777}


def split(ids, validation_fraction=0.1, test_fraction=0.1) -> np.ndarray:
    return assign(positions(ids), validation_fraction=validation_fraction,
                  test_fraction=test_fraction)


@pytest.mark.parametrize("paper_id", KNOWN)
def test_position_is_that_of_the_formula_forever(paper_id):
    """The number is written down, so that no later version moves papers between splits."""
    digest = blake2b(paper_id.encode(), digest_size=8).digest()
    formula = (int.from_bytes(digest, "big") >> 11) / 2**53
    assert positions([paper_id]).tolist() == [formula] == [KNOWN[paper_id]]


def test_positions_are_spread_over_zero_to_one():
    found = positions(IDS)
    assert found.dtype == np.float64 and found.shape == (20_000,)
    assert found.min() >= 0 and found.max() < 1
    assert len(set(found.tolist())) == len(IDS)
    counts, _ = np.histogram(found, bins=20, range=(0, 1))
    assert abs(counts - 1000).max() < 150  # 4.9 standard deviations


def test_lowest_position_is_test_highest_is_train():
    where = np.array([0.0, 0.1249, 0.125, 0.3749, 0.375, 1 - 2**-53])
    found = assign(where, validation_fraction=0.25, test_fraction=0.125)
    assert [SPLITS[index] for index in found] == [
        "test", "test", "validation", "validation", "train", "train"]


@pytest.mark.parametrize("validation, test", [(0.1, 0.1), (0.2, 0.05), (0.05, 0.4), (0.4, 0.4)])
def test_shares_are_close_to_the_fractions(validation, test):
    shares = np.bincount(split(IDS, validation, test), minlength=3) / len(IDS)
    wanted = np.array([1 - validation - test, validation, test])
    assert abs(shares - wanted).max() < 0.012


@pytest.mark.parametrize("seed", range(5))
def test_added_papers_move_none(seed):
    rng = np.random.default_rng(seed)
    few = rng.permutation(IDS)[:500].tolist()
    more = rng.permutation(few + [f"new-{seed}.{number}" for number in range(1500)]).tolist()
    before, after = dict(zip(few, split(few))), dict(zip(more, split(more)))
    assert {paper_id: after[paper_id] for paper_id in few} == before


@pytest.mark.parametrize("lower, higher", [(0.05, 0.1), (0.1, 0.11), (0.1, 0.4)])
def test_higher_test_fraction_only_moves_papers_into_test(lower, higher):
    """With validation + test the same, nothing comes into train; else validation moves up."""
    before, after = split(IDS, 0.1, lower), split(IDS, 0.1, higher)
    test = SPLITS.index("test")
    assert np.all(after[before == test] == test)
    assert np.sum(after == test) > np.sum(before == test)
    assert np.all(before[after == SPLITS.index("train")] == SPLITS.index("train"))


def test_higher_validation_fraction_leaves_test_alone():
    before, after = split(IDS, 0.1, 0.1), split(IDS, 0.3, 0.1)
    changed = Counter((SPLITS[a], SPLITS[b]) for a, b in zip(before, after) if a != b)
    assert list(changed) == [("train", "validation")]


def _read_ids(path, versions) -> list[str]:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, KAGGLE_COLUMNS, restval="x")
        writer.writeheader()
        writer.writerows({"id": paper_id, "summary": f"Text {paper_id}."} for paper_id in versions)
    return read_papers(path)["id"].to_pylist()


def test_versions_of_a_paper_land_in_the_same_split(tmp_path):
    """Next year's file has newer versions, and some papers with both."""
    first = _read_ids(tmp_path / "2020.csv", [f"{i}v1" for i in IDS[:200]])
    later = _read_ids(tmp_path / "2021.csv", [
        f"{i}v{v}" for n, i in enumerate(IDS[:200]) for v in ((2, 3) if n % 3 else (12,))])
    assert len(first) == len(later) == 200
    assert dict(zip(later, split(later))) == dict(zip(first, split(first)))
    assert len(set(split(first).tolist())) == 3


def test_by_date_the_first_day_belongs_to_the_later_split_and_no_date_to_none():
    days = np.array(["2017-12-31", "2018-01-01", "2018-12-31", "2019-01-01", "2030-06-01", "NaT"],
                    "datetime64[D]")
    sides = assign_by_date(days, validation_from=np.datetime64("2018-01-01"),
                           test_from=np.datetime64("2019-01-01"))
    names = [[*SPLITS, "none"][side] for side in sides]
    assert names == ["train", "validation", "validation", "test", "test", "none"]
