"""Papers of a file that a model is judged on."""

import json
from dataclasses import replace
from datetime import date

import pytest

from nej import InputError
from nej.judging.labelled import read_labelled
from nej.model import load_classifier, load_tokenizer
from nej.prediction import Classifier


@pytest.fixture
def classifier(make_config, tiny_model, tmp_path) -> Classifier:
    """Return an untrained classifier of two classes that reads titles too."""
    names = ["cs.CV", "cs.LG"]
    return Classifier(tmp_path, make_config(text_fields="title+summary"), names,
                      load_tokenizer(tiny_model), load_classifier(tiny_model, labels=names).eval(),
                      bf16=False, temperature=1.0)


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


PAPER = {"id": "2503.00001v2", "title": "Nets", "summary": "We train\nnetworks.",
         "categories": ["cs.LG", "cs.CV"], "published_date": "3/7/25"}


def test_a_paper_of_a_feed_is_read_as_one_of_the_training(classifier, tmp_path):
    papers, more = read_labelled(write(tmp_path / "new.jsonl", PAPER), classifier, seen=set())
    paper, = papers
    assert paper["id"] == "abs-2503.00001" and paper["label"] == 1
    assert paper["text"] == "Nets. We train networks." and paper["published"] == date(2025, 3, 7)
    expected = classifier.tokenizer(paper["text"], truncation=True, max_length=32)["input_ids"]
    assert paper["input_ids"] == expected and paper["length"] == len(expected)
    assert more == {"all_categories": [["cs.LG", "cs.CV"]], "cross_listed": [True]}


def test_papers_that_it_was_trained_on_and_other_classes_are_left_out(classifier, tmp_path, caplog):
    file = write(tmp_path / "new.jsonl", PAPER, PAPER | {"id": "abs-2503.00002"},
                 PAPER | {"id": "2503.00003", "categories": ["math.ST"]},
                 PAPER | {"id": "2503.00004", "summary": "  "}, PAPER | {"id": "17"},
                 PAPER | {"id": "2503.00001v3", "title": "Newer"})
    caplog.set_level("INFO", "nej")
    papers, _ = read_labelled(file, classifier, seen={"abs-2503.00002"})
    assert papers["id"][:] == ["abs-2503.00001"] and papers["title"][:] == ["Newer"]
    assert "of another category: 1" in caplog.text
    assert "of the training or validation papers: 1" in caplog.text
    assert "has no summary: 1" in caplog.text
    assert "without an arXiv id or a category: 1" in caplog.text


def test_another_name_of_a_column_only_stands_in_for_it(classifier, tmp_path):
    own = {"category_code": "cs.CV"}
    records = [own | PAPER, PAPER | own, PAPER | {"categories": "cs.CV", "category_code": None},
               PAPER | own | {"abstract": None}, PAPER | own | {"abstract": "Another."}]
    file = write(tmp_path / "new.jsonl", *(
        record | {"id": f"2503.0000{number}"} for number, record in enumerate(records)))
    papers, _ = read_labelled(file, classifier, seen=set())
    assert papers["label"][:] == [0] * 5
    assert papers["text"][:] == ["Nets. We train networks."] * 5


def test_what_cannot_be_labelled_is_not_judged(classifier, tmp_path, caplog):
    others = [{"summary": 5}, {"summary": "a\0b"}, {"title": 7}, {"summary": "\ud800"}]
    file = write(tmp_path / "new.jsonl", PAPER, *(
        PAPER | {"id": f"2503.0001{number}"} | other for number, other in enumerate(others)))
    with open(file, "a") as more:
        more.write("{\n")
    caplog.set_level("INFO", "nej")
    papers, _ = read_labelled(file, classifier, seen=set())
    assert len(papers) == 1
    for reason in ("its summary is no text", "has a NUL character in its summary",
                   "its title is no text", "its summary is not UTF-8", "cannot be parsed"):
        assert f"left out, {reason}: 1" in caplog.text


@pytest.mark.parametrize("trained, given", [
    ("2503.00002", "abs-2503.00002v1"), ("math.GT/0309136", "math.GT-0309136"),
    ("abs-cs-9308101", "cs/9308101v2"),
])
def test_a_paper_that_it_was_trained_on_is_known_in_any_spelling(
        classifier, tmp_path, trained, given):
    file = write(tmp_path / "new.jsonl", PAPER, PAPER | {"id": given})
    papers, _ = read_labelled(file, classifier, seen={trained, "not of arXiv"})
    assert papers["id"][:] == ["abs-2503.00001"]


def test_of_several_versions_the_newest_is_judged_wherever_it_stands(classifier, tmp_path):
    file = write(tmp_path / "new.jsonl", *(
        PAPER | {"id": f"2503.00001v{version}", "title": f"Title {version}"}
        for version in (2, 10, 9)))
    papers, _ = read_labelled(file, classifier, seen=set())
    assert papers["title"][:] == ["Title 10"]


def test_the_title_is_the_one_that_the_text_begins_with(classifier, tmp_path):
    file = write(tmp_path / "new.jsonl", PAPER | {"title": " Nets\n  of nets "})
    (paper,), _ = read_labelled(file, classifier, seen=set())
    assert paper["title"] == "Nets of nets"
    assert paper["text"] == "Nets of nets. We train networks."


def test_gathered_categories_are_other_and_no_category_is_not(
        classifier, make_config, tmp_path):
    gathering = replace(classifier, names=["cs.CV", "cs.LG", "Other"], config=make_config(
        other_categories="gather"))
    file = write(tmp_path / "new.jsonl", PAPER, PAPER | {"id": "2503.00003",
                                                         "categories": ["math.ST"]})
    papers, _ = read_labelled(file, gathering, seen=set())
    assert papers["label"][:] == [1, 2]
    by_name = replace(gathering, names=["Vision", "Other"], config=make_config(
        other_categories="gather", label_column="category"))
    file = write(tmp_path / "new.jsonl", PAPER, PAPER | {"id": "2503.00003", "category": "Optics"})
    papers, _ = read_labelled(file, by_name, seen=set())
    assert papers["id"][:] == ["abs-2503.00003"] and papers["label"][:] == [1]


def test_kaggles_csv_has_no_cross_lists(classifier, papers_csv):
    papers, more = read_labelled(papers_csv, classifier, seen=set())
    assert len(papers) > 50 and more == {}


def test_nothing_left_is_explained(classifier, tmp_path):
    file = write(tmp_path / "new.jsonl", PAPER | {"categories": ["math.ST"]})
    with pytest.raises(InputError, match=r"no paper is left to judge on \(1 of another category"):
        read_labelled(file, classifier, seen=set())
    with pytest.raises(InputError, match="no file"):
        read_labelled(tmp_path / "nowhere.jsonl", classifier, seen=set())
