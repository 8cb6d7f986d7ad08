"""Confidence that can be believed: temperature, reliability, coverage, thresholds."""

import numpy as np
import pytest
import torch

from nej.judging.calibration import (
    answered, calibrate, coverage, expected_calibration_error, fit_temperature, judge_calibration,
    reliability, threshold_for,
)
from nej.metrics import Predictions


def make(confidence, right) -> Predictions:
    """Return two-class predictions of these confidences (over 1/2), right or not."""
    confidence = np.asarray(confidence, float)
    labels = np.where(np.asarray(right, bool), 0, 1)
    return Predictions([str(i) for i in range(len(labels))], labels,
                       np.stack([confidence, 1 - confidence], 1), ["a", "b"])


def draw_logits(papers: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, and labels drawn by the probabilities that they say."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(papers, 3)).astype(np.float32)
    chances = torch.from_numpy(logits).double().softmax(-1).numpy()
    return logits, np.array([random.choice(3, p=p) for p in chances])


def test_temperature_mends_logits_that_are_too_sure():
    logits, labels = draw_logits()
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.1)
    assert fit_temperature(4 * logits, labels) == pytest.approx(4, abs=0.4)


def test_calibration_error_by_hand():
    # bins of width 1/15: 0.62 lies in the tenth, 0.97 in the last
    found = make([0.62] * 4 + [0.97] * 6, [1, 1, 0, 0] + [1] * 6)
    assert expected_calibration_error(found) == pytest.approx(
        0.4 * abs(0.62 - 0.5) + 0.6 * abs(0.97 - 1.0))
    bins = {index: one for index, one in enumerate(reliability(found)) if one["papers"]}
    assert set(bins) == {9, 14} and bins[9]["accuracy"] == 0.5 and bins[14]["papers"] == 6
    assert bins[9]["interval"] == pytest.approx([0.150, 0.850], abs=0.001)  # Wilson, 2 of 4
    assert reliability(found)[0]["accuracy"] is None


def test_full_confidence_has_a_bin():
    assert reliability(make([1.0], [1]))[-1]["papers"] == 1


def test_calibrated_predictions_have_a_small_error_and_sure_ones_a_large_one():
    logits, labels = draw_logits()
    calibration = calibrate(4 * logits, labels, ["a", "b", "c"])
    sides = [Predictions([], labels, torch.from_numpy(logits * scale).double().softmax(-1).numpy(),
                         ["a", "b", "c"]) for scale in (4, 1)]
    found = judge_calibration(calibration, *sides)["expected_calibration_error"]
    assert found["after"] < 0.03 and found["before"] > 0.15
    losses = calibration["validation_log_loss"]
    assert losses["after"] < losses["before"]


def test_threshold_is_the_lowest_that_reaches_the_accuracy():
    found = make([0.9, 0.8, 0.7, 0.6, 0.55], [1, 1, 0, 1, 0])
    assert threshold_for(found, 1.0) == 0.8
    assert threshold_for(found, 0.75) == 0.6
    assert threshold_for(found, 0.5) == 0.55
    assert threshold_for(make([0.9, 0.8], [0, 0]), 0.5) is None
    assert answered(found, 0.6) | {"interval": None} == {
        "threshold": 0.6, "coverage": 0.8, "papers": 4, "accuracy": 0.75, "interval": None}


def test_papers_of_the_same_confidence_are_answered_together():
    found = make([0.9, 0.9, 0.6], [1, 0, 0])
    assert threshold_for(found, 1.0) is None  # not the first 0.9 alone
    assert threshold_for(found, 0.5) == 0.9


def test_coverage_ends_with_all_papers():
    random = np.random.default_rng(0)
    found = coverage(make(0.5 + random.random(300) / 2, random.random(300) < 0.8))
    assert [one["coverage"] for one in found] == sorted(one["coverage"] for one in found)
    assert found[-1]["papers"] == 300 and found[-1]["coverage"] == 1
    assert len(coverage(make([0.7], [1]))) == 1
