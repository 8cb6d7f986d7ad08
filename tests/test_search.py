"""A search without W&B: whatever is killed, each trial is made once and none is lost."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from nej import InputError
from nej.config import load_config
from nej.experiments.search import Search, search
from nej.experiments.sweep import load_sweep
from nej.experiments.sweep_report import write_report
from nej.experiments.trial import Outcome

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(__file__).parent / "trial_program" / "train.py"


@pytest.fixture
def make_sweep(tmp_path, monkeypatch):
    """Return a function that writes a sweep of cheap trials and loads it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nej.experiments.trial.POLL_SECONDS", 0.02)
    (tmp_path / "base.json").write_text('{"top_k": 3, "report_to": "none"}')

    def make(overrides=(), **changes):
        content = {
            "name": "small", "method": "random", "metric": {
                "name": "eval/macro_f1", "goal": "maximize"},
            "command": [sys.executable, str(PROGRAM), "--config", "base.json", "${args}"],
            "parameters": {
                "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1},
                "text_fields": {"values": ["summary", "title+summary"]},
                "output_dir": {"value": "models/$WANDB_RUN_ID"}}} | changes
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
        return load_sweep(tmp_path / "sweep.yaml", list(overrides))
    return make


def run(sweep, count: int, jobs: int = 1) -> Search:
    """Search to the end in this process."""
    return search(sweep, Path("kept"), count=count, jobs=jobs, stop=threading.Event())


def starts() -> list[tuple[str, int, int]]:
    """Return id, first validation and process of each start of a trial's program."""
    lines = Path("models/starts.txt").read_text().splitlines()
    return [(name, int(first), int(pid)) for name, first, pid in map(str.split, lines)]


def states(found: Search) -> list[str]:
    return [trial.state.name for trial in found.trials()]


def test_it_ends_with_a_table_a_picture_and_the_best_settings_as_a_config(make_sweep):
    found = run(make_sweep(), 8)
    told = write_report(found)
    best = max(found.trials(), key=lambda trial: trial.value)
    with open("kept/trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["eval_macro_f1"]) for row in rows] == sorted(
        (trial.value for trial in found.trials()), reverse=True)
    assert float(rows[0]["learning_rate"]) == best.params["learning_rate"]
    assert {row["validations"] for row in rows} == {"5"}
    assert "importance" in told and "learning_rate" in told.split("importance")[1]
    assert Path("kept/search.png").read_bytes().startswith(b"\x89PNG")
    config = load_config(Path("kept/best.json"))
    assert config.learning_rate == best.params["learning_rate"] and config.top_k == 3
    assert config.text_fields == best.params["text_fields"]
    assert config.output_dir == "models/small-best" and config.do_predict


def test_bayes_comes_nearer_than_random(make_sweep):
    errors = {}
    for method in ("random", "bayes"):
        found = search(make_sweep(method=method, name=method), Path(method), count=16, jobs=1,
                       stop=threading.Event())
        values = sorted((trial.value for trial in found.trials()), reverse=True)
        errors[method] = 1 - sum(values[:4]) / 4
    assert errors["bayes"] < errors["random"]


def test_a_grid_is_tried_from_end_to_end_once(make_sweep):
    sweep = make_sweep(method="grid", parameters={
        "learning_rate": {"values": [1e-4, 1e-3]}, "global_batch_size": {"min": 8, "max": 10},
        "output_dir": {"value": "models/$WANDB_RUN_ID"}})
    found = run(sweep, 4)
    assert states(found) == ["COMPLETE"] * 4 + ["WAITING"] * 2
    found = run(sweep, 99)
    assert states(found) == ["COMPLETE"] * 6
    points = [(trial.params["learning_rate"], trial.params["global_batch_size"])
              for trial in found.trials()]
    assert sorted(points) == [(rate, size) for rate in (1e-4, 1e-3) for size in (8, 9, 10)]


