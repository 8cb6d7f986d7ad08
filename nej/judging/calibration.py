"""How far a model's confidence can be believed, and what it is worth to let it abstain."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn.metrics import log_loss

from nej.judging.intervals import LEVEL
from nej.metrics import Predictions
from nej.prediction import softmax

BINS = 15
WANTED_ACCURACIES = (0.85, 0.9, 0.95)
COVERAGE_POINTS = 50


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that makes softmax(logits / temperature) fit the labels best.

    It minimizes the log loss (Guo et al., 2017, On Calibration of Modern Neural Networks).
    Where the labels are too few to say, it stays between 0.1 and 10.
    """
    def loss(log_temperature: float) -> float:
        return log_loss(labels, softmax(logits, float(np.exp(log_temperature))),
                        labels=range(logits.shape[1]))
    found = minimize_scalar(loss, bounds=(np.log(0.1), np.log(10)), method="bounded")
    return float(np.exp(found.x))


def share(right: np.ndarray) -> dict[str, Any]:
    """Return papers, accuracy and its Wilson interval, of bools (papers,); None where is none."""
    if len(right) == 0:
        return {"papers": 0, "accuracy": None, "interval": None}
    bounds = binomtest(int(right.sum()), len(right)).proportion_ci(LEVEL, method="wilson")
    return {"papers": len(right), "accuracy": float(right.mean()),
            "interval": [float(bounds.low), float(bounds.high)]}


def reliability(predictions: Predictions) -> list[dict[str, Any]]:
    """Return mean confidence and accuracy of the papers in each of 15 bins of equal width."""
    bin_of = np.minimum((predictions.confidence * BINS).astype(int), BINS - 1)
    found = []
    for index in range(BINS):
        inside = bin_of == index
        mean = float(predictions.confidence[inside].mean()) if inside.any() else None
        found.append({"low": index / BINS, "high": (index + 1) / BINS, "confidence": mean,
                      **share(predictions.right[inside])})
    return found


def expected_calibration_error(predictions: Predictions) -> float:
    """Return the mean distance of confidence and accuracy over the bins, weighted by papers.

    Source: Naeini et al., 2015, Obtaining Well Calibrated Probabilities Using Bayesian Binning.
    """
    return sum(found["papers"] * abs(found["confidence"] - found["accuracy"])
               for found in reliability(predictions) if found["papers"]) / len(predictions.labels)


def coverage(predictions: Predictions) -> list[dict[str, Any]]:
    """Return threshold, share of papers answered and accuracy among them, from none to all.

    A model that may abstain answers where its confidence is at least the threshold.
    """
    order = np.argsort(-predictions.confidence, kind="stable")
    right, papers = predictions.right[order], len(order)
    counts = np.unique(np.linspace(1, papers, min(COVERAGE_POINTS, papers)).astype(int))
    return [answered(predictions, float(predictions.confidence[order[count - 1]]))
            if count < papers else
            {"threshold": 0.0, "coverage": 1.0, **share(right)} for count in counts]


def answered(predictions: Predictions, threshold: float) -> dict[str, Any]:
    """Return what is answered at a threshold: its share of the papers (coverage) and accuracy."""
    inside = predictions.confidence >= threshold
    return {"threshold": threshold, "coverage": float(inside.mean()),
            **share(predictions.right[inside])}


def threshold_for(predictions: Predictions, accuracy: float) -> float | None:
    """Return the lowest threshold at which the answered papers have this accuracy, None if none.

    Choose it on validation papers.
    """
    order = np.argsort(-predictions.confidence, kind="stable")
    confidence, right = predictions.confidence[order], predictions.right[order]
    reached = np.cumsum(right) / np.arange(1, len(right) + 1) >= accuracy
    reached &= np.append(confidence[1:] < confidence[:-1], True)  # equal ones go together
    return float(confidence[np.flatnonzero(reached)[-1]]) if reached.any() else None


def calibrate(validation_logits: np.ndarray, validation_labels: np.ndarray, names: list[str]
              ) -> dict[str, Any]:
    """Return temperature and thresholds, from validation papers: what a model carries with it."""
    temperature = fit_temperature(validation_logits, validation_labels)
    sides = {"before": 1.0, "after": temperature}
    losses = {side: float(log_loss(validation_labels, softmax(validation_logits, value),
                                   labels=range(len(names)))) for side, value in sides.items()}
    validation = Predictions([], validation_labels, softmax(validation_logits, temperature), names)
    return {
        "temperature": temperature, "validation_papers": len(validation_labels),
        "validation_log_loss": losses,
        "thresholds": {str(wanted): threshold_for(validation, wanted)
                       for wanted in WANTED_ACCURACIES}}


def judge_calibration(calibration: dict[str, Any], raw: Predictions, predictions: Predictions
                      ) -> dict[str, Any]:
    """Return how calibrated `predictions` of test papers are; `raw` are those at temperature 1."""
    return {
        "papers": len(predictions.labels),
        "expected_calibration_error": {"before": expected_calibration_error(raw),
                                       "after": expected_calibration_error(predictions)},
        "bins": reliability(predictions),
        "coverage": coverage(predictions),
        "wanted": {wanted: answered(predictions, threshold)
                   for wanted, threshold in calibration["thresholds"].items()
                   if threshold is not None}}
