"""Better means better beyond noise, on papers that are the same and that nobody has seen."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, f1_score

from nej import InputError
from nej.judging.comparison import BETTER, SAME, WORSE, compare
from nej.judging.judgement import LEAST_PROBABILITY
from nej.splits import positions
from tests.test_lineage import start_from, weights

ROOT = Path(__file__).resolve().parent.parent
LABELS = np.random.default_rng(0).choice(4, 400, p=[0.4, 0.3, 0.2, 0.1])


def guesses(share: float, seed: int = 1) -> list[int]:
    """Return classes of which `share` are right, and more of them where `share` is more."""
    random = np.random.default_rng(seed)
    return np.where(random.random(400) < share, LABELS, (LABELS + 1) % 4).tolist()


@pytest.fixture
def pair(make_judged):
    """Return two models, of which the second has what the first has right, and more."""
    return (make_judged("old", LABELS.tolist(), guesses(0.7), probability=0.7),
            make_judged("new", LABELS.tolist(), guesses(0.8)))


@pytest.fixture
def command(monkeypatch):
    """Return the script's main function."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("compare").main


def test_figures_are_scikit_learns_and_differences_theirs(pair):
    found = compare(*pair)
    for change, models in ((found.figures["accuracy"], accuracy_score),
                           (found.figures["macro_f1"], lambda a, b: f1_score(a, b, average="macro"))
                           ):
        before, after = (models(LABELS, guesses(share)) for share in (0.7, 0.8))
        assert (change.before, change.after) == (pytest.approx(before), pytest.approx(after))
        assert change.difference == pytest.approx(after - before)
    right = np.array(guesses(0.8)) == LABELS
    assert found.figures["log_loss"].after == pytest.approx(
        -np.mean(np.log(np.where(right, 0.8, 0.4))))
    assert found.figures["top_3"].after == 1
    f1 = f1_score(LABELS, guesses(0.8), average=None)
    assert [change.after for change in found.classes.values()] == pytest.approx(f1)
    assert sum(change.papers for change in found.classes.values()) == 400


def test_a_model_is_no_different_from_itself(pair, command):
    found = compare(pair[0], pair[0])
    for change in [*found.figures.values(), *found.classes.values()]:
        assert change.difference == 0 and change.interval == [0, 0] and change.verdict == SAME
    assert found.p_value == 1 and found.won == found.lost == 0
    assert "neither better nor worse" in found.sentence()


def test_the_other_way_round_is_the_opposite(pair):
    one, other = compare(*pair), compare(*reversed(pair))
    assert (one.verdict, other.verdict) == (BETTER, WORSE)
    assert (one.won, one.lost, one.p_value) == (other.lost, other.won, other.p_value)
    for group in ("figures", "classes"):
        for name, change in getattr(one, group).items():
            opposite = getattr(other, group)[name]
            assert change.difference == -opposite.difference
            assert change.interval == pytest.approx([-bound for bound in opposite.interval[::-1]])
    assert one.figures["log_loss"].difference < 0
    assert one.figures["log_loss"].verdict == BETTER and other.figures["log_loss"].verdict == WORSE


def test_intervals_are_those_of_scipy(make_judged):
    pair = (make_judged("a", LABELS.tolist(), guesses(0.75, 1)),
            make_judged("b", LABELS.tolist(), guesses(0.8, 2)))  # not alike in what they get wrong

    def difference(labels, old, new):
        return f1_score(labels, new, average="macro") - f1_score(labels, old, average="macro")
    expected = bootstrap((LABELS, np.array(guesses(0.75, 1)), np.array(guesses(0.8, 2))),
                         difference, paired=True, vectorized=False, n_resamples=1000,
                         method="percentile", rng=0).confidence_interval
    found = compare(*pair)
    assert found.figures["macro_f1"].interval == pytest.approx(expected, abs=0.01)
    right = [np.array(guesses(*model)) == LABELS for model in ((0.75, 1), (0.8, 2))]
    assert found.won == np.sum(right[1] & ~right[0])
    assert found.p_value == pytest.approx(_mcnemar(found.won, found.lost))


def _mcnemar(won: int, lost: int) -> float:
    """Two-sided: twice the chance that a coin falls on the rarer side so seldom, or less often."""
    from math import comb
    total = won + lost
    return 2 * sum(comb(total, k) for k in range(min(won, lost) + 1)) / 2**total


def test_the_order_of_the_papers_does_not_matter(pair):
    expected = compare(*pair).as_json()
    path = pair[1] / "predictions.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *rows[::-1]]))
    assert compare(*pair).as_json() == expected


def test_a_probability_of_nothing_has_a_log_loss(make_judged):
    model = make_judged("a", LABELS.tolist(), guesses(0.7), probability=0.0)
    assert compare(model, model).figures["log_loss"].before == pytest.approx(
        -np.log(LEAST_PROBABILITY))