def test_a_grid_whose_agent_was_killed_at_its_beginning_is_whole_and_has_nothing_twice(
        make_sweep, monkeypatch):
    sweep = make_sweep(method="grid", parameters={
        "learning_rate": {"values": [1e-4, 1e-3, 1e-3]}, "top_k": {"values": [None, 3]},
        "output_dir": {"value": "models/$WANDB_RUN_ID"}})
    for last in (2, 6):
        calls = []

        def enqueue(study, point, enqueue=optuna.Study.enqueue_trial):
            if len(calls) == last:
                raise KeyboardInterrupt
            calls.append(point)
            enqueue(study, point)

        def ended(study, key, value, set_user_attr=optuna.Study.set_user_attr):
            if key == "sweep":
                raise KeyboardInterrupt
            set_user_attr(study, key, value)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(optuna.Study, "enqueue_trial", enqueue)
            patch.setattr(optuna.Study, "set_user_attr", ended)
            Search(sweep, Path("kept"))
    found = Search(sweep, Path("kept"))
    assert [trial.system_attrs["fixed_params"] for trial in found.trials()] == sweep.grid()


def test_each_trial_is_a_run_in_the_sweeps_project_that_uploads_no_weights(
        make_sweep, monkeypatch):
    environments = []

    def trial(command, environment, *arguments):
        environments.append(environment)
        return SimpleNamespace(run=lambda report, stop: Outcome("finished", 0.5))
    monkeypatch.setattr("nej.experiments.search.TrialRun", trial)
    found = run(make_sweep(project="papers", entity="team"), 1)
    assert environments == [{
        "WANDB_RUN_ID": found.name(found.trials()[0]), "WANDB_RUN_GROUP": "small",
        "WANDB_JOB_TYPE": "trial", "WANDB_PROJECT": "papers", "WANDB_ENTITY": "team"}]
    run(make_sweep(), 2)  # the variables of whoever starts it say where
    assert not {"WANDB_PROJECT", "WANDB_ENTITY"} & set(environments[1])


def test_a_search_that_goes_on_tries_what_one_in_one_go_does(make_sweep):
    params = []
    for folder, counts in ("whole", [7]), ("halves", [3, 7]):
        for count in counts:
            found = search(make_sweep(method="bayes"), Path(folder), count=count, jobs=1,
                           stop=threading.Event())
        params.append([trial.params for trial in found.trials()])
    assert params[0] == params[1]


def test_bad_trials_are_pruned_and_leave_nothing(make_sweep, monkeypatch):
    monkeypatch.setenv("TRIAL_SECONDS", "0.1")
    rates = [1e-3, 1e-5, 1e-3, 2e-5]
    sweep = make_sweep(method="grid", parameters={
        "learning_rate": {"values": rates}, "output_dir": {"value": "models/$WANDB_RUN_ID"}},
        early_terminate={"type": "hyperband", "min_iter": 1, "max_iter": 2, "eta": 3})
    found = run(sweep, 4)
    assert [(trial.state.name, trial.last_step) for trial in found.trials()] == [
        ("COMPLETE", 5), ("PRUNED", 1), ("COMPLETE", 5), ("PRUNED", 1)]
    assert not list(Path("models").glob("*.partial/checkpoints/checkpoint-2"))
    assert not Path("models", found.name(found.trials()[1]) + ".partial").exists()
    assert "pruned" in write_report(found)


def test_a_failing_trial_is_marked_and_does_not_end_the_search(make_sweep):
    sweep = make_sweep(method="grid", parameters={
        "learning_rate": {"values": [1e-3, 0.9, 1e-4]},
        "output_dir": {"value": "models/$WANDB_RUN_ID"}})
    found = run(sweep, 9)
    assert states(found) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert found.trials()[1].user_attrs["message"] == (
        "error: learning_rate is 0.9; that is too much")


def test_when_all_trials_fail_the_search_ends_with_what_they_said(make_sweep):
    sweep = make_sweep(method="grid", parameters={
        "learning_rate": {"values": [0.6, 0.7, 0.8, 0.9]},
        "output_dir": {"value": "models/$WANDB_RUN_ID"}})
    with pytest.raises(InputError, match="3 trials have failed.*learning_rate is 0.8"):
        run(sweep, 9)


def test_two_jobs_share_the_trials(make_sweep, monkeypatch):
    monkeypatch.setenv("TRIAL_SECONDS", "0.05")
    found = run(make_sweep(), 6, jobs=2)
    assert states(found) == ["COMPLETE"] * 6
    assert Counter(first for _, first, _ in starts()) == {1: 6}
    assert len({name for name, _, _ in starts()}) == 6
    begun = sorted((trial.datetime_start, trial.datetime_complete) for trial in found.trials())
    assert any(later[0] < earlier[1] for earlier, later in zip(begun, begun[1:]))


