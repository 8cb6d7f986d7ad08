"""Whether papers are still like those that a model was judged on: what moved, and by how much."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from river.drift import ADWIN
from scipy import stats

from nej import InputError
from nej.files import write_json
from nej.predicting.prediction_log import summarize
from nej.predicting.unknown_words import UnknownWords
from nej.prediction import Outputs, softmax

REFERENCE = "reference.json"  # in a model directory
FEWEST_PAPERS = 100  # that say anything
LEVEL = 0.001  # how often chance alone may raise an alarm, all signals together
QUANTILES = 201  # of a signal, that a reference keeps
# of each signal: its name, and the distance from which on it is an alarm, in its own unit
NUMBERS = {"tokens": "tokens of a paper", "unknown_words": "share of unknown words",
           "probability": "confidence"}
LEAST = {**dict.fromkeys(NUMBERS, 0.2), "categories": 0.1, "embeddings": 0.35}


@dataclass(frozen=True)
class Signals:
    """What a model noticed of papers, one entry for each, in the order in which they came."""

    tokens: np.ndarray  # int64, after truncation
    unknown_words: np.ndarray  # float64, share of a paper's words
    probability: np.ndarray  # float64, of the most probable category
    categories: list[str]  # the most probable one
    directions: np.ndarray  # float64 (papers, 8): see prediction_log.summarize
    places: list[str] = field(default_factory=list)  # where each one is: a time, or a row

    def __len__(self) -> int:
        return len(self.tokens)


def signals(papers: Any, outputs: Outputs, *, names: Sequence[str], temperature: float,
            unknown_words: UnknownWords) -> Signals:
    """Return the signals of tokenized papers, from what the model made of them."""
    probabilities = softmax(outputs.logits, temperature)
    columns = {name: papers[name] if hasattr(papers, "select_columns")
               else [paper[name] for paper in papers] for name in ("length", "input_ids")}
    return Signals(
        np.asarray(columns["length"]),
        np.array([unknown_words.share(ids) for ids in columns["input_ids"]]),
        probabilities.max(1), [names[index] for index in probabilities.argmax(1)],
        summarize(outputs.embeddings))


def write_reference(model_dir: Path, found: Signals) -> None:
    """Write into a model directory what its test papers were like."""
    grid = np.linspace(0, 1, QUANTILES)
    write_json(model_dir / REFERENCE, {
        "papers": len(found),
        "numbers": {name: {
            "mean": float(values.mean()), "deviation": float(values.std()),
            "quantiles": np.quantile(values, grid).round(5).tolist()}
            for name in NUMBERS for values in [getattr(found, name)]},
        "categories": {name: found.categories.count(name)
                       for name in sorted(set(found.categories))},
        "directions": {"mean": found.directions.mean(0).round(6).tolist(),
                       "covariance": np.cov(found.directions.T).round(8).tolist()}})


def read_reference(model_dir: Path) -> dict[str, Any]:
    """Return what `write_reference` wrote.

    Raises:
        InputError: the model was not judged, or by an older nej.
    """
    try:
        return json.loads((model_dir / REFERENCE).read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{model_dir} has no {REFERENCE}; `make evaluate MODEL={model_dir}` "
                         "writes it") from None


@dataclass(frozen=True)
class Change:
    """How far a signal is from the reference."""

    name: str
    distance: float
    least: float  # from which on it is an alarm
    p_value: float  # of a distance like this by chance
    words: str  # what moved
    since: int = 0  # the first paper that was compared; those before were other papers
    place: str = ""  # where that one is

    @property
    def alarm(self) -> bool:
        """Return whether it is far, and further than chance explains."""
        return self.distance >= self.least and self.p_value < LEVEL / len(LEAST)


@dataclass(frozen=True)
class Drift:
    """How papers compare with a model's test papers."""

    papers: int
    reference_papers: int
    changes: list[Change]

    @property
    def alarms(self) -> list[Change]:
        """Return the changes that are an alarm."""
        return [change for change in self.changes if change.alarm]

    def text(self) -> str:
        """Return what moved, in words."""
        lines = [f"{self.papers:,} papers, compared with the model's {self.reference_papers:,} "
                 "test papers:"]
        for change in self.changes:
            now = f" (now: from {change.place} on, by which it had changed)" if change.since else ""
            lines.append(f"{'ALARM' if change.alarm else '     '}  {change.words}{now}; distance "
                         f"{change.distance:.2f}, an alarm from {change.least:.2f} on")
        moved = ", ".join(NUMBERS.get(change.name, change.name) for change in self.alarms)
        return "\n".join([*lines, f"These papers differ from the test papers: {moved}."
                          if moved else "No alarm: these papers are like the test papers."])


