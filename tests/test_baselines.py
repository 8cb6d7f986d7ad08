"""The soft labels are probabilities that no paper's own label has part in."""

import datasets
import numpy as np
import pytest
import torch

from nej import InputError, baselines
from nej.baselines import baseline_predictions, soft_labels
from nej.dataset import load_dataset
from nej.model import load_classifier, load_tokenizer
from nej.training import train


def papers_of(classes: int, *, random_labels: bool = False) -> datasets.Dataset:
    """Return 300 texts of a few words of their class, in which no two are the same."""
    draw = np.random.default_rng(1)
    labels = draw.integers(0, classes, 300)
    words = draw.integers(0, 12, (300, 9)) + 12 * labels[:, None]
    texts = [" ".join(f"word{w}" for w in row) + f" alone{i} alone{i}"
             for i, row in enumerate(words)]
    if random_labels:
        labels = draw.permutation(labels)
    return datasets.Dataset.from_dict(
        {"text": texts, "label": labels},
        features=datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(
            names=[f"c{index}" for index in range(classes)])}))


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_soft_labels_are_probabilities_of_the_classes(classes, tmp_path):
    papers = papers_of(classes)
    found = soft_labels(papers, tmp_path)
    assert found.shape == (300, classes) and found.dtype == np.float32
    assert np.allclose(found.sum(1), 1, atol=1e-5) and found.min() >= 0
    assert np.mean(found.argmax(1) == np.asarray(papers["label"])) > 0.95


def test_a_papers_own_label_has_no_part_in_them(tmp_path):
    papers = papers_of(3, random_labels=True)  # only a classifier that saw a paper knows its label
    found = soft_labels(papers, tmp_path)
    assert np.mean(found.argmax(1) == np.asarray(papers["label"])) < 0.45
    assert found.max() < 0.8


def test_a_class_of_one_paper_has_no_soft_labels(tmp_path):
    papers = papers_of(3)
    labels = np.asarray(papers["label"])
    some = np.append(np.flatnonzero(labels != 1), np.flatnonzero(labels == 1)[:1])
    with pytest.raises(InputError, match="distillation_weight: 'c1' has 1 training paper"):
        soft_labels(papers.select(some), tmp_path)


def test_costs_are_compared_the_same_in_several_processes(tmp_path, monkeypatch):
    papers = datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), papers_of(3)))
    alone = baseline_predictions(papers, tmp_path / "alone.json")
    monkeypatch.setattr(baselines, "_processes", lambda *_: 2)
    assert baseline_predictions(papers, tmp_path / "several.json") == alone
    assert len(set(alone["TF-IDF + LinearSVC"])) == 3


def test_soft_labels_are_fitted_once_and_the_same_again(tmp_path, monkeypatch):
    first = soft_labels(papers_of(3), tmp_path / "one")
    assert np.array_equal(first, soft_labels(papers_of(3), tmp_path / "two"))
    monkeypatch.setattr(baselines, "LinearSVC", None)  # it would fail if it were called
    assert np.array_equal(first, soft_labels(papers_of(3), tmp_path / "one"))
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["soft_labels.npy"]


def test_a_model_learns_what_the_soft_labels_say(make_config, monkeypatch):
    def rarest_class_always(papers, folder):
        counts = np.bincount(papers["label"])
        return np.eye(len(counts), dtype=np.float32)[np.full(len(papers), counts.argmin())]
    monkeypatch.setattr(baselines, "soft_labels", rarest_class_always)
    result = train(make_config(distillation_weight=1.0))
    model = load_classifier(str(result.model_dir))
    counts = np.bincount(load_dataset(make_config(), load_tokenizer(str(result.model_dir)))[
        "train"]["label"])
    with torch.inference_mode():
        logits = model(torch.randint(5, 100, (20, 30))).logits
    assert (logits.argmax(-1) == counts.argmin()).all()