def test_another_sweep_in_the_same_folder_is_refused(make_sweep):
    run(make_sweep(), 1)
    with pytest.raises(InputError, match="kept holds another sweep, with other overrides"):
        run(make_sweep(["--top_k", "2"]), 2)
    with pytest.raises(InputError, match="with other method"):
        run(make_sweep(method="bayes"), 2)


@pytest.mark.parametrize("place", ["base.json", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_explained(make_sweep, place):
    with pytest.raises(InputError, match=f"--folder: cannot make {place}/trials: .*; name another"):
        Search(make_sweep(), Path(place))


@pytest.fixture
def agent(make_sweep, tmp_path):
    """Return a function that starts scripts/sweep.py in a process of its own."""
    make_sweep()
    agents = []

    def start(count: int, seconds: float) -> subprocess.Popen:
        agents.append(subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "sweep.py"), "sweep.yaml", "--count",
             str(count), "--folder", "kept"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"TRIAL_SECONDS": str(seconds)}))
        return agents[-1]
    yield start
    for process in agents:
        process.kill()
        process.communicate()


def wait_for(what) -> None:
    """Wait until `what()` is true."""
    until = time.monotonic() + 120
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def validated(number: int) -> bool:
    return bool(list(Path("models").glob(f"*.partial/checkpoints/checkpoint-{number}")))


@pytest.mark.system
def test_killed_with_its_trial_it_goes_on_and_beside_another_agent_each_trial_is_made_once(
        agent, make_sweep):
    first = agent(4, 0.4)
    wait_for(lambda: validated(2))
    first.kill()
    killed, _, pid = starts()[0]
    os.kill(pid, signal.SIGKILL)  # it would live on
    both = [agent(4, 0.05), agent(4, 0.05)]
    for process in both:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    found = Search(make_sweep(), Path("kept"))
    assert states(found) == ["COMPLETE"] * 4
    assert [len(trial.intermediate_values) for trial in found.trials()] == [5] * 4
    begun = Counter(name for name, _, _ in starts())
    assert begun.pop(killed) == 2 and set(begun.values()) == {1} and len(begun) == 3
    again = [first for name, first, _ in starts() if name == killed]
    assert again[0] == 1 and again[1] > 2  # it went on from its checkpoint


def test_a_trial_that_outlives_its_agent_is_followed_and_not_started_twice(agent, make_sweep):
    first = agent(1, 0.3)
    wait_for(lambda: validated(1))
    first.kill()
    first.wait()
    found = run(make_sweep(), 1)
    assert states(found) == ["COMPLETE"] and len(found.trials()[0].intermediate_values) == 5
    assert len(starts()) == 1


def test_a_signal_stops_it_in_order(agent, make_sweep):
    first = agent(3, 0.3)
    wait_for(lambda: validated(1))
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=200)
    assert first.returncode == 130 and "the same command goes on" in errors
    assert states(Search(make_sweep(), Path("kept"))) == ["RUNNING"]
    found = run(make_sweep(), 2)
    assert states(found) == ["COMPLETE"] * 2 and [first > 1 for _, first, _ in starts()] == [
        False, True, False]


@pytest.mark.system
def test_a_real_trial_takes_tokenized_data_and_the_best_settings_train(
        make_config, make_sweep, tmp_path):
    from nej.dataset import cache_folder, load_dataset
    from nej.model import load_tokenizer
    from nej.training import train
    config = make_config(max_steps=4, eval_steps=2, max_train_papers=200)
    tokenizer = load_tokenizer(config.model_name_or_path)
    load_dataset(config, tokenizer)
    cache = cache_folder(config, tokenizer).parent
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    (tmp_path / "base.json").write_text(json.dumps(asdict(config)))
    found = run(make_sweep(
        command=[sys.executable, str(ROOT / "scripts" / "train.py"), "--config", "base.json",
                 "${args}"],
        parameters={"learning_rate": {"min": 1e-3, "max": 1e-2}, "do_predict": {"value": False},
                    "output_dir": {"value": "models/$WANDB_RUN_ID"}}), 1)
    (trial,) = found.trials()
    assert trial.state == TrialState.COMPLETE and trial.last_step == 2
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    write_report(found)
    result = train(load_config(Path("kept/best.json")))
    assert result.metrics["macro_f1"] == trial.value
    assert result.model_dir == Path("models/small-best")