def compare(found: Signals, reference: dict[str, Any]) -> Drift:
    """Compare papers with a reference.

    A few new papers of another kind would be lost among many old ones. So each signal is compared
    from where it last changed, which river's ADWIN finds.

    Thousands of papers make the smallest difference significant, and few papers differ by chance.
    An alarm is a distance that is both large (LEAST) and significant (LEVEL, shared among the
    signals, Bonferroni).

    Raises:
        InputError: fewer than FEWEST_PAPERS.
    """
    if len(found) < FEWEST_PAPERS:
        raise InputError(f"{len(found)} papers are too few to compare, which takes at least "
                         f"{FEWEST_PAPERS}; wait for more, or take more days")
    changes = [_number(name, getattr(found, name), reference) for name in NUMBERS]
    changes += [_categories(found.categories, reference), _embeddings(found.directions, reference)]
    return Drift(len(found), reference["papers"], [
        replace(change, place=found.places[change.since]) if found.places else change
        for change in changes])


def _steady(columns: np.ndarray) -> int:
    """Return from which row on the columns are as they are at the end; 0 if they never changed.

    ADWIN (Bifet and Gavalda, Learning from time-changing data with adaptive windowing, 2007) sees a
    change of the mean some papers after it. At least the last FEWEST_PAPERS rows are left.

    Args:
        columns: float64 (papers, columns), what is beyond 0 and 1 counts as these.
    """
    since = 0
    for column in columns.clip(0, 1).T.tolist():
        detector = ADWIN(delta=LEVEL / len(LEAST) / columns.shape[1])
        for row, value in enumerate(column):
            detector.update(value)
            if detector.drift_detected:
                since = max(since, row)
    return min(since, len(columns) - FEWEST_PAPERS)


def _number(name: str, values: np.ndarray, reference: dict[str, Any]) -> Change:
    """Compare by the Wasserstein distance in standard deviations, and Kolmogorov and Smirnov."""
    before = reference["numbers"][name]
    quantiles = np.array(before["quantiles"])
    spread = max(before["deviation"], 1e-9)
    since = _steady(_within(values[:, None], before["mean"], spread))
    values = values[since:]
    distance = stats.wasserstein_distance(values, quantiles) / spread
    places = np.unique(np.concatenate([quantiles, values]))
    gap = np.abs(np.searchsorted(np.sort(values), places, "right") / len(values)
                 - np.searchsorted(quantiles, places, "right") / len(quantiles)).max()
    # the reference's steps of 1/200 are no difference of the papers
    gap = max(0.0, gap - 1 / len(quantiles))
    p_value = float(stats.kstwobign.sf(gap * np.sqrt(_papers(len(values), reference))))
    return Change(name, float(distance), LEAST[name], p_value,
                  f"{NUMBERS[name]}: {before['mean']:.3g} on average then, "
                  f"{values.mean():.3g} now", since)


def _within(values: np.ndarray, mean: Any, deviation: Any) -> np.ndarray:
    """Return values on a scale where 0 and 1 are three standard deviations off the mean."""
    return (values - mean) / deviation / 6 + 0.5


def _papers(papers: int, reference: dict[str, Any]) -> float:
    """Return the number of papers of one sample that would be as exact as the two together."""
    return papers * reference["papers"] / (papers + reference["papers"])


def _categories(names: list[str], reference: dict[str, Any]) -> Change:
    """Compare by the share of papers in another category, and the chi-squared test."""
    before = reference["categories"]
    every = sorted({*before, *names})
    since = _steady(np.array([[name == other for other in every] for name in names], float))
    names = names[since:]
    counts = np.array([[before.get(name, 0) for name in every],
                       [names.count(name) for name in every]])
    shares = counts / counts.sum(1, keepdims=True)
    moved = shares[1] - shares[0]
    seen = counts[:, counts.any(0)]
    p_value = float(stats.chi2_contingency(seen).pvalue) if seen.shape[1] > 1 else 1.0
    most = np.argsort(-np.abs(moved), kind="stable")[:3]
    words = ", ".join(f"{every[i]} {shares[0, i]:.0%} then, {shares[1, i]:.0%} now" for i in most)
    return Change("categories", float(np.abs(moved).sum() / 2), LEAST["categories"], p_value,
                  f"categories: {words}", since)


def _embeddings(directions: np.ndarray, reference: dict[str, Any]) -> Change:
    """Compare the means by Mahalanobis' distance, less what chance adds, and Hotelling's test."""
    before = reference["directions"]
    width = directions.shape[1]
    covariance = np.array(before["covariance"]) + 1e-9 * np.eye(width)
    since = _steady(_within(directions, before["mean"], np.sqrt(np.diag(covariance))))
    directions = directions[since:]
    off = directions.mean(0) - np.array(before["mean"])
    squared = float(off @ np.linalg.solve(covariance, off))
    alike = _papers(len(directions), reference)
    p_value = float(stats.chi2.sf(squared * alike, width))
    distance = np.sqrt(max(0.0, squared - width / alike))
    return Change("embeddings", float(distance), LEAST["embeddings"], p_value,
                  f"embeddings: their mean is {distance:.2f} standard deviations away", since)
