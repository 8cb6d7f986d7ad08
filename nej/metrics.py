"""Metrics as evaluate.Metric classes over scikit-learn, with no hub behind them.

`evaluate.load("accuracy")` fetches code from a hub; these come with the package and are used in
the same way: `MacroF1().compute(predictions=..., references=...)`.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import (
    accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support,
)


@dataclass(frozen=True)
class Predictions:
    """A model's calibrated probabilities for papers whose classes are known."""

    ids: list[str]
    labels: np.ndarray  # int64 (papers,)
    probabilities: np.ndarray  # float64 (papers, classes); rows sum to 1
    names: list[str]  # of the classes, by id

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most probable class of each paper, int64 (papers,)."""
        return self.probabilities.argmax(1)

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability of that class, float64 (papers,)."""
        return self.probabilities.max(1)

    @cached_property
    def right(self) -> np.ndarray:
        """Whether that class is the paper's, bool (papers,)."""
        return self.predicted == self.labels

    @cached_property
    def rank(self) -> np.ndarray:
        """The place of the paper's class among the model's choices, from 1 on, int64 (papers,).

        Of equally probable classes the first comes first, as in `predicted`.
        """
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        return 1 + (order == self.labels[:, None]).argmax(1)


_INFO = evaluate.MetricInfo(
    description="See the class.", citation="", inputs_description="Lists of class ids.",
    features=datasets.Features({
        "predictions": datasets.Value("int64"), "references": datasets.Value("int64")}))


class _Metric(evaluate.Metric):
    """A metric of predicted and true class ids, both int (papers,)."""

    def __init__(self, **kwargs):
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return _INFO


class Accuracy(_Metric):
    """Share of papers whose class is right."""

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class F1(_Metric):
    """F1 of each class, averaged: macro counts classes equally, weighted by their papers.

    A class that is neither there nor predicted counts as 0 and only if `num_classes` names it.
    """

    def _compute(self, predictions, references, num_classes: int) -> dict[str, float]:
        ids = list(range(num_classes))
        return {
            f"{average}_f1": float(f1_score(
                references, predictions, labels=ids, average=average, zero_division=0))
            for average in ("macro", "weighted")}


class PerClass(_Metric):
    """Precision, recall, F1 and support (papers) of each class, by its name."""

    def _compute(self, predictions, references, names: list[str]) -> dict[str, Any]:
        columns = precision_recall_fscore_support(
            references, predictions, labels=list(range(len(names))), zero_division=0)
        return {"per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for name, p, r, f, s in zip(names, *columns)}}


class ConfusionMatrix(_Metric):
    """Counts (true class, predicted class) as nested lists."""

    def _compute(self, predictions, references, num_classes: int) -> dict[str, list[list[int]]]:
        counts = confusion_matrix(references, predictions, labels=list(range(num_classes)))
        return {"confusion_matrix": counts.tolist()}


def validation_metrics(predictions: np.ndarray, references: np.ndarray, *,
                       num_classes: int) -> dict[str, float]:
    """Return accuracy, macro F1 and weighted F1; what training chooses and stops by."""
    return {
        **Accuracy().compute(predictions=predictions, references=references),
        **F1().compute(predictions=predictions, references=references, num_classes=num_classes)}


def all_metrics(predictions: np.ndarray, references: np.ndarray, *,
                names: list[str]) -> dict[str, Any]:
    """Return every metric of this module; `names` are the classes in the order of their ids."""
    pair = {"predictions": predictions, "references": references}
    return {
        "papers": len(references),
        **validation_metrics(predictions, references, num_classes=len(names)),
        **PerClass().compute(**pair, names=names),
        **ConfusionMatrix().compute(**pair, num_classes=len(names))}


def best_validation(history: list[dict[str, Any]]) -> dict[str, float]:
    """Return the validation metrics of the kept checkpoint: the one with the best macro F1.

    `history` is Trainer's log_history.
    """
    best = max((log for log in history if "eval_macro_f1" in log),
               key=lambda log: log["eval_macro_f1"], default={})
    return {key: best[f"eval_{key}"]
            for key in ("accuracy", "macro_f1", "weighted_f1", "loss") if best}
