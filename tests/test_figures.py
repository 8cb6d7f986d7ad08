"""The pictures of a model directory: which are drawn, and what stands in them."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgba

from nej import InputError, pictures
from nej.judging import figures, judgement_figures
from nej.judging.figures import draw_model
from nej.judging.judgement_figures import (
    draw_confusion_matrix, draw_coverage, draw_embeddings, draw_per_class, draw_reliability,
    draw_slices,
)
from nej.metrics import all_metrics


@pytest.fixture
def drawn(monkeypatch):
    """Return a list that collects the axes of each picture, which stay open for the test."""
    pictures = []

    @contextmanager
    def picture(target, *, size, rows=1, columns=1, **layout):
        figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", **layout)
        yield figure, axes
        figure.canvas.draw()
        pictures.append(figure)

    for module in (figures, judgement_figures):
        monkeypatch.setattr(module, "picture", picture)
    yield pictures
    pyplot.close("all")


def judged(classes: int, papers: int = 400) -> dict:
    """Return test metrics with intervals, of made-up predictions."""
    random = np.random.default_rng(classes)
    labels = np.concatenate([np.arange(classes), random.integers(classes, size=papers)])
    given = np.where(random.random(len(labels)) < 0.8, labels, random.integers(
        classes, size=len(labels)))
    metrics = all_metrics(given, labels, names=[f"cs.{n:02}" for n in range(classes)])
    for found in metrics["per_class"].values():
        found["intervals"] = {"f1": [max(0, found["f1"] - 0.1), min(1, found["f1"] + 0.05)]}
    return metrics


BINS = [{"confidence": None, "accuracy": None, "interval": None, "papers": 0},
        {"confidence": 0.4, "accuracy": 0.5, "interval": [0.3, 0.7], "papers": 20},
        {"confidence": 0.9, "accuracy": 0.8, "interval": [0.75, 0.85], "papers": 80}]
ERROR = {"before": 0.2, "after": 0.1}
COVERAGE = [{"threshold": t, "coverage": c, "accuracy": a, "interval": [a - 0.1, min(1, a + 0.1)]}
            for t, c, a in ((0, 1.0, 0.74), (0.5, 0.8, 0.8), (0.9, 0.3, 0.95))]
COVERAGE += [{"threshold": 1.0, "coverage": 0.0, "accuracy": None, "interval": None}]
WANTED = {"0.8": COVERAGE[1], "0.99": None}
SLICES = [{"slice": "year", "value": "2019", "papers": 1200, "accuracy": 0.8,
           "interval": [0.78, 0.82]},
          {"slice": "tokens", "value": "under 64", "papers": 30, "accuracy": 0.9,
           "interval": [0.7, 0.97]},
          {"slice": "year", "value": "2020", "papers": 10, "accuracy": 0.5,
           "interval": [0.2, 0.8]}]


def texts(thing) -> str:
    """Return everything that is written in a figure."""
    return "\n".join(text.get_text() for text in thing.findobj(pyplot.Text))


def heights(bars) -> list[float]:
    return [bar.get_height() for bar in bars]


@pytest.mark.parametrize("classes", [2, 53])
def test_classes_are_sorted_by_f1_with_their_intervals_and_papers(drawn, tmp_path, classes):
    metrics = judged(classes)
    draw_per_class(metrics, tmp_path / "p.png")
    axis, = drawn[0].axes
    line, _, (bars,) = axis.containers[0]
    best = list(line.get_xdata())
    assert best == sorted(best, reverse=True) and len(best) == classes
    names = sorted(metrics["per_class"], key=lambda name: -metrics["per_class"][name]["f1"])
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        f"{name} ({metrics['per_class'][name]['support']:,})" for name in names]
    drawn_interval = bars.get_segments()[0][:, 0]
    assert drawn_interval == pytest.approx(metrics["per_class"][names[0]]["intervals"]["f1"])
    assert axis.yaxis_inverted()  # the best at the top
    assert f"macro F1 {metrics['macro_f1']:.3f}" in texts(drawn[0])
    assert f"accuracy {metrics['accuracy']:.3f}" in texts(drawn[0])


@pytest.mark.parametrize("classes", [2, 5, 53])
def test_a_confusion_matrix_shows_shares_of_the_true_class_and_no_name_on_another(
        drawn, tmp_path, classes):
    metrics = judged(classes)
    draw_confusion_matrix(metrics, tmp_path / "c.png")
    axis = drawn[0].axes[0]
    shares = np.asarray(axis.images[0].get_array())
    assert shares.sum(1) == pytest.approx(np.ones(classes))
    assert shares[0, 0] == pytest.approx(metrics["per_class"]["cs.00"]["recall"])
    if classes == 53:  # there is no room for counts
        assert not axis.texts
    else:
        assert axis.texts[0].get_text().startswith(f"{metrics['confusion_matrix'][0][0]}\n")
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert not overlapping(labels)


def test_reliability_draws_the_bins_that_have_papers(drawn, tmp_path):
    draw_reliability({"bins": BINS, "expected_calibration_error": ERROR}, tmp_path / "r.png")
    top, bottom = drawn[0].axes
    line, _, (bars,) = top.containers[0]
    assert np.array_equal(line.get_xydata(), [[0.4, 0.5], [0.9, 0.8]])
    assert bars.get_segments()[0][:, 1] == pytest.approx([0.3, 0.7])
    assert heights(bottom.patches) == [0, 20, 80]
    assert bottom.patches[1].get_x() == pytest.approx(1 / 3)
    for part in ("100 test papers", "0.100", "0.200"):
        assert part in top.get_title()


def test_coverage_falls_and_the_wanted_accuracy_is_marked(drawn, tmp_path):
    draw_coverage(COVERAGE, tmp_path / "c.png", papers=1234, wanted=WANTED)
    axis, = drawn[0].axes
    assert np.array_equal(axis.lines[0].get_xydata(), [[0.3, 0.95], [0.8, 0.8], [1, 0.74]])
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend[1:] == ["80 % wanted: 80 % answered (confidence from 0.50)"]  # 99 cannot be had
    assert "1,234 test papers" in axis.get_title()


def test_a_threshold_that_no_paper_reaches_is_not_marked(drawn, tmp_path):
    draw_coverage(COVERAGE, tmp_path / "c.png", papers=5, wanted={"0.95": COVERAGE[3]})
    legend = drawn[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["95 % interval"]


def test_slices_stand_under_their_heading(drawn, tmp_path):
    draw_slices(SLICES, tmp_path / "s.png", overall=0.81)
    axis, = drawn[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "year", "2019 (1,200)", "2020 (10)", "tokens", "under 64 (30)"]
    line, _, (bars,) = axis.containers[0]
    assert np.array_equal(line.get_xydata(), [[0.8, 1], [0.5, 2], [0.9, 4]])
    assert bars.get_segments()[2][:, 0] == pytest.approx([0.7, 0.97])
    assert "all: 0.810" in texts(axis)
    assert axis.get_xlim() == pytest.approx((0.65, 1))  # 2020 has 10 papers, and goes to 0.2


def test_of_many_classes_the_largest_have_colours_and_all_have_names(drawn, tmp_path):
    random = np.random.default_rng(0)
    labels = [f"c{n:02}" for n in range(50) for _ in range(5 + n)]
    draw_embeddings(random.normal(size=(len(labels), 2)), labels, tmp_path / "e.png", title="T")
    axis = drawn[0].axes[0]
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend[0] == "c49 (54)" and len(legend) == len(pictures.PALETTE) + 1
    assert legend[-1] == f"42 others ({len(labels) - sum(range(47, 55)):,})"
    # at 50 names in one heap all can be read
    assert {text.get_text() for text in axis.texts} == set(labels)
    assert not overlapping(axis.texts)


def test_long_names_of_classes_can_be_read(drawn, tmp_path):
    names = ["Computer Vision and Pattern Recognition", "Machine Learning", "Robotics",
             "Computation and Language (Natural Language Processing)", "Artificial Intelligence"]
    metrics = judged(5)
    metrics["per_class"] = dict(zip(names, metrics["per_class"].values()))
    draw_confusion_matrix(metrics, tmp_path / "c.png")
    assert not overlapping(drawn[0].axes[0].get_xticklabels())
    draw_embeddings(np.zeros((10, 2)), names * 2, tmp_path / "e.png", title="T")
    box, figure = drawn[1].legends[0].get_window_extent(), drawn[1].bbox
    assert figure.x0 <= box.x0 and box.x1 <= figure.x1
    assert not overlapping(drawn[1].axes[0].texts)


def test_papers_have_the_colour_of_their_class(drawn, tmp_path):
    points = np.array([[0, 0], [1, 1], [2, 2], [9, 9], [8, 8]], float)
    draw_embeddings(points, ["a", "b", "b", "a", "b"], tmp_path / "e.png", title="T")
    first, second = drawn[0].axes[0].collections
    assert np.array_equal(first.get_offsets(), points[[1, 2, 4]])  # the largest class first
    assert np.array_equal(second.get_offsets(), points[[0, 3]])
    assert tuple(first.get_facecolor()[0][:3]) == to_rgba(pictures.BLUE)[:3]


def test_a_model_directory_is_drawn_as_far_as_it_goes(tmp_path):
    model, folder = tmp_path / "model", tmp_path / "figures"
    with pytest.raises(InputError, match="no trainer_state.json"):
        draw_model(model, folder)
    model.mkdir()
    history = [{"step": step, "loss": 1 / step, "learning_rate": 0.1} for step in range(1, 9)]
    history += [{"step": 8, "eval_loss": 0.3, "eval_accuracy": 0.8, "eval_macro_f1": 0.7}]
    write(model / "trainer_state.json", {
        "log_history": history, "max_steps": 8, "global_step": 8, "epoch": 1.0,
        "best_global_step": 8})
    assert names(draw_model(model, folder)) == ["training_statistics"]
    metrics = judged(3)
    plain = {**metrics, "per_class": {
        name: {key: value for key, value in found.items() if key != "intervals"}
        for name, found in metrics["per_class"].items()}}
    write(model / "metrics.json", {"validation": {}, "test": plain})
    write(model / "calibration.json", {"temperature": 1.2})
    assert names(draw_model(model, folder)) == ["training_statistics", "confusion_matrix"]
    write(model / "metrics.json", {"validation": {}, "test": metrics, "slices": SLICES})
    write(model / "calibration.json", {"temperature": 1.2, "test": {
        "bins": BINS, "expected_calibration_error": ERROR, "coverage": COVERAGE,
        "wanted": WANTED}})
    pictures = draw_model(model, folder)
    assert names(pictures) == ["training_statistics", "confusion_matrix", "per_class", "slices",
                               "reliability", "coverage"]
    assert set(folder.iterdir()) == set(pictures)
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")


def overlapping(labels) -> bool:
    boxes = [label.get_window_extent() for label in labels]
    return any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


def write(path, content) -> None:
    path.write_text(json.dumps(content), "utf-8")


def names(pictures) -> list[str]:
    return [path.stem for path in pictures]
