"""The numbers in the reports, worked out by hand."""

import json
import socket

import numpy as np
import pytest
from sklearn.metrics import f1_score

from nej.metrics import (
    F1, Accuracy, ConfusionMatrix, PerClass, Predictions, all_metrics, best_validation,
    validation_metrics,
)

# two of a (one taken for b), two of b, one of c (taken for a), none of d
TRUE, PREDICTED = [0, 0, 1, 1, 2], [0, 1, 1, 1, 0]
NAMES = ["a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Turn every attempt to reach a hub into an error."""
    def refuse(*arguments, **options):
        raise AssertionError("a metric wants the network")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def found() -> dict:
    return all_metrics(np.array(PREDICTED), np.array(TRUE), names=NAMES)


def test_of_equally_probable_classes_the_predicted_one_alone_has_rank_1():
    chances = np.array([[0.4, 0.4, 0.2], [0.4, 0.4, 0.2], [0.2, 0.3, 0.5]])
    found = Predictions(["x", "y", "z"], np.array([0, 1, 0]), chances, ["a", "b", "c"])
    assert found.rank.tolist() == [1, 2, 3]
    assert ((found.rank == 1) == found.right).all()


def test_metrics_are_those_by_hand(found):
    assert found["papers"] == 5
    assert found["accuracy"] == pytest.approx(3 / 5)
    # F1: a 1/2, b 4/5, c 0, d 0
    assert found["macro_f1"] == pytest.approx((0.5 + 0.8) / 4)
    assert found["weighted_f1"] == pytest.approx((2 * 0.5 + 2 * 0.8) / 5)


@pytest.mark.parametrize("name, precision, recall, f1, support", [
    ("a", 1 / 2, 1 / 2, 1 / 2, 2), ("b", 2 / 3, 1, 4 / 5, 2), ("c", 0, 0, 0, 1), ("d", 0, 0, 0, 0),
])
def test_metrics_of_each_class(found, name, precision, recall, f1, support):
    assert found["per_class"][name] == pytest.approx(
        {"precision": precision, "recall": recall, "f1": f1, "support": support})
    assert list(found["per_class"]) == NAMES


def test_rows_of_the_confusion_matrix_are_the_true_classes(found):
    assert found["confusion_matrix"] == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_class_that_never_occurs_counts_only_if_it_is_one():
    three = validation_metrics(np.array(PREDICTED), np.array(TRUE), num_classes=3)
    four = validation_metrics(np.array(PREDICTED), np.array(TRUE), num_classes=4)
    assert three["macro_f1"] == pytest.approx(1.3 / 3)
    assert four["macro_f1"] == pytest.approx(1.3 / 4)
    assert three["weighted_f1"] == pytest.approx(four["weighted_f1"])
    assert three["accuracy"] == four["accuracy"]


def test_perfect_prediction():
    classes = np.array([0, 1, 2, 3, 3])
    found = all_metrics(classes, classes, names=NAMES)
    assert [found[key] for key in ("accuracy", "macro_f1", "weighted_f1")] == [1, 1, 1]
    assert found["confusion_matrix"] == np.diag([1, 1, 1, 2]).tolist()


def test_one_class_for_everything():
    found = validation_metrics(np.zeros(4, int), np.array([0, 1, 2, 3]), num_classes=4)
    assert found["accuracy"] == pytest.approx(1 / 4)
    assert found["macro_f1"] == pytest.approx(0.4 / 4)  # precision 1/4, recall 1


@pytest.mark.parametrize("seed", range(5))
def test_parts_agree_with_each_other(seed):
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(0, 4, (2, 300))
    found = all_metrics(predicted, true, names=NAMES)
    counts = np.array(found["confusion_matrix"])
    per_class = found["per_class"].values()
    assert counts.sum() == found["papers"] == 300
    assert np.trace(counts) / 300 == pytest.approx(found["accuracy"])
    assert counts.sum(axis=1).tolist() == [row["support"] for row in per_class]
    assert np.mean([row["f1"] for row in per_class]) == pytest.approx(found["macro_f1"])
    assert found["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert validation_metrics(predicted, true, num_classes=4).items() <= found.items()


def test_metrics_go_into_a_json_file(found):
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("metric, options, key, expected", [
    (Accuracy, {}, "accuracy", 3 / 5),
    (F1, {"num_classes": 4}, "macro_f1", 1.3 / 4),
    (ConfusionMatrix, {"num_classes": 3}, "confusion_matrix", [[1, 1, 0], [0, 2, 0], [1, 0, 0]]),
    (PerClass, {"names": list("abc")}, "per_class", None),
])
def test_batch_by_batch_as_any_metric_of_evaluate(metric, options, key, expected):
    one = metric()
    for _ in range(2):  # compute starts afresh
        for part in (slice(0, 2), slice(2, 5)):
            one.add_batch(predictions=PREDICTED[part], references=TRUE[part])
        found = one.compute(**options)
        assert found == metric().compute(predictions=PREDICTED, references=TRUE, **options)
        if expected is not None:
            assert np.array(found[key]) == pytest.approx(np.array(expected))


def test_the_kept_checkpoint_is_the_one_with_the_best_macro_f1():
    def log(step: int, macro_f1: float) -> dict:
        return {"step": step, "eval_macro_f1": macro_f1, "eval_accuracy": step / 10,
                "eval_weighted_f1": 0.5, "eval_loss": 0.1, "eval_runtime": 3.0}
    history = [{"step": 1, "loss": 9.0}, log(2, 0.3), log(4, 0.7), {"step": 5, "loss": 8.0},
               log(6, 0.7), log(8, 0.2)]
    assert best_validation(history) == {
        "accuracy": 0.4, "macro_f1": 0.7, "weighted_f1": 0.5, "loss": 0.1}
    assert best_validation([{"step": 1, "loss": 9.0}]) == best_validation([]) == {}


@pytest.mark.filterwarnings("error")
def test_a_class_without_papers_is_worth_no_warning(found):
    assert all_metrics(np.array(PREDICTED), np.array(TRUE), names=NAMES) == found
