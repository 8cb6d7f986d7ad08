"""The surest mistakes, the word that decided, and labels that somebody should look at."""

import csv
import json
import multiprocessing
import random
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import DistilBertForSequenceClassification

from nej.fields import arxiv_link
from nej.judging.mistakes import (
    LabelIssue, LabelIssues, confident_mistakes, explain, label_issues, mistakes,
    write_label_issues,
)
from nej.metrics import Predictions
from nej.model import load_tokenizer
from nej.prediction import Classifier

FILLERS = "the of and we a for that with is on to in".split()
ROBOT, IMAGE = 0, 1


def predictions_of(probabilities, labels, names="ab") -> Predictions:
    """Return Predictions with made-up ids."""
    return Predictions([f"abs-2401.{index:05}" for index in range(len(labels))],
                       np.array(labels), np.array(probabilities, float), list(names))


@pytest.fixture(scope="module")
def classifier(tiny_model) -> Classifier:
    """Return a tiny model that has learned one thing: whether a text says robot or image."""
    from nej.config import load_config
    config = replace(load_config(), max_length=32, text_fields="title+summary")
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification.from_pretrained(
        tiny_model, num_labels=2, seq_classif_dropout=0.0)
    found = Classifier(Path(tiny_model), config, ["cs.RO", "cs.CV"], load_tokenizer(tiny_model),
                       model, bf16=False, temperature=2.0)
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        labels = [rng.randrange(2) for _ in range(32)]
        texts = [rng.choices(FILLERS, k=rng.randrange(4, 20)) for _ in labels]
        for words, label in zip(texts, labels):
            if rng.random() < 0.7:  # or neither, or the lack of one would stand for the other
                words.insert(rng.randrange(len(words)), ("robot", "image")[label])
        inputs = found.tokenizer([" ".join(words) for words in texts], padding=True,
                                 return_tensors="pt", return_token_type_ids=False)
        model(**inputs, labels=torch.tensor(labels)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return found


@pytest.mark.parametrize("text, word, predicted, occurrences", [
    ("we the Robot of a for, and with the robot on that", "robot", ROBOT, 2),
    ("to the in that is: image of the a for", "image", IMAGE, 1),
    ("of the robot-and-robot we a for, with the in", "robot-and-robot", ROBOT, 1),
])
def test_the_word_that_decides_comes_first(classifier, text, word, predicted, occurrences):
    [found] = explain(classifier, [{"text": text}], predicted=[predicted], actual=[1 - predicted])
    assert found[0].word == word and found[0].occurrences == occurrences
    assert found[0].log_odds > 5 * max(abs(other.log_odds) for other in found[1:])
    assert found[0].probability > 0.2
    assert len(found) <= 5 and [w.log_odds for w in found] == sorted(
        (w.log_odds for w in found), reverse=True)


def test_the_effect_is_that_of_the_text_without_the_word(classifier):
    text, without = "of the robot is a for, robot and we", "of the is a for, and we"
    word = explain(classifier, [{"text": text}], predicted=[ROBOT], actual=[IMAGE])[0][0]
    before, after = classifier.probabilities([text, without])
    assert word.probability == pytest.approx(before[ROBOT] - after[ROBOT], abs=1e-5)
    assert word.log_odds == pytest.approx(
        np.log(before[ROBOT] / before[IMAGE]) - np.log(after[ROBOT] / after[IMAGE]), abs=1e-4)


def test_a_word_that_holds_the_prediction_back_does_not_count_for_it(classifier):
    [found] = explain(classifier, [{"text": "the robot of image"}], predicted=[IMAGE],
                      actual=[ROBOT])
    assert found[0].word == "image" and "robot" not in [word.word for word in found]


def test_what_is_cut_off_neither_counts_nor_moves_up(classifier):
    read = " ".join(["image", *(FILLERS * 3)[:29]])  # with [CLS] and [SEP] 32 tokens
    cut, whole = explain(classifier, [{"text": f"{read} robot robot"}, {"text": read}],
                         predicted=[IMAGE] * 2, actual=[ROBOT] * 2, most=40)
    assert "robot" not in [word.word for word in cut]
    assert [asdict(word) for word in cut] == [
        pytest.approx(asdict(word), abs=1e-5) for word in whole]


def test_many_papers_are_explained_in_one_run(classifier, monkeypatch):
    papers = [{"text": "the robot of a"}, {"text": "image"}, {"text": "an image, and in that"}]
    classes = {"predicted": [0, 1, 1], "actual": [1, 0, 0]}
    alone = [explain(classifier, [paper], predicted=[wins], actual=[loses])[0]
             for paper, wins, loses in zip(papers, *classes.values())]
    runs, run = [], Classifier.run
    monkeypatch.setattr(Classifier, "run", lambda self, variants, **options: (
        runs.append(len(variants)), run(self, variants, **options))[1])
    together = explain(classifier, papers, **classes)
    assert runs == [3 + 4 + 1 + 5]  # each paper as it is, and without each of its words
    for one, same in zip(alone, together):
        assert [asdict(word) for word in same] == [
            pytest.approx(asdict(word), abs=1e-5) for word in one]


def test_no_papers_have_no_words(classifier):
    assert explain(classifier, [], predicted=[], actual=[]) == []


def test_surest_mistakes_come_first():
    found = predictions_of([[.6, .4], [.9, .1], [.2, .8], [.3, .7], [.2, .8]], [1, 0, 0, 0, 0])
    assert confident_mistakes(found) == [2, 4, 3, 0]
    assert confident_mistakes(found, 1) == [2]
    assert confident_mistakes(predictions_of([[.9, .1]], [0])) == []


def test_mistakes_are_told_with_text_and_words(classifier):
    titles = ["A robot", "", "In the image"]
    summaries = ["we and the robot of a", "the image in that", "of a image. In the image"]
    papers = classifier.read(summaries, titles)
    probabilities = classifier.probabilities(summaries, titles)
    split = datasets.Dataset.from_list([
        {**paper, "id": f"abs-2401.{index:05}", "title": title}
        for index, (paper, title) in enumerate(zip(papers, titles))])
    predictions = predictions_of(probabilities, [IMAGE, IMAGE, ROBOT], classifier.names)
    found = mistakes(classifier, split, predictions)
    assert json.loads(json.dumps(found)) == found
    by_id = {paper["id"]: paper for paper in found}
    assert set(by_id) == {"abs-2401.00000", "abs-2401.00002"}  # paper 1 is right
    first = by_id["abs-2401.00000"]
    assert (first["title"], first["summary"]) == (titles[0], summaries[0])
    assert (first["actual"], first["predicted"]) == ("cs.CV", "cs.RO")
    assert first["confidence"] == pytest.approx(probabilities[0, ROBOT])
    assert first["probability_of_actual"] == pytest.approx(probabilities[0, IMAGE])
    assert first["words"][0]["word"] == "robot" and first["words"][0]["occurrences"] == 2
    assert len(mistakes(classifier, split, predictions, most=1)) == 1
    with pytest.raises(ValueError, match="another order"):
        mistakes(classifier, split.select([2, 1, 0]), predictions)


def test_wrong_labels_are_counted_as_by_hand():
    # of six papers labelled a, two are b as surely (0.95) as those of b usually are (0.9)
    found = label_issues(predictions_of(
        [[.9, .1]] * 4 + [[.04, .96], [.05, .95]] + [[.1, .9]] * 4, [0] * 6 + [1] * 4))
    assert found.papers == 10 and found.wrong_share == pytest.approx(2 / 10)
    assert [asdict(issue) for issue in found.issues] == [
        {"id": f"abs-2401.0000{paper}", "given": "a", "suggested": "b",
         "probability_of_given": given, "probability_of_suggested": 1 - given,
         "quality": pytest.approx(given)}
        for paper, given in ((4, 0.04), (5, 0.05))]
    assert [asdict(pair) for pair in found.pairs] == [
        pytest.approx({"given": "a", "belongs": "b", "papers": 2, "share": 2 / 6})]
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


def planted(papers: int, classes: int, seed: int) -> tuple[Predictions, set[str]]:
    """Return predictions of a good model, and the ids of the tenth of papers with wrong labels."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, papers)
    logits = rng.normal(size=(papers, classes)) + 6 * np.eye(classes)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    wrong = rng.random(papers) < 0.1
    labels = np.where(wrong, (true + rng.integers(1, classes, papers)) % classes, true)
    found = predictions_of(probabilities, labels, [f"c{index}" for index in range(classes)])
    return found, {found.ids[index] for index in np.flatnonzero(wrong)}


def test_wrong_labels_are_found():
    predictions, wrong = planted(1000, 4, 0)
    found = label_issues(predictions)
    listed = [issue.id for issue in found.issues]
    assert len(wrong & set(listed)) > 0.9 * len(wrong)
    assert len(wrong & set(listed)) > 0.9 * len(listed)
    assert set(listed[:50]) <= wrong  # the surest first
    assert found.wrong_share == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("papers, classes", [(5, 2), (5, 53), (60, 53), (3000, 53)])
def test_few_papers_many_classes_and_classes_of_none(papers, classes, monkeypatch, capfd):
    monkeypatch.setattr(multiprocessing, "Pool", None)  # it would fail if it were called
    predictions, _ = planted(papers, classes, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = label_issues(predictions)
    assert capfd.readouterr() == ("", "")
    assert label_issues(predictions) == found
    assert 0 <= found.wrong_share < 0.5 and len(found.issues) <= papers / 2
    assert all(issue.suggested != issue.given and issue.quality < 0.5 for issue in found.issues)
    assert all(0 < pair.share <= 1 <= pair.papers for pair in found.pairs)


@pytest.mark.parametrize("papers", [0, 1, 5])
def test_papers_of_one_class_say_nothing_of_their_labels(papers):
    one_class = predictions_of(np.full((papers, 2), 0.5), np.ones(papers, int))
    assert label_issues(one_class) == LabelIssues(papers, None, [], [])


def test_labels_to_review_come_as_a_csv(tmp_path):
    target = tmp_path / "label_issues.csv"
    issue = LabelIssue("cs-9308101", "cs.LG", "cs.AI", 0.0123, 0.9, 0.0562)
    found = LabelIssues(9, 0.2, [issue], [])
    write_label_issues(target, found, titles={"cs-9308101": 'On "names", and\nmore'})
    with open(target, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{
        "id": "cs-9308101", "title": 'On "names", and\nmore', "given": "cs.LG",
        "suggested": "cs.AI", "probability_of_given": "0.0123",
        "probability_of_suggested": "0.9000", "quality": "0.0562",
        "verdict": "",
        "link": "https://arxiv.org/abs/cs/9308101"}]


@pytest.mark.parametrize("paper, link", [
    ("abs-0901.4761", "https://arxiv.org/abs/0901.4761"),
    ("2101.00001", "https://arxiv.org/abs/2101.00001"),
    ("cs-9308101", "https://arxiv.org/abs/cs/9308101"),
    ("abs-cond-mat-9901001", "https://arxiv.org/abs/cond-mat/9901001"),
    ("math.GT/0309136", "https://arxiv.org/abs/math.GT/0309136"),
    ("paper 7", ""),
])
def test_a_link_leads_to_the_paper(paper, link):
    assert arxiv_link(paper) == link
