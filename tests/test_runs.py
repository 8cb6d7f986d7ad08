"""The list of runs: what is in models/, sorted, filtered, and two of them side by side."""

import csv
import json
import subprocess
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest

from nej import InputError
from nej.config import Config
from nej.experiments.runs import COLUMNS, Run, compare_runs, differences, list_runs
from nej.files import write_json
from tests.forked import run_script

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def models(tmp_path) -> Path:
    """Return a folder with three runs, one of them not judged, and what is no finished run."""
    folder = tmp_path / "models"
    for number, (name, changes, test) in enumerate([
            ("first", {}, 0.7), ("second", {"learning_rate": 1e-3, "text_fields": "title+summary"},
                                 0.8), ("third", {"top_k": 5}, None)]):
        config = replace(Config(), output_dir=f"models/{name}", **changes)
        write_json(folder / name / "training_config.json", asdict(config))
        write_json(folder / name / "manifest.json", {
            "finished": f"2026-01-0{number + 1}T10:00:00+00:00", "training_seconds": 90 * number,
            "papers": {"train": 1000 + number}, "data": {"md5": "0123456789abcdef"},
            "git": {"commit": "fedcba9876543210", "dirty": number == 1}})
        judged = {} if test is None else {"test": {
            "macro_f1": test, "accuracy": 0.9, "papers": 50,
            "intervals": {"macro_f1": [test - 0.01, test + 0.01], "accuracy": [0.88, 0.92]}}}
        write_json(folder / name / "metrics.json", {
            "validation": {"macro_f1": 0.6 + number / 10, "accuracy": 0.5}} | judged)
        write_json(folder / name / "trainer_state.json", {"log_history": [
            {"step": 1, "loss": 1.5}, {"step": 2, "loss": 1.0},
            {"step": 2, "eval_loss": 1.1, "eval_accuracy": 0.5, "eval_macro_f1": 0.4}]})
    write_json(folder / "starter" / "config.json", {})
    (folder / "fourth.partial").mkdir()
    (folder / "production").symlink_to("second", target_is_directory=True)
    return folder


def names(runs: list[Run]) -> list[str]:
    return [run.name for run in runs]


def test_finished_runs_are_listed_the_newest_first(models):
    assert names(list_runs(models)) == ["third", "second", "first"]


def test_they_are_sorted_by_figures_and_settings(models):
    assert names(list_runs(models, sort="macro_f1")) == ["second", "first", "third"]
    assert names(list_runs(models, sort="validation_macro_f1")) == ["third", "second", "first"]
    assert names(list_runs(models, sort="learning_rate"))[0] == "second"
    assert names(list_runs(models, sort="top_k")) == ["third", "first", "second"]


def test_they_are_filtered(models):
    assert names(list_runs(models, where=["text_fields=summary"])) == ["third", "first"]
    assert names(list_runs(models, where=["text_fields=summary", "top_k=null"])) == ["first"]
    assert names(list_runs(models, where=["learning_rate=0.001"])) == ["second"]
    assert list_runs(models, where=["seed=7"]) == []
    for rate in ("5e-5", "0.00005", "5e-05"):
        assert names(list_runs(models, where=[f"learning_rate={rate}"])) == ["third", "first"]
    assert names(list_runs(models, where=["top_k=5.0"])) == ["third"]
    assert list_runs(models, where=["top_k=many"]) == []
    for text in ("false", "False"):
        assert len(list_runs(models, where=[f"overwrite_output_dir={text}"])) == 3


@pytest.mark.parametrize("name, content", [
    *product(["manifest.json", "metrics.json", "training_config.json"], ["[]", "{", "3"]),
    ("manifest.json", "{}"), ("metrics.json", "{}"), ("manifest.json", '{"finished": 3}')])
def test_a_broken_directory_is_left_out_of_the_list_and_named(models, caplog, name, content):
    (models / "first" / name).write_text(content)
    assert names(list_runs(models)) == ["third", "second"]
    assert "first is not a finished model directory" in caplog.text


def test_a_folder_with_nothing_but_a_manifest_does_not_block_the_list(models, caplog):
    write_json(models / "broken" / "manifest.json", {})
    assert names(list_runs(models)) == ["third", "second", "first"]
    assert "broken is not a finished model directory" in caplog.text


@pytest.mark.parametrize("options, message", [
    ({"sort": "mackro"}, "runs have no 'mackro'"), ({"where": ["colour=red"]}, "no 'colour'"),
    ({"where": ["seed"]}, "is no condition; give key=value"),
])
def test_mistakes_are_explained(models, options, message):
    with pytest.raises(InputError, match=message):
        list_runs(models, **options)


def test_a_row_tells_what_differs_from_the_base(models):
    row = dict(zip(COLUMNS, Run.load(models / "second").row(Config())))
    assert row["settings"] == "text_fields=title+summary learning_rate=0.001"
    assert row["macro F1"] == "0.800 (0.790-0.810)" and row["commit"] == "fedcba98+"
    assert row["minutes"] == "1.5" and row["finished"] == "2026-01-02 10:00"
    assert dict(zip(COLUMNS, Run.load(models / "third").row(Config())))["macro F1"] == ""


def test_places_are_no_difference():
    one, other = asdict(Config()), asdict(replace(Config(), output_dir="x", seed=3))
    assert differences(one, other) == {"seed": 3}


def test_two_runs_side_by_side(models):
    rows = {row[0]: row[1:] for row in compare_runs(*(
        Run.load(models / name) for name in ("first", "second")))}
    assert rows["learning_rate"] == ("5e-05", "0.001", "")
    assert rows["test macro_f1"] == ("0.7000", "0.8000", "+0.1000")
    assert rows["minutes"] == ("0", "1.5", "+1.5")
    assert "seed" not in rows and "test papers" not in rows


def test_the_script_lists_writes_and_draws(models, tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return run_script("runs.py", *arguments, cwd=tmp_path)
    done = run("--csv", "runs.csv", "--sort", "macro_f1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("second")
    with open(tmp_path / "runs.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["second", "first", "third"]
    assert [rows[0][key] for key in ("macro_f1", "macro_f1_low", "macro_f1_high", "papers")] == [
        "0.8", "0.79", "0.81", "1001"]
    assert rows[0]["data_md5"] == "0123456789abcdef" and rows[0]["commit"] == "fedcba9876543210"
    assert json.loads(rows[0]["settings"]) == {
        "text_fields": "title+summary", "learning_rate": 1e-3}
    assert rows[2]["macro_f1"] == ""
    done = run("--compare", "models/first", "models/second")
    assert done.returncode == 0, done.stderr
    assert "learning_rate" in done.stdout
    assert (tmp_path / "reports/figures/runs.png").read_bytes().startswith(b"\x89PNG")
    done = run("--where", "max_length=999", "--where", "seed=1", "--csv", "none.csv")
    assert done.returncode == 0 and not (tmp_path / "none.csv").exists()
    assert done.stdout == ("no finished run in models meets max_length=999 and seed=1; none.csv is "
                           "not written\n")
    done = run("nowhere")
    assert done.returncode == 2 and "no folder nowhere" in done.stderr
    (models / "first" / "manifest.json").write_text(json.dumps({}) + "{")
    assert "first is not a finished model directory" in run().stderr
