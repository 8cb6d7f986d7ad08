"""A model is judged on its test papers, beside baselines, from its directory alone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from nej import InputError, baselines
from nej.dataset import load_dataset
from nej.evaluation import evaluate, fit_temperature, write_card
from nej.figures import draw_training_statistics
from nej.manifest import origin, write_manifest
from nej.model import load_classifier, load_tokenizer
from nej.prediction import Classifier
from nej.training import train


@pytest.fixture
def trained(make_config):
    """Return the config and the directory of a short run, not judged yet."""
    config = make_config(top_k=3, num_train_epochs=1)

    def finish(folder, result):
        write_manifest(folder, config, result, origin(config))
        write_card(folder)
    return config, train(config, finish=finish).model_dir


def test_metrics_are_those_of_the_models_predictions(trained):
    config, model_dir = trained
    report = evaluate(model_dir)
    tokenizer = load_tokenizer(str(model_dir))
    papers = load_dataset(config, tokenizer)["test"]
    model = load_classifier(str(model_dir)).eval()
    predictions = []
    for text in papers["text"]:  # one at a time, with no padding at all
        inputs = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        predictions.append(model(**inputs).logits.argmax().item())
    metrics = json.loads((model_dir / "metrics.json").read_text("utf-8"))
    assert metrics["test"] == report.test and metrics["baselines"] == report.baselines
    assert report.test["papers"] == len(papers)
    assert report.test["accuracy"] == pytest.approx(accuracy_score(papers["label"], predictions))
    assert report.test["macro_f1"] == pytest.approx(
        f1_score(papers["label"], predictions, average="macro"))
    assert set(report.test["per_class"]) == set(model.config.label2id)
    assert np.sum(report.test["confusion_matrix"]) == len(papers)


def test_baselines_are_fitted_once_and_stand_in_the_table(trained, monkeypatch):
    _, model_dir = trained
    first = evaluate(model_dir)
    assert set(first.baselines) == {"majority class", "TF-IDF + LinearSVC"}
    assert first.baselines["TF-IDF + LinearSVC"]["accuracy"] > (
        first.baselines["majority class"]["accuracy"])
    monkeypatch.setattr(baselines, "TfidfVectorizer", None)  # it would fail if it were called
    assert evaluate(model_dir) == first
    for name in ("majority class", "TF-IDF + LinearSVC", "macro F1", str(model_dir)):
        assert name in first.table()


def test_logits_come_back_in_the_papers_order(trained):
    config, model_dir = trained
    tokenizer = load_tokenizer(str(model_dir))
    papers = load_dataset(config, tokenizer)["train"]
    model = load_classifier(str(model_dir)).eval()
    logits = replace(Classifier.load(model_dir), bf16=True).run(papers).logits
    for row in (0, 7, len(papers) - 1):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            alone = model(torch.tensor([papers[row]["input_ids"]])).logits[0].float()
        assert logits[row] == pytest.approx(alone.numpy(), abs=0.05)


def test_the_card_tells_what_was_measured(trained):
    config, model_dir = trained
    before = (model_dir / "README.md").read_text("utf-8")
    assert "validation papers" in before and "test papers" not in before.split("\n|")[0]
    report = evaluate(model_dir)
    card = (model_dir / "README.md").read_text("utf-8")
    assert f"| **test papers** | {report.test['accuracy']:.3f} |" in card
    assert config.model_name_or_path in card and "LinearSVC" in card


def test_temperature_mends_logits_that_are_too_sure():
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 3)).astype(np.float32)
    chances = torch.from_numpy(logits).softmax(-1).numpy()
    labels = np.array([random.choice(3, p=p / p.sum()) for p in chances.astype(float)])
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.1)
    assert fit_temperature(4 * logits, labels) == pytest.approx(4, abs=0.4)


def test_a_folder_that_is_no_model_is_explained(tmp_path):
    with pytest.raises(InputError, match="not a finished model directory"):
        evaluate(tmp_path)


def test_data_that_changed_since_is_refused(trained, tmp_path):
    config, model_dir = trained
    moved = tmp_path / "moved.csv"
    shutil.copy(config.data_path, moved)
    assert evaluate(model_dir, data_path=moved).test["papers"] > 0
    with open(moved, "a", encoding="utf-8") as handle:
        handle.write("abs-2201.00001v1,T,N,cs.LG,1/1/22,1/1/22,[],'',Some summary,2\r\n")
    with pytest.raises(InputError, match="md5 .* was trained on"):
        evaluate(model_dir, data_path=moved)
    with pytest.raises(InputError, match="no file"):
        evaluate(model_dir, data_path=Path("nowhere.csv"))


def test_training_curves_are_drawn(trained, tmp_path):
    _, model_dir = trained
    target = tmp_path / "figures" / "training_statistics.png"
    draw_training_statistics(model_dir, target)
    content = target.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 20_000
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(InputError, match="no trainer_state.json"):
        draw_training_statistics(tmp_path, target)
