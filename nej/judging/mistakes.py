"""Where the model fails: its surest mistakes, the words that led to them, labels to doubt."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from nej.fields import arxiv_link
from nej.files import write_csv
from nej.metrics import Predictions
from nej.prediction import Classifier, softmax

WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")  # letters and digits, hyphens between them


@dataclass(frozen=True)
class Word:
    """By how much a paper's prediction falls without a word, all of whose occurrences go."""

    word: str  # case-folded
    occurrences: int  # among the tokens that the model reads
    log_odds: float  # fall of log(probability of the predicted class / of the actual one)
    probability: float  # fall of the probability of the predicted class


@dataclass(frozen=True)
class LabelIssue:
    """A paper whose label is probably wrong."""

    id: str
    given: str
    suggested: str  # the class that the model thinks most probable
    probability_of_given: float
    probability_of_suggested: float
    quality: float  # (the first of these - the second + 1) / 2: from 0, surely wrong, to 0.5


@dataclass(frozen=True)
class LabelPair:
    """How many of the papers with one label belong to another class, as estimated."""

    given: str
    belongs: str
    papers: int
    share: float  # of the papers with the label `given`


@dataclass(frozen=True)
class LabelIssues:
    """What confident learning says of the labels of some papers."""

    papers: int
    wrong_share: float | None  # estimated; None for papers of fewer than two classes
    issues: list[LabelIssue]  # the most doubtful label first
    pairs: list[LabelPair]  # those of at least one paper, the most papers first


def confident_mistakes(predictions: Predictions, most: int = 20) -> list[int]:
    """Return the indices of the wrong papers, the surest first; of equal ones the earlier."""
    wrong = np.flatnonzero(~predictions.right)
    order = np.argsort(-predictions.confidence[wrong], kind="stable")
    return wrong[order][:most].tolist()


def mistakes(classifier: Classifier, papers: datasets.Dataset, predictions: Predictions, *,
             most: int = 8) -> list[dict[str, Any]]:
    """Return the surest mistakes with the words that led to them, ready for JSON.

    Args:
        papers: a split of `load_dataset`.
        predictions: those of the same papers, in the same order.

    Returns:
        id, title, summary, actual, predicted, confidence, probability_of_actual and words (each
        as in Word) of each paper.
    """
    if papers["id"][:] != predictions.ids:
        raise ValueError("the predictions are of other papers, or in another order")
    indices = confident_mistakes(predictions, most)
    rows = [papers[index] for index in indices]
    actual, predicted = predictions.labels[indices], predictions.predicted[indices]
    words = explain(classifier, rows, predicted=predicted.tolist(),
                    actual=actual.tolist())
    return [{
        "id": row["id"], "title": row["title"], "summary": _summary(classifier, row),
        "actual": predictions.names[label], "predicted": predictions.names[given],
        "confidence": float(predictions.confidence[index]),
        "probability_of_actual": float(predictions.probabilities[index, label]),
        "words": [asdict(word) for word in found],
    } for index, row, label, given, found in zip(indices, rows, actual, predicted, words)]


def explain(classifier: Classifier, papers: Sequence[Mapping[str, Any]], *,
            predicted: Sequence[int], actual: Sequence[int], most: int = 5) -> list[list[Word]]:
    """Return the words of each paper without which its predicted class loses most.

    Occlusion (Zeiler and Fergus, 2014): the model reads the paper again without each of its
    distinct words, function words too, and the fall of the log-odds of the predicted class
    against the actual one is the word's effect. Nothing is approximated and no word is passed
    over: a paper takes one forward pass more than it has distinct words. Words that hold the
    prediction back are not returned. Effects do not add up: of two words that say the same,
    either can go without harm. Where the model computes in bfloat16, log-odds are good to 0.01
    or so.

    Args:
        papers: each with its `text`, of which the model reads the first tokens.
        predicted: class ids (papers,).
        actual: class ids (papers,).
    """
    variants, words = [], []
    for paper in papers:
        tokens, places = _word_places(classifier, paper["text"])
        words.append(places)
        variants.append(tokens)
        variants += [np.delete(tokens, np.concatenate(taken)) for taken in places.values()]
    logits = classifier.run(
        [{"input_ids": tokens, "length": len(tokens)} for tokens in variants],
        description="Leave out each word").logits
    probabilities = softmax(logits, classifier.temperature)
    found, start = [], 0
    for places, wins, loses in zip(words, predicted, actual):
        rows = slice(start, start + 1 + len(places))
        log_odds = (logits[rows, wins] - logits[rows, loses]) / classifier.temperature
        falls = log_odds[0] - log_odds[1:]
        losses = probabilities[start, wins] - probabilities[rows, wins][1:]
        order = [index for index in np.argsort(-falls, kind="stable")[:most] if falls[index] > 0]
        counted = list(places.items())
        found.append([Word(counted[index][0], len(counted[index][1]), float(falls[index]),
                           float(losses[index])) for index in order])
        start = rows.stop
    return found


