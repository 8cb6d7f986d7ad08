"""A model is judged on its test papers, beside baselines, from its directory alone."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from sklearn.metrics import accuracy_score, f1_score

from nej import InputError, baselines
from nej.config import load_config
from nej.dataset import load_dataset
from nej.judging.evaluation import evaluate
from nej.judging.figures import draw_training_statistics
from nej.judging.report import write_report
from nej.model import load_classifier, load_tokenizer
from nej.prediction import Backend, Classifier


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
    with open(model_dir / "label_issues.csv", encoding="utf-8", newline="") as file:
        assert metrics["label_issues"]["issues"] == len([*csv.DictReader(file)]) < len(papers)


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


def test_words_weigh_the_same_the_first_time_as_the_second(trained):
    """The temperature is not in the model directory before the first time."""
    _, model_dir = trained
    evaluate(model_dir)
    first = (model_dir / "mistakes.json").read_bytes()
    evaluate(model_dir)
    assert json.loads((model_dir / "calibration.json").read_text("utf-8"))["temperature"] != 1
    assert (model_dir / "mistakes.json").read_bytes() == first


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
    before = ModelCard.load(model_dir / "README.md")
    assert "not judged on test papers yet" in before.text and before.data.eval_results is None
    for name in ("calibration.json", "label_issues.csv", "report.html", "metrics.json"):
        assert f"`{name}`" not in before.text
    report = evaluate(model_dir)
    card = ModelCard.load(model_dir / "README.md")
    assert f"| **this model** | {report.test['macro_f1']:.3f} (" in card.text
    assert config.model_name_or_path in card.text and "LinearSVC" in card.text
    assert "(`calibration.json`)" in card.text and "`label_issues.csv` lists" in card.text
    assert {one.metric_name: one.metric_value for one in card.data.eval_results} == {
        key: round(report.test[key], 4) for key in ("accuracy", "macro_f1")}


def test_the_report_needs_no_other_file(judged):
    _, model_dir = judged
    report = evaluate(model_dir)
    page = (model_dir / "report.html").read_text("utf-8")
    assert report.leads["TF-IDF + LinearSVC"]["verdict"] in page
    assert 'src="data:image/png;base64,' in page and 'src="figures/' not in page
    assert "http" not in re.sub(r'href="https://arxiv.org/[^"]*"', "", page)
    for name in report.test["per_class"]:
        assert f"<td>{name}</td>" in page
    text = (model_dir / "report.md").read_text("utf-8")
    for picture in re.findall(r"\(figures/(\w+\.png)\)", text):
        assert (model_dir / "figures" / picture).is_file()
    assert "## Labels that are probably wrong" in text and "Matthews correlation" in text


def test_pictures_that_were_not_drawn_this_time_are_not_in_the_report(judged):
    _, model_dir = judged
    write_report(model_dir, model_dir, pictures=[model_dir / "figures" / "slices.png"])
    text = (model_dir / "report.md").read_text("utf-8")
    assert (model_dir / "figures" / "coverage.png").is_file()
    assert re.findall(r"figures/(\w+)\.png", text) == ["slices"]


def test_a_title_cannot_put_anything_into_the_page(judged):
    _, model_dir = judged
    found = json.loads((model_dir / "mistakes.json").read_text("utf-8"))
    found[0] |= {"title": "<script>alert(1)</script> | ![x](http://evil) $\\LaTeX$",
                 "summary": "</p><img src=x onerror=alert(2)> [a](javascript:alert(3)) `b`"}
    (model_dir / "mistakes.json").write_text(json.dumps(found), "utf-8")
    write_report(model_dir, model_dir, pictures=[])
    page = (model_dir / "report.html").read_text("utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; | ![x](http://evil) $\\LaTeX$" in page
    assert "<script" not in page and "<img src=x" not in page and 'href="javascript' not in page


def test_the_words_that_were_left_out_are_bold_and_no_others(judged):
    _, model_dir = judged
    found = json.loads((model_dir / "mistakes.json").read_text("utf-8"))
    words = [{"word": word, "log_odds": 1.0} for word in ("supervised", "self-taught", "strong")]
    found[0] |= {"words": words, "summary":
                 "2. Self-supervised is not Supervised or a*supervised_model*; self-taught, taught"}
    (model_dir / "mistakes.json").write_text(json.dumps(found), "utf-8")
    write_report(model_dir, model_dir, pictures=[])
    assert ("<p>2. Self-supervised is not <strong>Supervised</strong> or a*<strong>supervised"
            "</strong>_model*; <strong>self-taught</strong>, taught</p>"
            ) in (model_dir / "report.html").read_text("utf-8")


def test_classes_that_accuracy_hides_are_named(judged):
    _, model_dir = judged
    metrics = json.loads((model_dir / "metrics.json").read_text("utf-8"))
    name, found = next(iter(metrics["test"]["per_class"].items()))
    found["f1"] = 0.1
    (model_dir / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    write_report(model_dir, model_dir, pictures=[])
    text = (model_dir / "report.md").read_text("utf-8")
    assert "Accuracy hides" in text and f"papers: {name}" in text.replace("\n", " ")


def test_runs_that_differ_in_the_seed_are_put_together(judged):
    config, model_dir = judged
    second = model_dir.with_name("second")
    shutil.copytree(model_dir, second)
    values = json.loads((second / "training_config.json").read_text("utf-8"))
    (second / "training_config.json").write_text(json.dumps(values | {"seed": 7}), "utf-8")
    other = model_dir.with_name("other")
    shutil.copytree(second, other)
    (other / "training_config.json").write_text(
        json.dumps(values | {"seed": 8, "learning_rate": 0.5}), "utf-8")
    evaluate(model_dir)
    seeds = json.loads((model_dir / "metrics.json").read_text("utf-8"))["seeds"]
    assert {name: run["seed"] for name, run in seeds["runs"].items()} == {
        model_dir.name: config.seed, "second": 7}
    assert seeds["standard_deviation"]["accuracy"] == 0


def test_another_model_is_compared_on_the_same_papers(judged, tmp_path):
    _, model_dir = judged
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    report = evaluate(model_dir, against=other)
    assert report.leads[str(other)]["accuracy"] == {"difference": 0.0, "interval": [0.0, 0.0]}
    assert "not told apart" in report.leads[str(other)]["verdict"] and "not told" in report.table()
    lines = (other / "predictions.csv").read_text("utf-8").splitlines(keepends=True)
    (other / "predictions.csv").write_text("".join(lines[:-3]), "utf-8")
    with pytest.raises(InputError, match="judged on other papers.* reports/other-on-FILE$"):
        evaluate(model_dir, against=other)
    aside = shutil.copytree(other, tmp_path / "reports/other-on-feed")
    with pytest.raises(InputError, match="judged on other papers.*; judge both on the same$"):
        evaluate(model_dir, against=aside)
    with pytest.raises(InputError, match="judge that model first"):
        evaluate(model_dir, against=tmp_path)


def test_a_file_is_judged_aside(judged, tmp_path, monkeypatch):
    config, model_dir = judged
    before = {file: file.read_bytes() for file in model_dir.rglob("*") if file.is_file()}
    names = load_classifier(str(model_dir)).config.id2label
    rows = [{"id": f"2503.{number:05}", "title": "A title", "summary": f"Some words {number}.",
             "categories": [names[number % 3], names[(number + 1) % 3]]} for number in range(1, 31)]
    file = tmp_path / "feed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    taken = Path(config.reports_dir) / "model-on-feed"
    taken.parent.mkdir(exist_ok=True)
    taken.write_text("a file")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="cannot write .*on-feed"):
        patch.delattr(Backend, "run")  # it is told before the work
        evaluate(model_dir, papers_path=file)
    taken.unlink()
    report = evaluate(model_dir, papers_path=file)
    assert report.folder == Path(config.reports_dir) / "model-on-feed"
    assert report.test["papers"] == 30 and (report.folder / "report.html").is_file()
    assert "is cross-listed" in (report.folder / "report.md").read_text("utf-8")
    assert {file: file.read_bytes() for file in before} == before


def test_another_model_is_compared_on_the_same_file(judged, tmp_path):
    config, model_dir = judged
    other = Path(shutil.copytree(model_dir, tmp_path / "other"))
    file = tmp_path / "news.jsonl"
    category = load_classifier(str(model_dir)).config.id2label[0]
    file.write_text("".join(json.dumps({
        "id": f"2505.{number:05}", "title": "T", "summary": f"Some words {number}.",
        "categories": category}) + "\n" for number in range(1, 11)), "utf-8")
    with pytest.raises(InputError, match="--against reports/other-on-FILE"):
        evaluate(model_dir, papers_path=file, against=other)
    folder = evaluate(other, papers_path=file).folder
    assert folder == Path(config.reports_dir) / "other-on-news"
    assert str(folder) in evaluate(model_dir, papers_path=file, against=folder).leads


def test_baselines_read_papers_again_that_were_corrected(judged, tmp_path):
    config, model_dir = judged
    papers = load_dataset(config, load_tokenizer(str(model_dir)))["train"]
    names, labels = papers.features["label"].names, np.asarray(papers["label"])
    file, found = tmp_path / "feed.jsonl", []
    for label in (0, 1):  # the texts of one class, then of another, under the same ids and labels
        texts = [papers[row]["text"] for row in np.flatnonzero(labels == label)[:20].tolist()]
        file.write_text("".join(json.dumps({
            "id": f"2504.{number:05}", "title": "", "summary": text, "categories": names[0]}) + "\n"
            for number, text in enumerate(texts, 1)), "utf-8")
        report = evaluate(model_dir, papers_path=file)
        found.append(report.baselines["TF-IDF + LinearSVC"]["accuracy"])
    assert found[0] > 0.9 and found[1] < 0.1


def test_names_of_categories_are_not_looked_up_among_the_codes_of_cross_lists(judged, tmp_path):
    _, model_dir = judged
    path = model_dir / "training_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_column": "category"}))
    config = load_config(path)
    names = load_dataset(config, load_tokenizer(str(model_dir)))["test"].features["label"].names
    path = model_dir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {
        "id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}))
    file = tmp_path / "feed.jsonl"
    file.write_text("".join(json.dumps({
        "id": f"2503.{number:05}", "title": "A title", "summary": f"Some words {number}.",
        "category": names[number % 3], "categories": ["cs.LG", "cs.CV", "cs.CL"]}) + "\n"
        for number in range(1, 31)), "utf-8")
    report = evaluate(model_dir, papers_path=file)
    metrics = json.loads((report.folder / "metrics.json").read_text("utf-8"))
    assert report.test["papers"] == 30 and "cross_lists" not in metrics


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
