"""Embeddings of test papers: which ones, in what order, and their place in the plane."""

import csv
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nej import InputError
from nej.dataset import load_dataset
from nej.judging import embeddings
from nej.judging.embeddings import load_embeddings, project, sample
from nej.prediction import Classifier
from tests.forked import run_script

ROOT = Path(__file__).resolve().parent.parent


def clusters(papers: int, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    labels = np.arange(papers) % 3
    return 8 * random.normal(size=(3, width))[labels] + random.normal(size=(papers, width)), labels


def test_papers_of_one_class_lie_together_and_twice_at_the_same_place(capfd):
    vectors, labels = clusters(120)
    points = project(vectors, seed=3)
    assert points.shape == (120, 2)
    assert np.array_equal(points, project(vectors.astype(np.float32), seed=3))
    away = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(away, np.inf)
    assert (labels[away.argmin(1)] == labels).all()
    assert capfd.readouterr().err == ""  # the progress bar is for a terminal


@pytest.mark.parametrize("papers, width", [(1, 4), (2, 1), (3, 60), (5, 2), (7, 60), (52, 60)])
def test_few_papers_have_a_place(papers, width):
    points = project(clusters(papers, width)[0], seed=0)
    assert points.shape == (papers, 2) and np.isfinite(points).all()


def test_equal_papers_have_a_place():
    for vectors in (np.ones((40, 8)), np.repeat(clusters(2, 8)[0], 20, axis=0)):
        assert np.isfinite(project(vectors, seed=0)).all()


def test_a_sample_is_seeded_in_order_and_without_repetition():
    rows = sample(100, 10, seed=1)
    assert len(set(rows)) == 10 and list(rows) == sorted(rows) and max(rows) < 100
    assert np.array_equal(rows, sample(100, 10, seed=1))
    assert not np.array_equal(rows, sample(100, 10, seed=2))
    assert list(sample(3, 10, seed=1)) == [0, 1, 2]


@pytest.fixture
def model_dir(trained):
    """Return the directory of a short run."""
    return trained[1]


def test_embeddings_that_are_not_stored_are_those_of_the_test_papers(model_dir):
    classifier = Classifier.load(model_dir)
    papers = load_dataset(classifier.config, classifier.tokenizer)["test"]
    found = load_embeddings(model_dir, most=10)
    rows = sample(len(papers), 10, seed=classifier.config.seed)
    assert found.papers == len(papers) > 10 and found.seed == classifier.config.seed
    assert found.labels == [classifier.names[label] for label in papers.select(rows)["label"]]
    assert found.embeddings == pytest.approx(classifier.run(papers).embeddings[rows], abs=1e-4)


def test_stored_embeddings_are_read_and_go_with_their_classes(model_dir, monkeypatch):
    monkeypatch.setattr(embeddings, "_compute", None)  # it would fail if it were called
    labels = [f"class{row % 4}" for row in range(50)]
    np.save(model_dir / "embeddings.npy", np.arange(50)[:, None] * np.ones(8, np.float16))
    write_predictions(model_dir, labels)
    found = load_embeddings(model_dir, most=20)
    assert found.papers == 50 and len(found.labels) == 20
    assert found.embeddings.dtype == np.float32
    assert found.labels == [labels[int(row)] for row in found.embeddings[:, 0]]
    assert load_embeddings(model_dir).labels == labels


def test_stored_embeddings_of_other_papers_are_refused(model_dir):
    np.save(model_dir / "embeddings.npy", np.ones((50, 8), np.float16))
    write_predictions(model_dir, ["cs.LG"] * 49)
    with pytest.raises(InputError, match="50 papers and predictions.csv 49.*evaluate.py"):
        load_embeddings(model_dir)
    (model_dir / "embeddings.npy").write_bytes(b"half")
    with pytest.raises(InputError, match="cannot be read.*evaluate.py"):
        load_embeddings(model_dir)
    (model_dir / "embeddings.npy").unlink()


def write_predictions(model_dir, labels) -> None:
    with open(model_dir / "predictions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "actual", "predicted", "probability"),
                                    *((n, label, label, 1) for n, label in enumerate(labels))])


def test_the_picture_has_the_name_and_place_that_were_asked_for(model_dir, tmp_path):
    done = visualize(model_dir, "--output", tmp_path, "--figure-name", "papers.png",
                     "--papers", 12)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [
        str(tmp_path / f"{name}.png") for name in ("training_statistics", "papers")]
    assert (tmp_path / "papers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments, said", [
    (["--figure-name", "a/b"], "--figure-name is 'a/b'"),
    (["--figure-name", ".png"], "--figure-name is '.png'"),
    (["--figure-name", "training_statistics"], "is another picture"),
    (["--papers", "0"], "--papers is 0"),
])
def test_a_mistake_in_drawing_ends_with_a_sentence(model_dir, tmp_path, arguments, said):
    done = visualize(model_dir, "--output", tmp_path, *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def visualize(*arguments) -> subprocess.CompletedProcess:
    return run_script("visualize.py", *arguments)
