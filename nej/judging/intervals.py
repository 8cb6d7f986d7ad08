"""How sure a figure is: the bootstrap over test papers, and whether a difference is noise."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
DRAWS_AT_ONCE = 1 << 20  # so that they stay in the cache


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of the test papers, drawn with replacement.

    They are the same for everything that is asked of one seed, so that differences of two models
    on the same papers are paired (Efron and Tibshirani, 1993, An Introduction to the Bootstrap).
    """

    papers: int
    resamples: int = RESAMPLES
    seed: int = 0

    def means(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of `values` (papers,) in each resample, float64 (resamples,)."""
        return np.concatenate([values[draws].mean(1) for draws in self._draws()])

    def confusion(self, labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
        """Return each resample's counts, int64 (resamples, true classes, predicted classes)."""
        cells = num_classes ** 2
        cell = labels.astype(np.int64) * num_classes + predicted
        counts = []
        for draws in self._draws():
            rows = np.arange(len(draws))[:, None] * cells
            counts.append(np.bincount((cell[draws] + rows).ravel(), minlength=len(draws) * cells))
        return np.concatenate(counts).reshape(-1, num_classes, num_classes)

    def _draws(self) -> Iterator[np.ndarray]:
        random = np.random.default_rng(self.seed)
        at_once = max(1, DRAWS_AT_ONCE // self.papers)
        for start in range(0, self.resamples, at_once):
            yield random.integers(self.papers, dtype=np.int32, size=(
                min(at_once, self.resamples - start), self.papers))


def scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return what follows from counts (..., true classes, predicted classes).

    accuracy, macro_f1, weighted_f1 and matthews_correlation are (...), and precision, recall and f1
    (..., classes), as scikit-learn has them for classes that have papers. One that has none has no
    recall and no F1 (NaN), and is left out of macro F1.
    """
    counts = confusion.astype(float)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    support, given = counts.sum(-1), counts.sum(-2)
    papers, right = support.sum(-1), hits.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = np.where(support > 0, 2 * hits / (support + given), np.nan)
        recall = hits / support
        precision = np.where((given == 0) & (support > 0), 0.0, hits / given)
        # Gorodkin, 2004, Comparing two K-category assignments by a K-category correlation
        spread = [papers ** 2 - (total ** 2).sum(-1) for total in (support, given)]
        matthews = (right * papers - (support * given).sum(-1)) / np.sqrt(spread[0] * spread[1])
    return {
        "accuracy": right / papers,
        "macro_f1": np.nanmean(f1, -1),
        "weighted_f1": np.nansum(f1 * support, -1) / papers,
        "matthews_correlation": np.nan_to_num(matthews),
        "precision": precision, "recall": recall, "f1": f1}


def whole_and_drawn(bootstrap: Bootstrap, labels: np.ndarray, predicted: np.ndarray,
                    num_classes: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return `scores` of predicted classes, int64 (papers,): of all papers, of each resample."""
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (labels, predicted), 1)
    return scores(counts), scores(bootstrap.confusion(labels, predicted, num_classes))


def interval(values: np.ndarray) -> list[float]:
    """Return the percentile interval [low, high] of a figure's resamples, NaN left out."""
    return [float(bound) for bound in np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def beyond_noise(bounds: list[float]) -> bool:
    """Return whether the interval of a difference is clear of zero."""
    return bounds[0] > 0 or bounds[1] < 0
