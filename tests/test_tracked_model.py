"""What W&B is told of a model: tables that hold no more than it shows."""

from types import SimpleNamespace

import numpy as np
import pytest

from nej.experiments.tracked_model import (
    MOST_ROWS, confusion, log_model, misclassified, per_class, summary,
)


def test_of_many_classes_the_confusion_matrix_has_what_happened_most():
    names = [f"class {number}" for number in range(MOST_ROWS // 90)]
    counts = np.zeros((len(names), len(names)), int)
    counts[3, 5], counts[7, 7] = 4, 9
    columns, rows = confusion({"per_class": dict.fromkeys(names),
                               "confusion_matrix": counts.tolist()})
    assert columns == ("Actual", "Predicted", "nPredictions")
    assert rows == [["class 7", "class 7", 9], ["class 3", "class 5", 4]]


@pytest.mark.parametrize("sweep_id, job_type, uploaded", [
    (None, None, True), ("sweep1", None, False), (None, "trial", False)])
def test_the_weights_of_a_trial_are_referred_to_and_not_uploaded(
        tmp_path, sweep_id, job_type, uploaded):
    for name in ("manifest.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    artifacts = []
    log_model(SimpleNamespace(sweep_id=sweep_id, job_type=job_type, log_artifact=artifacts.append),
              tmp_path)
    entries = artifacts[0].manifest.entries
    assert (entries["model.safetensors"].ref is None) == uploaded
    assert entries["manifest.json"].ref is None


def test_a_class_without_papers_has_no_intervals_in_its_table():
    found = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 4, "intervals": {
        "precision": [0.4, 0.6], "recall": None, "f1": None}}
    columns, (row,) = per_class({"per_class": {"cs.AI": found}})
    row = dict(zip(columns, row))
    assert row["class"] == "cs.AI" and row["papers"] == 4
    assert (row["precision_low"], row["precision_high"]) == (0.4, 0.6)
    assert row["recall"] == 0.25 and row["recall_low"] is None


def test_the_misclassified_papers_are_there_the_surest_first(make_judged):
    model = make_judged("one", [0, 1, 2, 3], [0, 2, 1, 3])
    columns, rows = misclassified(model / "predictions.csv")
    assert [row[columns.index("actual")] for row in rows] == ["cs.CL", "cs.CV"]
    assert rows[0][columns.index("link")].startswith("https://arxiv.org/abs/2001.")
    assert rows[0][columns.index("probability")] == 0.8


def test_the_summary_has_both_ends_of_each_interval():
    found = summary({
        "test": {"papers": 9, "accuracy": 0.5, "confusion_matrix": [[1]],
                 "intervals": {"accuracy": [0.4, 0.6]}},
        "baselines": {"majority class": {"accuracy": 0.3, "macro_f1": 0.1}},
        "leads": {"majority class": {"verdict": "better, beyond noise"}}})
    assert found == {
        "test/papers": 9, "test/accuracy": 0.5, "test/accuracy_low": 0.4,
        "test/accuracy_high": 0.6, "baselines/majority class/accuracy": 0.3,
        "baselines/majority class/macro_f1": pytest.approx(0.1),
        "verdicts/majority class": "better, beyond noise"}
