"""A model's figures with their intervals, and what is said of its lead."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score, f1_score, log_loss, matthews_corrcoef, precision_score, recall_score,
    top_k_accuracy_score,
)

from nej.judging.judgement import COMPARED, CURVE_POINTS, judge, lead, precision_recall, verdict
from nej.metrics import Predictions

NAMES = ["a", "b", "c", "d"]


@pytest.fixture
def predictions() -> Predictions:
    """Return predictions for 400 papers of four classes, two thirds right."""
    random = np.random.default_rng(0)
    labels = random.choice(4, 400, p=[0.4, 0.3, 0.2, 0.1])
    logits = random.normal(size=(400, 4)) + 1.8 * np.eye(4)[labels]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions([str(i) for i in range(400)], labels, chances, NAMES)


def test_each_figure_is_scikit_learns_and_lies_in_its_interval(predictions):
    found = judge(predictions)
    labels, chances = predictions.labels, predictions.probabilities
    expected = {
        "accuracy": accuracy_score(labels, predictions.predicted),
        "macro_f1": f1_score(labels, predictions.predicted, average="macro"),
        "weighted_f1": f1_score(labels, predictions.predicted, average="weighted"),
        "matthews_correlation": matthews_corrcoef(labels, predictions.predicted),
        "top_2_accuracy": top_k_accuracy_score(labels, chances, k=2),
        "top_3_accuracy": top_k_accuracy_score(labels, chances, k=3),
        "log_loss": log_loss(labels, chances)}
    assert set(found["intervals"]) == set(expected)
    for key, value in expected.items():
        low, high = found["intervals"][key]
        assert found[key] == pytest.approx(value)
        assert low < found[key] < high
        assert high - low < 0.2
    for one in found["per_class"].values():
        for key in ("precision", "recall", "f1"):
            assert one["intervals"][key][0] <= one[key] <= one["intervals"][key][1]


def test_the_same_predictions_have_the_same_intervals(predictions):
    assert judge(predictions) == judge(predictions)


def test_top_2_takes_equally_probable_classes_in_their_order():
    found = judge(Predictions(["x", "y"], np.array([1, 2]), np.full((2, 3), 1 / 3), NAMES[:3]))
    low, high = found["intervals"]["top_2_accuracy"]
    assert found["top_2_accuracy"] == 0.5 and low <= 0.5 <= high


def test_two_classes_have_no_top_2_accuracy():
    found = judge(Predictions(["x", "y"], np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]),
                              ["a", "b"]))
    assert "top_2_accuracy" not in found and found["accuracy"] == 1


def test_a_class_without_papers_counts_for_nothing(predictions):
    """As in a file of papers that has none of it, though the model gives it to some."""
    rows = predictions.labels != 3
    found = judge(Predictions([str(i) for i in range(rows.sum())], predictions.labels[rows],
                              predictions.probabilities[rows], NAMES))
    assert found["macro_f1"] == pytest.approx(f1_score(
        predictions.labels[rows], predictions.predicted[rows], labels=[0, 1, 2], average="macro"))
    low, high = found["intervals"]["macro_f1"]
    assert low < found["macro_f1"] < high
    assert found["per_class"]["d"]["intervals"] == {"precision": None, "recall": None, "f1": None}


def test_each_point_of_a_precision_recall_curve_can_be_reached(predictions):
    rows = precision_recall(predictions)
    assert len(rows) == 4 * CURVE_POINTS
    for index, name in enumerate(NAMES):
        curve = [row[1:] for row in rows if row[0] == name]
        assert [recall for recall, _ in curve] == [i / 100 for i in range(CURVE_POINTS)]
        precisions = [precision for _, precision in curve]
        assert precisions == sorted(precisions, reverse=True)
        papers, chances = predictions.labels == index, predictions.probabilities[:, index]
        best = {(recall_score(papers, chances >= threshold),
                 precision_score(papers, chances >= threshold)) for threshold in chances}
        for wanted, precision in curve[::20]:
            reached = max(p for recall, p in best if recall >= wanted - 1e-9)
            assert precision == pytest.approx(reached, abs=1e-6)


def test_a_curve_does_not_begin_at_a_precision_that_no_threshold_reaches():
    chances = np.array([0.9, 0.8, 0.7])  # of class a; the surest paper is not of it
    found = precision_recall(Predictions(
        ["x", "y", "z"], np.array([1, 0, 0]), np.stack([chances, 1 - chances], 1), ["a", "b"]))
    assert [row for row in found if row[0] == "a"][0] == ("a", 0.0, round(2 / 3, 6))


def test_a_class_without_papers_has_no_precision_recall_curve(predictions):
    rows = predictions.labels < 3
    found = precision_recall(Predictions(
        [str(i) for i in range(rows.sum())], predictions.labels[rows],
        predictions.probabilities[rows], NAMES))
    assert {row[0] for row in found} == {"a", "b", "c"}


def test_a_lead_over_oneself_is_nothing(predictions):
    found = lead(predictions.predicted, predictions.predicted, predictions.labels, num_classes=4)
    assert found == {key: {"difference": 0.0, "interval": [0.0, 0.0]} for key in COMPARED}
    assert "not told apart from b" in verdict("a", "b", found, papers=400)


def test_pairing_makes_a_small_lead_certain(predictions):
    """Each answer of the other is the same but for twelve that it has wrong."""
    other = predictions.predicted.copy()
    spoilt = np.flatnonzero(predictions.right)[:12]
    other[spoilt] = (predictions.labels[spoilt] + 1) % 4
    found = lead(predictions.predicted, other, predictions.labels, num_classes=4)
    assert found["accuracy"]["difference"] == pytest.approx(12 / 400)
    assert found["accuracy"]["interval"][0] > 0.01
    assert judge(predictions)["intervals"]["accuracy"][0] < predictions.right.mean() - 0.03
    back = lead(other, predictions.predicted, predictions.labels, num_classes=4)
    assert back["accuracy"]["interval"] == pytest.approx(
        [-bound for bound in reversed(found["accuracy"]["interval"])])
    assert verdict("new", "old", found, papers=400).startswith(
        "new is better than old in both, beyond noise")
    assert verdict("old", "new", back, papers=400).startswith(
        "old is worse than new in both, beyond noise")


@pytest.mark.parametrize("accuracy, macro_f1, words", [
    ((0.1, 0.2), (-0.1, 0.2), "better than b in accuracy; in macro F1 the difference may be noise"),
    ((-0.1, 0.1), (-0.3, -0.2), "worse than b in macro F1; in accuracy the difference may be"),
    ((0.1, 0.2), (-0.3, -0.2), "better than b in accuracy and worse in macro F1"),
])
def test_the_verdict_says_which_figure_is_ahead(accuracy, macro_f1, words):
    found = {key: {"difference": sum(bounds) / 2, "interval": list(bounds)}
             for key, bounds in (("accuracy", accuracy), ("macro_f1", macro_f1))}
    assert words in verdict("a", "b", found, papers=400)


def test_a_handful_of_papers_tells_nothing():
    """All resamples of one paper are that paper, so that its interval has no width."""
    found = lead(np.array([1]), np.array([0]), np.array([1]), num_classes=2)
    assert found["accuracy"]["interval"] == [1.0, 1.0]
    assert verdict("a", "b", found, papers=1).startswith("a is not told apart from b: 1 papers are")
    assert "beyond noise" in verdict("a", "b", found, papers=30)
