"""Each check of a model's behaviour passes for a sound model and fails for one that lacks it."""

import json
import runpy
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, DistilBertForSequenceClassification

from nej import InputError
from nej.config import load_config
from nej.files import CONFIG_FILE, write_json
from nej.judging import behaviour
from nej.judging.behaviour import NONSENSE, PLAIN_PAPERS, Finding, check, table
from nej.model import load_tokenizer
from nej.prediction import Classifier, padded_first_tokens

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "test_model.py"
NAMES = ["cs.CL", "cs.CV", "cs.LG", "cs.RO"]
PLAIN = json.loads(PLAIN_PAPERS.read_text("utf-8"))


@pytest.fixture(scope="module")
def sound(tiny_model) -> Classifier:
    """Return a tiny model that has learned the plain papers by heart, and nothing of nonsense."""
    torch.manual_seed(0)
    model = DistilBertForSequenceClassification.from_pretrained(
        tiny_model, num_labels=len(NAMES), id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0)
    classifier = Classifier(
        model_dir=Path(tiny_model),
        config=replace(load_config(), max_length=64, use_cpu=True, bf16=False),
        names=NAMES, tokenizer=load_tokenizer(tiny_model), model=model, bf16=False,
        temperature=1.0)
    papers = [(paper["summary"], label) for label, name in enumerate(NAMES)
              for paper in PLAIN[name]["papers"]]
    texts = [f"{opening}{text}" for opening in ("", "We propose ", "In this paper, ")
             for text, _ in papers] + list(NONSENSE.values())
    targets = torch.eye(len(NAMES))[[label for _, label in papers] * 3]
    targets = torch.cat([targets, torch.full((len(NONSENSE), len(NAMES)), 1 / len(NAMES))])
    inputs = classifier.tokenizer(texts, truncation=True, max_length=64, padding=True,
                                  return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    model.train()
    for _ in range(60):
        torch.nn.functional.cross_entropy(model(**inputs).logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return classifier


def reading(sound: Classifier, change) -> Classifier:
    """Return a classifier that reads `change` of each summary."""
    class Changed(Classifier):
        def read(self, summaries, titles=None):
            return super().read([change(summary) for summary in summaries], titles)
    return Changed(**vars(sound))


def answering(sound: Classifier, change) -> Classifier:
    """Return a classifier whose logits are `change` of the papers and the model's logits."""
    class Changed(Classifier):
        def run(self, papers, **kwargs):
            outputs = super().run(papers, **kwargs)
            return replace(outputs, logits=change(papers, outputs.logits))
    return Changed(**vars(sound))


def states(findings: list[Finding]) -> dict[str, str]:
    """Return what did not pass, by name."""
    return {finding.name: finding.state for finding in findings if finding.state != "passed"}


def detail(findings: list[Finding], name: str) -> str:
    """Return what one check found."""
    return next(finding.detail for finding in findings if finding.name == name)


def test_a_sound_model_passes_all(sound):
    findings = check(sound)
    assert states(findings) == {}, table(findings)
    assert len(findings) == 14 and all(finding.passed for finding in findings)
    assert "16 of 16 right (all)" in detail(findings, "plain papers")
    assert "2 refused" in detail(findings, "odd texts")
    titled = replace(sound.config, text_fields="title+summary")
    assert "plain papers" not in states(check(replace(sound, config=titled)))


def test_an_untrained_model_does_not_know_plain_papers(sound):
    torch.manual_seed(1)
    model = DistilBertForSequenceClassification(sound.model.config).eval()
    assert states(check(replace(sound, model=model))) == {
        "nonsense": "failed", "plain papers": "failed"}


def test_capitals_that_matter_are_found(sound):
    sensitive = reading(sound, lambda text: " ".join(
        word for word in text.split() if word == word.lower()) or "image" * bool(text.strip()))
    assert states(check(sensitive)) == {"lower case": "failed", "upper case": "failed"}


def test_a_vocabulary_with_capitals_is_only_warned_of_them(sound, tiny_model):
    cased = BertTokenizer(vocab=f"{tiny_model}/vocab.txt", do_lower_case=False,
                          model_input_names=["input_ids", "attention_mask"])
    findings = check(replace(sound, tokenizer=cased))
    assert states(findings)["upper case"] == "warned"
    assert "vocabulary has capitals" in detail(findings, "upper case")


def test_an_answer_that_depends_on_the_batch_is_found(sound):
    findings = check(answering(
        sound, lambda papers, logits: logits + np.eye(1, 4, dtype="f") * len(papers) / 10))
    assert states(findings)["alone and in a batch"] == "failed"
    assert "18 of 18 texts" in detail(findings, "alone and in a batch")


def test_answers_in_the_order_of_lengths_are_found(sound):
    found = states(check(answering(
        sound, lambda papers, logits: logits[np.argsort([-paper["length"] for paper in papers])])))
    assert found["alone and in a batch"] == found["in another order"] == "failed"


def test_padding_that_is_read_is_found(sound, monkeypatch):
    monkeypatch.setattr(behaviour, "padded_first_tokens", lambda model, ids, mask:
                        padded_first_tokens(model, ids, torch.ones_like(mask)))
    assert states(check(sound)) == {"with and without padding": "failed"}


@pytest.mark.parametrize("name, change", [
    ("line breaks", lambda text: text.split("\n")[0]),
    ("double spaces", lambda text: text.split("  ")[0]),
    ("spaces around", lambda text: "image" if text != text.strip() != "" else text),
])
def test_spaces_that_matter_are_found(sound, name, change):
    assert states(check(reading(sound, change))) == {name: "failed"}


@pytest.mark.parametrize("opening", ["We propose", "In this paper,"])
def test_an_opening_that_changes_the_class_is_found(sound, opening):
    robots = PLAIN["cs.RO"]["papers"][0]["summary"]
    changed = reading(sound, lambda text: robots if text.startswith(opening) else text)
    findings = check(changed)
    assert states(findings)[f'"{opening}" in front'] == "failed"
    assert ("12 of 16 papers of which the model was sure get another class, "
            f"{PLAIN['cs.CL']['papers'][0]['title']!r} cs.RO instead of cs.CL"
            ) in detail(findings, f'"{opening}" in front')
    unsure = check(replace(changed, temperature=1000.0))
    assert f'"{opening}" in front' not in states(unsure)
    assert "4 of 16 papers keep their class; of the others the model was unsure" in (
        detail(unsure, f'"{opening}" in front'))


def test_an_answer_to_an_empty_text_is_found(sound):
    findings = check(reading(sound, lambda text: text.strip() or "nothing"))
    assert states(findings) == {"empty texts": "failed"}
    assert "only spaces: answered" in detail(findings, "empty texts")


def test_a_crash_is_a_failure_of_its_check(sound):
    def crash(text):
        if not text.strip():
            raise IndexError("out of range")
        if len(text) > 10_000:
            raise RuntimeError("too long\nfor me")
        return text
    findings = check(reading(sound, crash))
    assert states(findings) == {"empty texts": "failed", "odd texts": "failed"}
    assert "only spaces: IndexError: out of range" in detail(findings, "empty texts")
    assert "50,000 characters: RuntimeError: too long for me" in detail(findings, "odd texts")

    def crash_later(text):
        if "\n" in text:
            raise OverflowError("at line 2")
        return text
    assert "OverflowError: at line 2" in detail(check(reading(sound, crash_later)), "line breaks")


def test_probabilities_that_are_none_are_found(sound):
    findings = check(answering(sound, lambda papers, logits: np.where(
        [["\N{ROCKET}" in paper["text"]] for paper in papers], np.float32("nan"), logits)))
    assert states(findings) == {"odd texts": "failed"}
    assert detail(findings, "odd texts") == "emoji: probabilities that sum to nan."


def test_a_model_that_is_always_sure_is_found(sound):
    findings = check(answering(sound, lambda papers, logits: 1000 * logits))
    assert states(findings)["nonsense"] == "failed"
    assert "1.00 sure of nonsense and 1.00 of plain papers" in detail(findings, "nonsense")


def test_a_model_that_is_sure_of_one_nonsense_is_warned(sound):
    findings = check(answering(sound, lambda papers, logits: np.where(
        [["Stadtrat" in paper["text"]] for paper in papers], 100 * np.eye(1, 4, dtype="f"),
        logits)))
    assert states(findings) == {"nonsense": "warned"} and all(f.passed for f in findings)
    assert "most of German (1.00)" in detail(findings, "nonsense")


@pytest.mark.parametrize("wrong, state", [(1, None), (2, "failed")])
def test_one_plain_paper_of_four_may_be_wrong(sound, wrong, state):
    mistaken = [paper["summary"] for paper in PLAIN["cs.CV"]["papers"][:wrong]]
    findings = check(answering(sound, lambda papers, logits: np.where(
        [[paper["text"] in mistaken] for paper in papers], logits[:, ::-1], logits)))
    assert states(findings).get("plain papers") == state
    assert f"{16 - wrong} of 16 right (cs.CV {4 - wrong} of 4)" in detail(findings, "plain papers")


def test_only_a_models_own_categories_are_asked(sound):
    named = replace(sound, names=[PLAIN[name]["name"] for name in NAMES])
    assert "16 of 16 right (all)" in detail(check(named), "plain papers")
    partly = check(replace(sound, names=["Other", *NAMES[1:]]))
    assert "12 of 12 right (all); 3 of its 4" in detail(partly, "plain papers")
    assert states(check(replace(sound, names=list("abcd"))))["plain papers"] == "warned"


def test_half_a_surrogate_pair_is_refused(sound):
    with pytest.raises(InputError, match=r"'a \\udc00' has '\\udc00', half of .* character 3"):
        sound.read(["fine", "a \udc00"])
    with pytest.raises(InputError, match="half of a surrogate pair"):
        sound.read(["fine"], ["\ud800"])


def test_each_category_has_four_plain_papers_of_its_own():
    papers = [paper for category in PLAIN.values() for paper in category["papers"]]
    assert all(len(category["papers"]) >= 4 and category["name"] for category in PLAIN.values())
    assert max(Counter(paper["summary"] for paper in papers).values()) == 1
    for paper in papers:
        assert paper["title"] and 25 <= len(paper["summary"].split()) <= 80
        assert paper["summary"].endswith(".") and paper["summary"].isascii()


def test_the_table_shows_each_state():
    assert table([Finding("a", "passed", "Fine."), Finding("longer", "warned", "Hm."),
                  Finding("b", "failed", "Bad.")]).splitlines() == [
        "passed  a       Fine.", "warned  longer  Hm.", "failed  b       Bad.",
        "1 passed, 1 warned, 1 failed"]


@pytest.fixture
def main(monkeypatch):
    """Return scripts/test_model.py's `main`."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return runpy.run_path(str(SCRIPT))["main"]


def test_the_script_fails_if_a_check_does(main, sound, tmp_path, capsys):
    sound.model.save_pretrained(tmp_path)
    sound.tokenizer.save_pretrained(tmp_path)
    write_json(tmp_path / CONFIG_FILE, asdict(sound.config))
    write_json(tmp_path / "manifest.json", {})
    assert main([str(tmp_path)]) == 0
    assert "14 passed, 0 warned, 0 failed" in capsys.readouterr().out
    write_json(tmp_path / "calibration.json", {"temperature": 0.001})
    assert main([str(tmp_path)]) == 1
    assert "failed  nonsense" in capsys.readouterr().out


def test_the_script_refuses_a_folder_that_is_no_model(main, tmp_path):
    with pytest.raises(InputError, match="not a finished model directory"):
        main([str(tmp_path)])
