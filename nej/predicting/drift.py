"""Whether papers are still like those that a model was judged on: what moved, and by how much."""

import json
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
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
TESTS = 2 * len(LEAST)  # each signal of all papers, and of the latest


@dataclass(frozen=True)
class Signals:
    """What a model noticed of papers, one entry for each."""

    tokens: np.ndarray  # int64, after truncation
    unknown_words: np.ndarray  # float64, share of a paper's words
    probability: np.ndarray  # float64, of the most probable category
    categories: list[str]  # the most probable one
    directions: np.ndarray  # float64 (papers, 8): see prediction_log.summarize
    times: np.ndarray | None = None  # str, ascending: when each came; None where nobody knows

    def __len__(self) -> int:
        return len(self.tokens)

    def after(self, first: int) -> "Signals":
        """Return those from the paper `first` on."""
        return Signals(*(None if values is None else values[first:] for values in (
            self.tokens, self.unknown_words, self.probability, self.categories, self.directions,
            self.times)))  # type: ignore[arg-type]


def signals(papers: Any, outputs: Outputs, *, names: Sequence[str], temperature: float,
            unknown_words: UnknownWords) -> Signals:
    """Return the signals of tokenized papers, from what the model made of them."""
    probabilities = softmax(outputs.logits, temperature)
    columns = {name: papers[name][:] if hasattr(papers, "select_columns")
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
    papers: int  # that were compared, the last ones if not all
    period: str = ""  # if not all: which

    @property
    def alarm(self) -> bool:
        """Return whether it is far, and further than chance explains."""
        return self.distance >= self.least and self.p_value < LEVEL / TESTS


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
            lines.append(f"{'ALARM' if change.alarm else '     '}  {change.words}{change.period}; "
                         f"distance {change.distance:.2f}, an alarm from {change.least:.2f} on")
        moved = ", ".join(NUMBERS.get(change.name, change.name) for change in self.alarms)
        return "\n".join([*lines, f"These papers differ from the test papers: {moved}."
                          if moved else "No alarm: these papers are like the test papers."])


def compare(found: Signals, reference: dict[str, Any]) -> Drift:
    """Compare papers with a reference.

    Thousands of papers make the smallest difference significant, and few papers differ by chance.
    An alarm is a distance that is both large (LEAST) and significant (LEVEL, shared among the
    TESTS, Bonferroni).

    A few new papers of another kind would be lost among the many of a log. So where river's ADWIN
    sees that a signal changed, the papers since then are compared by themselves.

    Raises:
        InputError: fewer than FEWEST_PAPERS.
    """
    if len(found) < FEWEST_PAPERS:
        raise InputError(f"{len(found)} papers are too few to compare, which takes at least "
                         f"{FEWEST_PAPERS}; wait for more, or take more days")
    changes = _measure(found, reference)
    if found.times is not None:
        changes = [_latest(change, found, found.times, reference) for change in changes]
    return Drift(len(found), reference["papers"], changes)


def _measure(found: Signals, reference: dict[str, Any]) -> list[Change]:
    return [*(_number(name, getattr(found, name), reference) for name in NUMBERS),
            _categories(found.categories, reference), _embeddings(found.directions, reference)]


def _latest(whole: Change, found: Signals, times: np.ndarray, reference: dict[str, Any]) -> Change:
    """Return the change of the papers since a signal last changed, or of all if that tells more."""
    since = _last_change(_columns(whole.name, found, reference), times)
    if since is None:
        return whole
    first = int(np.searchsorted(times, since))
    period = f" (now: from {since[:19]} on, by when it had changed)"
    if len(found) - first < FEWEST_PAPERS:
        first = len(found) - FEWEST_PAPERS
        period = f" (now: the last {FEWEST_PAPERS} papers, in which it changed)"
    late = next(replace(change, period=period) for change in _measure(found.after(first), reference)
                if change.name == whole.name)
    # where these are too few to be sure of, but no nearer, it has not gone back to what it was
    return whole if whole.alarm and not late.alarm and late.distance >= late.least else late


def _last_change(columns: list[np.ndarray], times: np.ndarray) -> str | None:
    """Return the time by which a signal last had changed, None if it was alike all along.

    By ADWIN (Bifet and Gavalda, Learning from time-changing data with adaptive windowing, 2007),
    which sees a change of the mean somewhat late. It takes what it sees as independent, and papers
    that came at one time, in one request, are not: it sees their mean.

    Args:
        columns: each float64 (papers,) from 0 to 1.
        times: ascending.
    """
    distinct, request, papers = np.unique(times, return_inverse=True, return_counts=True)
    last = -1
    for column in columns:
        detector = ADWIN(delta=LEVEL / len(LEAST) / len(columns))
        for place, value in enumerate((np.bincount(request, column) / papers).tolist()):
            detector.update(value)
            if detector.drift_detected:
                last = max(last, place)
    return None if last < 0 else str(distinct[last])


def _columns(name: str, found: Signals, reference: dict[str, Any]) -> list[np.ndarray]:
    """Return what a signal consists of: whether a category, or 0 to 1 for -3 to 3 deviations."""
    if name == "categories":
        names, codes = np.unique(found.categories, return_inverse=True)
        return [codes == code for code in range(len(names))]
    if name == "embeddings":
        before = reference["directions"]
        mean, deviation = np.array(before["mean"]), np.sqrt(np.diag(before["covariance"]))
        values = found.directions
    else:
        before = reference["numbers"][name]
        mean, deviation = before["mean"], before["deviation"]
        values = getattr(found, name)[:, None]
    return list(((values - mean) / (6 * np.maximum(deviation, 1e-9)) + 0.5).clip(0, 1).T)


def _number(name: str, values: np.ndarray, reference: dict[str, Any]) -> Change:
    """Compare by the Wasserstein distance in standard deviations, and Kolmogorov and Smirnov."""
    before = reference["numbers"][name]
    quantiles = np.array(before["quantiles"])
    spread = max(before["deviation"], 1e-9)
    distance = stats.wasserstein_distance(values, quantiles) / spread
    places = np.unique(np.concatenate([quantiles, values]))
    gap = np.abs(np.searchsorted(np.sort(values), places, "right") / len(values)
                 - np.searchsorted(quantiles, places, "right") / len(quantiles)).max()
    # the reference's steps of 1/200 are no difference of the papers
    gap = max(0.0, gap - 1 / len(quantiles))
    p_value = float(stats.kstwobign.sf(gap * np.sqrt(_papers(values, reference))))
    return Change(name, float(distance), LEAST[name], p_value,
                  f"{NUMBERS[name]}: {before['mean']:.3g} on average then, "
                  f"{values.mean():.3g} now", len(values))


def _papers(values: Sized, reference: dict[str, Any]) -> float:
    """Return the number of papers of one sample that would be as exact as the two together."""
    return len(values) * reference["papers"] / (len(values) + reference["papers"])


def _categories(names: list[str], reference: dict[str, Any]) -> Change:
    """Compare by the share of papers in another category, and the chi-squared test."""
    before = reference["categories"]
    every = sorted({*before, *names})
    counts = np.array([[before.get(name, 0) for name in every],
                       [names.count(name) for name in every]])
    shares = counts / counts.sum(1, keepdims=True)
    moved = shares[1] - shares[0]
    p_value = float(stats.chi2_contingency(counts).pvalue) if len(every) > 1 else 1.0
    most = np.argsort(-np.abs(moved), kind="stable")[:3]
    words = ", ".join(f"{every[i]} {shares[0, i]:.0%} then, {shares[1, i]:.0%} now" for i in most)
    return Change("categories", float(np.abs(moved).sum() / 2), LEAST["categories"], p_value,
                  f"categories: {words}", len(names))


def _embeddings(directions: np.ndarray, reference: dict[str, Any]) -> Change:
    """Compare the means by Mahalanobis' distance, less what chance adds, and Hotelling's test."""
    before = reference["directions"]
    papers, width = directions.shape
    covariance = np.array(before["covariance"]) + 1e-9 * np.eye(width)
    off = directions.mean(0) - np.array(before["mean"])
    squared = float(off @ np.linalg.solve(covariance, off))
    alike = _papers(directions, reference)
    p_value = float(stats.chi2.sf(squared * alike, width))
    distance = np.sqrt(max(0.0, squared - width / alike))
    return Change("embeddings", float(distance), LEAST["embeddings"], p_value,
                  f"embeddings: their mean is {distance:.2f} standard deviations away", papers)