def _word_places(classifier: Classifier, text: str
                 ) -> tuple[np.ndarray, dict[str, list[list[int]]]]:
    """Return the tokens that the model reads, and where each word stands among them.

    A word has a list of token indices for each of its occurrences. Of one that truncation cuts,
    the part before the cut is a word.
    """
    encoded = classifier.tokenizer(
        text, truncation=True, max_length=classifier.config.max_length,
        return_offsets_mapping=True)
    spans = np.array(encoded["offset_mapping"])  # (0, 0) for special tokens
    places: dict[str, list[list[int]]] = {}
    for match in WORD.finditer(text, 0, int(spans.max())):
        starts = (spans[:, 0] >= match.start()) & (spans[:, 0] < match.end())
        tokens = np.flatnonzero(starts & (spans[:, 1] > spans[:, 0])).tolist()
        if tokens:
            places.setdefault(match[0].casefold(), []).append(tokens)
    return np.array(encoded["input_ids"]), places


def _summary(classifier: Classifier, paper: Mapping[str, Any]) -> str:
    """Return the text without the title that the model reads before it."""
    if classifier.config.text_fields == "summary" or not paper["title"]:
        return paper["text"]
    return paper["text"].removeprefix(paper["title"] + ". ")


def label_issues(predictions: Predictions) -> LabelIssues:
    """Find papers whose label is probably wrong: confident learning, by cleanlab.

    Northcutt et al., 2021, Confident Learning: a label is doubted where the model is as sure of
    another class as it usually is of papers of that class. The model must not have been trained
    on the papers: take test and validation papers. Its own confident mistakes count as wrong
    labels, so that the estimates are too high where classes overlap; a person has to judge.
    """
    labels, probabilities = predictions.labels, predictions.probabilities
    if len(np.unique(labels)) < 2:
        return LabelIssues(len(labels), None, [], [])
    from cleanlab.count import compute_confident_joint  # two seconds to import
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    counts = compute_confident_joint(labels, probabilities, calibrate=True)  # (given, true)
    # of cleanlab's filters the one that can doubt the only paper of a class
    doubted = np.flatnonzero(find_label_issues(
        labels, probabilities, filter_by="confident_learning", n_jobs=1))
    quality = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    doubted = doubted[np.argsort(quality[doubted], kind="stable")]
    names = predictions.names
    issues = [LabelIssue(
        predictions.ids[index], names[labels[index]], names[predictions.predicted[index]],
        float(probabilities[index, labels[index]]), float(predictions.confidence[index]),
        float(quality[index])) for index in doubted]
    pairs = [LabelPair(names[row], names[column], int(count), float(count / counts[row].sum()))
             for (row, column), count in np.ndenumerate(counts) if row != column and count >= 1]
    pairs.sort(key=lambda pair: -pair.papers)
    return LabelIssues(len(labels), float(1 - np.trace(counts) / len(labels)), issues, pairs)


def write_label_issues(target: Path, found: LabelIssues, *, titles: Mapping[str, str]) -> None:
    """Write a CSV for a person to review, with an empty column `verdict`.

    Args:
        titles: of the papers, by id.
    """
    write_csv(target, (
        "id", "title", "given", "suggested", "probability_of_given", "probability_of_suggested",
        "quality", "link", "verdict"), (
        (issue.id, titles[issue.id], issue.given, issue.suggested,
         f"{issue.probability_of_given:.4f}", f"{issue.probability_of_suggested:.4f}",
         f"{issue.quality:.4f}", arxiv_link(issue.id), "") for issue in found.issues))