def test_log_loss_is_that_of_the_judging(judged):
    _, model_dir = judged
    metrics = json.loads((model_dir / "metrics.json").read_text())
    assert compare(model_dir, model_dir).figures["log_loss"].before == pytest.approx(
        metrics["test"]["log_loss"], rel=1e-12)


def test_what_was_not_judged_is_refused(pair, tmp_path):
    with pytest.raises(InputError, match="no manifest.json"):
        compare(pair[0], tmp_path)
    path = pair[1] / "predictions.csv"
    path.write_text("id,actual,predicted,probability\nabs-1,cs.AI,cs.AI,0.5\n")
    with pytest.raises(InputError, match="no column 'actual_probability'; judge .*evaluate.py"):
        compare(*pair)
    path.unlink()
    with pytest.raises(InputError, match="was not judged"):
        compare(*pair)


def test_other_classes_are_refused(pair, make_judged):
    other = make_judged("other", [0, 1], [0, 1], names=("cs.AI", "stat.ML"))
    with pytest.raises(InputError, match=r"only .*old: cs.CL, cs.CV, cs.LG; only .*: stat.ML"):
        compare(pair[0], other)


def test_other_test_papers_are_refused_with_the_number_of_common_ones(pair, make_judged):
    fewer = make_judged("fewer", LABELS[:300].tolist(), guesses(0.8)[:300])
    with pytest.raises(InputError, match="400 and 300, 300 of them common"):
        compare(pair[0], fewer)
    labels = LABELS.copy()
    labels[:5] = (labels[:5] + 1) % 4
    with pytest.raises(InputError, match="5 of their test papers have another class"):
        compare(pair[0], make_judged("relabelled", labels.tolist(), guesses(0.8)))


def test_a_model_that_has_seen_the_others_test_papers_is_refused_for_that(pair, make_judged):
    ids = [i for i in (f"abs-2001.{n:05}" for n in range(900)) if positions([i])[0] < 0.2]
    wide = make_judged("wide", [0, 1] * 50, [0, 1] * 50, ids=ids[:100], test_fraction=0.2)
    seen = sum(0.1 <= positions(ids[:100]))
    for models in ((pair[0], wide), (wide, pair[0])):
        with pytest.raises(InputError, match=f"old has seen test papers: {seen} of the 100 of"):
            compare(*models)


def test_what_the_starting_checkpoint_has_seen_counts(pair, make_judged):
    teacher = make_judged("teacher", [0, 1], [0, 1], test_fraction=0.05)
    start_from(pair[1], teacher, weights(teacher))
    ids = [line.split(",")[0] for line in (pair[0] / "predictions.csv").read_text().splitlines()]
    seen = int(np.sum(positions(ids[1:]) >= 0.05))
    with pytest.raises(InputError, match=f"new was started from .*teacher, .*: {seen} of the 400"):
        compare(*pair)


def test_ids_and_classes_that_look_like_numbers_are_none(make_judged):
    model = make_judged("a", [0, 1, 1], [0, 1, 0], names=("01", "1"), test_fraction=0.8,
                        ids=["2101.00001", "2101.00010", "2101.00100"])
    found = compare(model, model)
    assert found.after.ids == ["2101.00001", "2101.00010", "2101.00100"]
    assert found.classes["01"].papers == 1


def test_a_category_called_na_is_a_category(make_judged):
    model = make_judged("a", [0, 1, 1], [0, 1, 0], names=("NA", "cs.AI"))
    assert compare(model, model).classes["NA"].papers == 1


def test_exit_codes_say_better_the_same_or_worse(pair, command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("nej.judging.scorecard.size", lambda folder: (10, 1.0))
    monkeypatch.setattr("nej.judging.scorecard.measure_speed", lambda folders: [20.0, 30.0])
    old, new = map(str, pair)
    page = tmp_path / "page.md"
    assert command([old, new, "--markdown", str(page)]) == 0
    assert "new is better than" in capsys.readouterr().out
    assert page.read_text().startswith("### ") and "| macro F1 |" in page.read_text()
    assert command([old, old]) == 3
    capsys.readouterr()
    assert command([new, old, "--markdown", "-"]) == 4
    assert capsys.readouterr().out.startswith("### ")
    with pytest.raises(InputError, match="no manifest.json"):
        command([old, str(tmp_path)])


def test_missing_data_cost_the_speed_alone(pair, command, monkeypatch, capsys, caplog):
    monkeypatch.setattr("nej.judging.scorecard.size", lambda folder: (10, 1.0))
    for folder in pair:
        path = folder / "training_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data_path": "gone.csv"}))
    assert command([str(folder) for folder in pair]) == 0
    assert "papers/s" not in capsys.readouterr().out and "speed was not measured" in caplog.text
