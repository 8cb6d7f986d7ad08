"""Intervals are those of the reference, and differences are of the same resamples."""

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import (
    accuracy_score, f1_score, matthews_corrcoef, precision_recall_fscore_support,
)

from nej.judging.intervals import Bootstrap, beyond_noise, interval, scores


@pytest.fixture
def judged():
    """Return labels and predictions, three quarters right, of classes of unlike size."""
    random = np.random.default_rng(1)
    labels = random.choice(4, 600, p=[0.5, 0.3, 0.15, 0.05])
    return labels, np.where(random.random(600) < 0.75, labels, random.integers(0, 4, 600))


def test_scores_are_scikit_learns(judged):
    labels, predicted = judged
    counts = np.zeros((4, 4), int)
    np.add.at(counts, judged, 1)
    found = scores(counts)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    for average in ("macro", "weighted"):
        assert found[f"{average}_f1"] == pytest.approx(
            f1_score(labels, predicted, average=average))
    assert found["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, predicted))
    expected = precision_recall_fscore_support(labels, predicted)
    for name, values in zip(("precision", "recall", "f1"), expected):
        assert found[name] == pytest.approx(values)


def test_one_class_alone_has_no_correlation():
    assert scores(np.array([[5, 0], [0, 0]]))["matthews_correlation"] == 0


def test_a_class_that_a_resample_lacks_is_left_out_of_its_macro_f1():
    found = scores(np.array([[[8, 0, 0], [0, 4, 4], [0, 0, 0]]]))
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(found["f1"][0, 2]) and np.isnan(found["recall"][0, 2])
    assert found["precision"][0, 2] == 0


def test_intervals_are_those_of_scipy(judged):
    labels, predicted = judged
    ours = Bootstrap(600, resamples=4000)
    reference = bootstrap(
        (labels, predicted), lambda a, b: f1_score(a, b, average="macro"), paired=True,
        vectorized=False, n_resamples=1000, method="percentile", rng=0).confidence_interval
    assert interval(scores(ours.confusion(labels, predicted, 4))["macro_f1"]) == pytest.approx(
        reference, abs=0.006)
    right = (labels == predicted).astype(float)
    reference = bootstrap((right,), np.mean, n_resamples=4000, method="percentile", rng=0)
    assert interval(ours.means(right)) == pytest.approx(reference.confidence_interval, abs=0.004)


def test_every_figure_is_of_the_same_resamples(judged):
    labels, predicted = judged
    ours = Bootstrap(600, resamples=50, seed=3)
    counts = ours.confusion(labels, predicted, 4)
    assert (counts.sum((1, 2)) == 600).all()
    assert scores(counts)["accuracy"] == pytest.approx(ours.means(labels == predicted))
    assert (ours.confusion(labels, predicted, 4) == counts).all()
    assert (Bootstrap(600, resamples=50, seed=4).confusion(labels, predicted, 4) != counts).any()


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(judged, monkeypatch):
    labels, predicted = judged
    whole = Bootstrap(600, resamples=50).confusion(labels, predicted, 4)
    monkeypatch.setattr("nej.judging.intervals.DRAWS_AT_ONCE", 600 * 7)
    assert (Bootstrap(600, resamples=50).confusion(labels, predicted, 4) == whole).all()


def test_95_of_100_intervals_hold_the_truth():
    random = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        low, high = interval(Bootstrap(200, resamples=300, seed=seed).means(
            random.random(200) < 0.8))
        held += low <= 0.8 <= high
    assert 0.91 <= held / 300 <= 0.98


def test_a_difference_beyond_noise_is_clear_of_zero():
    assert beyond_noise([0.01, 0.02]) and beyond_noise([-0.02, -0.01])
    assert not beyond_noise([-0.01, 0.02]) and not beyond_noise([0.0, 0.02])
