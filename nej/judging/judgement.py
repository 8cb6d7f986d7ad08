"""A model's figures on test papers, each with how sure it is, and its lead over others."""

from typing import Any

import numpy as np
from sklearn.metrics import log_loss, precision_recall_curve

from nej.judging.calibration import expected_calibration_error
from nej.judging.intervals import Bootstrap, beyond_noise, interval, scores, whole_and_drawn
from nej.metrics import Predictions, all_metrics

COMPARED = ("accuracy", "macro_f1", "weighted_f1")
FEWEST_PAPERS = 30  # that tell two models apart
CURVE_POINTS = 101
LEAST_PROBABILITY = float(np.finfo(np.float64).eps)  # of log loss, as scikit-learn clips


def judge(predictions: Predictions) -> dict[str, Any]:
    """Return all metrics of a model with probabilities, and the 95 % interval of each.

    Those of metrics.all_metrics and matthews_correlation, top_2_accuracy, top_3_accuracy, log_loss,
    expected_calibration_error; `intervals` by metric, and in `per_class` by class.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    found = judge_classes(predictions.predicted, labels, names=predictions.names)
    bootstrap = Bootstrap(len(labels))
    ids = list(range(len(predictions.names)))
    for k in (2, 3):
        key = f"top_{k}_accuracy"
        if k < len(ids):
            hit = predictions.rank <= k
            found[key] = float(hit.mean())
            found["intervals"][key] = interval(bootstrap.means(hit))
    found["log_loss"] = float(log_loss(labels, probabilities, labels=ids))
    loss = -np.log(np.clip(probabilities[np.arange(len(labels)), labels],
                           LEAST_PROBABILITY, 1))
    found["intervals"]["log_loss"] = interval(bootstrap.means(loss))
    found["expected_calibration_error"] = expected_calibration_error(predictions)
    return found


def judge_classes(predicted: np.ndarray, labels: np.ndarray, *, names: list[str]) -> dict[str, Any]:
    """Return the metrics of predicted classes, int64 (papers,), with their intervals.

    A class that has no papers here, in a file that was given, is left out of macro F1.
    """
    found = all_metrics(predicted, labels, names=names)
    drawn = scores(Bootstrap(len(labels)).confusion(labels, predicted, len(names)))
    whole = scores(np.array(found["confusion_matrix"]))
    found |= {key: float(whole[key]) for key in ("macro_f1", "matthews_correlation")}
    found["intervals"] = {key: interval(drawn[key])
                          for key in (*COMPARED, "matthews_correlation")}
    for index, name in enumerate(names):
        found["per_class"][name]["intervals"] = {
            key: interval(drawn[key][:, index]) if found["per_class"][name]["support"] else None
            for key in ("precision", "recall", "f1")}
    return found


def precision_recall(predictions: Predictions) -> list[tuple[str, float, float]]:
    """Return the precision-recall curve of each class: rows of class, recall, precision.

    Precision is the best at this recall or a higher one, which a threshold on the probability of
    the class can reach; recall goes from 0 to 1 in CURVE_POINTS. A class without papers has none.
    """
    wanted = np.linspace(0, 1, CURVE_POINTS)
    rows = []
    for index, name in enumerate(predictions.names):
        papers = predictions.labels == index
        if papers.any():
            precision, recall, _ = precision_recall_curve(
                papers, predictions.probabilities[:, index])
            # the last is scikit-learn's own, precision 1 at recall 0, which no threshold reaches
            precision, recall = precision[:-1], recall[:-1]
            best = np.maximum.accumulate(precision)  # recall falls along them
            places = np.searchsorted(recall[::-1], wanted - 1e-9)  # recall may be off by rounding
            rows += [(name, round(float(share), 4), round(float(best[::-1][place]), 6))
                     for share, place in zip(wanted, places)]
    return rows


def lead(predicted: np.ndarray, other: np.ndarray, labels: np.ndarray, *, num_classes: int
         ) -> dict[str, dict[str, Any]]:
    """Return by how much `predicted` is ahead of `other`, with the paired 95 % intervals.

    Both are classes of the same papers, int64 (papers,); the keys are those of COMPARED.
    """
    bootstrap = Bootstrap(len(labels))
    whole, drawn = zip(*(whole_and_drawn(bootstrap, labels, classes, num_classes)
                         for classes in (predicted, other)))
    return {key: {"difference": float(whole[0][key] - whole[1][key]),
                  "interval": interval(drawn[0][key] - drawn[1][key])} for key in COMPARED}


def verdict(name: str, other: str, lead: dict[str, dict[str, Any]], *, papers: int) -> str:
    """Return one sentence: is `name` better than `other` on so many papers, beyond noise?"""
    sides = {key: (lead[key]["difference"] > 0) - (lead[key]["difference"] < 0)
             if beyond_noise(lead[key]["interval"]) else 0 for key in ("accuracy", "macro_f1")}
    words = {(1, 1): "better than {} in both, beyond noise",
             (-1, -1): "worse than {} in both, beyond noise",
             (0, 0): "not told apart from {}: both differences may be noise",
             (1, 0): "better than {} in accuracy; in macro F1 the difference may be noise",
             (0, 1): "better than {} in macro F1; in accuracy the difference may be noise",
             (-1, 0): "worse than {} in accuracy; in macro F1 the difference may be noise",
             (0, -1): "worse than {} in macro F1; in accuracy the difference may be noise",
             (1, -1): "better than {} in accuracy and worse in macro F1, both beyond noise",
             (-1, 1): "worse than {} in accuracy and better in macro F1, both beyond noise"}
    figures = ", ".join(
        f"{title} {lead[key]['difference']:+.3f} ({lead[key]['interval'][0]:+.3f} to "
        f"{lead[key]['interval'][1]:+.3f})"
        for key, title in (("accuracy", "accuracy"), ("macro_f1", "macro F1")))
    if papers < FEWEST_PAPERS:  # of which a bootstrap may draw the same again and again
        return f"{name} is not told apart from {other}: {papers} papers are too few ({figures})."
    return f"{name} is {words[sides['accuracy'], sides['macro_f1']].format(other)} ({figures})."
