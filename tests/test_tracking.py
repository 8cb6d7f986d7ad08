"""Every run is tracked, online or offline, once; and nothing that happens to W&B stops it."""

import json
import logging
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from transformers import TrainerCallback
from wandb.cli import beta_sync

from nej.experiments.tracking import Tracker
from nej.judging.evaluation import evaluate
from nej.manifest import origin, write_manifest
from nej.training import train
from tests.wandb_file import read_offline
from tests.wandb_server import KEY, WandbServer

STEPS = 12


@pytest.fixture
def tracked(make_config, tmp_path, monkeypatch):
    """Return the config of a run in an empty folder; nobody is logged in, nothing is reached."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    wandb.teardown()  # it keeps the environment that it saw first
    yield make_config(report_to="wandb", max_steps=STEPS, logging_steps=1, eval_steps=4)
    wandb.teardown()


@pytest.fixture
def server(tracked, monkeypatch):
    """Return a W&B server on which the run of `tracked` is welcome."""
    with WandbServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # second, the shortest
        yield server
        wandb.teardown()


class At(TrainerCallback):
    """Do something after a step."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def kill() -> None:
    """End this process and W&B's: nobody writes what it still has."""
    if not wandb.run.offline:
        time.sleep(1.3)  # what was logged is sent
    kill_client()
    os.kill(os.getpid(), signal.SIGKILL)


def kill_client() -> None:
    """Kill wandb-core, the process that the client talks to."""
    children = {int(child) for file in Path("/proc/self/task").glob("*/children")
                for child in file.read_text().split()}
    for child in children:
        if b"wandb-core" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)


def track(config, *callbacks, judge=False) -> Tracker:
    """Train and track as scripts/train.py does."""
    made_from = origin(config)
    tracker = Tracker(config, made_from)
    result = train(config, callbacks=[tracker, *callbacks], finish=lambda folder, result: (
        write_manifest(folder, config, result, made_from)))
    if judge:
        evaluate(result.model_dir)
    if not result.interrupted:
        tracker.finish(result.model_dir)
    wandb.teardown()  # as at the end of a script
    return tracker


def track_apart(config, *callbacks, exit_code: int = 0) -> None:
    """Train and track in a process of its own, which must end with `exit_code`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            track(config, *callbacks)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == exit_code


def track_until_killed(config, step: int) -> None:
    """Train in a process that is killed after a step."""
    track_apart(config, At(step, kill), exit_code=-signal.SIGKILL)


def offline_files() -> list[Path]:
    return sorted(Path("wandb").glob("offline-run-*/*.wandb"))


def losses(history: list[dict]) -> dict[int, float]:
    """Return the training loss by step; each step is there once."""
    steps = [row["_step"] for row in history]
    assert steps == sorted(set(steps))
    return {row["_step"]: row["train/loss"] for row in history if "train/loss" in row}


def validations(history: list[dict]) -> dict[int, float]:
    return {row["_step"]: row["eval/macro_f1"] for row in history if "eval/macro_f1" in row}


def trace(config) -> dict[int, float]:
    """Return the loss of each step as the model directory has it."""
    state = json.loads((Path(config.output_dir) / "trainer_state.json").read_text())
    return {log["step"]: log["loss"] for log in state["log_history"] if "loss" in log}


def sync(*paths: Path, include_online: bool = False) -> None:
    """Do what `wandb sync` does."""
    beta_sync.sync(
        list(paths), live=False, entity="", project="", run_id="", job_type="", replace_tags="",
        dry_run=False, skip_confirmation=True, skip_synced=True, skip_online=not include_online,
        verbose=False, parallelism=5)
    wandb.teardown()


def lines(caplog) -> list[str]:
    return [record.message for record in caplog.records if "W&B" in record.message]


@pytest.mark.system
def test_offline_all_is_on_the_disk_and_can_be_sent_later(tracked, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "nej")
    for name, value in {"RUN_GROUP": "seeds", "TAGS": "paper,final", "NOTES": "more dropout",
                        "PROJECT": "theses", "ENTITY": "library", "NAME": "third"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracker = track(tracked, judge=True)
    said, = lines(caplog)
    assert "offline (no way to http://127.0.0.1:9)" in said
    folder = Path(said.split("wandb sync ")[1])
    file, = offline_files()
    assert file.parent == folder
    found = read_offline(file)

    run = found.run
    assert (run.project, run.entity, run.display_name) == ("theses", "library", "third")
    assert (run.run_group, list(run.tags), run.notes) == (
        "seeds", ["paper", "final"], "more dropout")
    assert found.config["learning_rate"] == tracked.learning_rate
    assert found.config["data"]["md5"] and found.config["git"]["commit"]
    assert losses(found.history) == trace(tracked) and len(trace(tracked)) == STEPS
    assert list(validations(found.history)) == [4, 8, 12]
    row = next(row for row in found.history if row["_step"] == 4)
    assert {"train/learning_rate", "train/grad_norm", "train/tokens_per_second",
            "train/padding_share", "train/mfu", "eval/loss", "eval/accuracy"} <= set(row)
    assert "stats" in found.kinds  # the machine's

    test = json.loads((Path(tracked.output_dir) / "metrics.json").read_text())["test"]
    assert found.summary["test/macro_f1"] == test["macro_f1"]
    assert [found.summary["test/macro_f1_low"],
            found.summary["test/macro_f1_high"]] == test["intervals"]["macro_f1"]
    shown = found.history[-1]
    for name in ("per_class", "misclassified", "surest_mistakes", "confusion_matrix_table",
                 "precision_recall_table"):
        table = json.loads((folder / "files" / shown[f"test/{name}.path"]).read_text())
        assert len(table["data"]) == shown[f"test/{name}.nrows"] > 0
        if name == "confusion_matrix_table":
            assert sum(line[2] for line in table["data"]) == test["papers"]
        if name == "misclassified":
            assert len(table["data"]) == round((1 - test["accuracy"]) * test["papers"])
    assert (folder / "files" / shown["test/figures/per_class.path"]).exists()

    data, model = [next(a for a in found.artifacts if a.type == kind)
                   for kind in ("dataset", "model")]
    entry, = data.manifest.contents
    assert data.use_after_commit and entry.ref == Path(tracked.data_path).as_uri()
    assert {"manifest.json", "model.safetensors", "tokenizer.json"} <= {
        entry.path for entry in model.manifest.contents}

    with WandbServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        sync(folder)
        run = server.runs[tracker.id]
    assert losses(run.history) == trace(tracked)
    assert run.summary["test/macro_f1"] == test["macro_f1"]
    kept = {artifact["type"]: key for key, artifact in server.artifacts.items()}
    assert run.used == [kept["dataset"]]
    made = server.artifacts[kept["model"]]
    assert made["run"] == run.id and made["state"] == "COMMITTED"
    assert made["metadata"]["data"]["md5"] == found.config["data"]["md5"]


def test_killed_and_resumed_offline_is_one_run_in_one_file(tracked, monkeypatch):
    track_until_killed(tracked, 6)  # the last checkpoint is step 4
    tracker = track(tracked)
    earlier, last = offline_files()
    found = read_offline(last)
    assert earlier.name == last.name == f"run-{tracker.id}.wandb"
    assert losses(found.history) == trace(tracked) and len(trace(tracked)) == STEPS
    assert list(validations(found.history)) == [4, 8, 12]
    assert found.history[0]["train/tokens_per_second"] > 0
    with WandbServer() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        sync(Path("wandb"))
        run, = server.runs.values()
        assert losses(run.history) == trace(tracked)
        sync(earlier)  # the line that was printed first says so
    assert losses(run.history) == trace(tracked)


def test_killed_after_its_last_step_a_run_is_still_whole(tracked):
    class AtTheEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            kill()
    track_apart(tracked, AtTheEnd(), exit_code=-signal.SIGKILL)
    track(tracked)  # has no step to take
    _, last = offline_files()
    found = read_offline(last)
    assert losses(found.history) == trace(tracked) and len(trace(tracked)) == STEPS
    assert found.summary["validation/macro_f1"] > 0


@pytest.mark.parametrize("before", ["online", "offline"])
def test_killed_and_resumed_online_is_one_run_there(
        tracked, server, monkeypatch, capfd, caplog, tmp_path, before):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("WANDB_MODE", before)
    track_until_killed(tracked, 6)  # the last checkpoint is step 4
    sent = {name: dict(run.lines["wandb-history.jsonl"]) for name, run in server.runs.items()}
    assert all(max(losses(run.history)) == 5 for run in server.runs.values())
    monkeypatch.setenv("WANDB_MODE", "online")
    track(tracked)
    run, = server.runs.values()
    if before == "online":  # step 5 was not sent again
        assert run.sessions == 2
        assert run.lines["wandb-history.jsonl"].items() >= sent[run.id].items()
    assert losses(run.history) == trace(tracked) and len(trace(tracked)) == STEPS
    assert list(validations(run.history)) == [4, 8, 12]
    assert run.config["seed"]["value"] == tracked.seed and run.exit_code == 0
    assert KEY not in "".join(capfd.readouterr()) + caplog.text
    assert_nowhere(KEY, tmp_path)


def test_with_a_wrong_key_the_run_is_offline_and_no_key_is_said_or_written(
        tracked, server, monkeypatch, caplog, capfd, tmp_path):
    caplog.set_level(logging.INFO)
    wrong = "f00d" * 10
    monkeypatch.setenv("WANDB_API_KEY", wrong)
    track(tracked)
    said, = lines(caplog)
    assert said.startswith("W&B is offline (") and "API key" in said
    assert losses(read_offline(*offline_files()).history) == trace(tracked)
    assert wrong not in "".join(capfd.readouterr()) + caplog.text
    assert_nowhere(wrong, tmp_path)


def test_a_server_that_does_not_answer_at_the_start_is_not_waited_for(
        tracked, server, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    server._on_UpsertBucket = lambda variables: time.sleep(2) or {"upsertBucket": None}
    track(tracked)
    said, = lines(caplog)
    assert said.startswith("W&B is offline (Timed out initializing run")
    assert losses(read_offline(*offline_files()).history) == trace(tracked)


def assert_nowhere(key: str, folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert any(file.suffix == ".wandb" for file in files)
    assert [file for file in files if key.encode() in file.read_bytes()] == []


def test_when_wandb_refuses_in_the_middle_training_goes_on_and_nothing_is_lost(
        tracked, server, capfd):
    def refuse():  # the quota is used up
        server.status = {"graphql": 402, "file_stream": 403, "upload": 403}
    track(tracked, At(5, refuse))
    said, = [line for line in capfd.readouterr().err.splitlines() if "wandb:" in line]
    assert "not be synced, but it will still be written to disk" in said
    file, = Path("wandb").glob("run-*/*.wandb")
    assert losses(read_offline(file).history) == trace(tracked)


def test_when_the_network_goes_training_goes_on_and_the_rest_can_be_sent_later(
        tracked, server, monkeypatch, caplog):
    for name in ("FINISH_TIMEOUT", "X_GRAPHQL_RETRY_MAX", "X_GRAPHQL_TIMEOUT_SECONDS"):
        monkeypatch.setenv(f"WANDB_{name}", "1")

    def cut():
        server.close()
        server.status = dict.fromkeys(server.status, 503)  # for connections that are open
    track_until_killed(tracked, 6)
    tracker = track(tracked, At(8, cut))
    said, = lines(caplog)
    assert "W&B failed (Timed out" in said
    there = losses(server.runs[tracker.id].history)
    folder = Path(said.split("wandb sync --include-online ")[1])
    kept = losses(read_offline(folder / f"run-{tracker.id}.wandb").history)
    assert len(there) < STEPS and kept == {
        step: loss for step, loss in trace(tracked).items() if step >= 6}  # it had the others
    assert there | kept == trace(tracked) and len(trace(tracked)) == STEPS


def test_begun_online_and_ended_offline_the_file_is_the_whole_run(tracked, server, monkeypatch):
    track_until_killed(tracked, 6)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = track(tracked)
    assert [*server.runs] == [tracker.id]
    assert losses(read_offline(*offline_files()).history) == trace(tracked)


def test_when_wandbs_own_process_dies_training_goes_on(tracked, caplog):
    track(tracked, At(5, kill_client))
    assert len(trace(tracked)) == STEPS
    said, = lines(caplog)
    assert "W&B failed (" in said


def test_when_nothing_can_be_written_training_goes_on(tracked, caplog, tmp_path):
    (tmp_path / "wandb").write_text("in the way")
    track(tracked)
    assert len(trace(tracked)) == STEPS
    said, = lines(caplog)
    assert "W&B failed (" in said and "all else goes on" in said


@pytest.mark.parametrize("name, value, said", [
    ("WANDB_MODE", "bogus", "mode Input should be 'online', 'offline'"),
    ("WANDB_BASE_URL", "nonsense", "base_url Input should be a valid URL")])
def test_a_variable_that_wandb_does_not_take_is_named_without_its_value(
        tracked, monkeypatch, caplog, name, value, said):
    monkeypatch.setenv(name, value)
    track(tracked)
    line, = lines(caplog)
    assert line.startswith("W&B failed (1 validation error for Settings " + said), line
    assert value not in line and len(trace(tracked)) == STEPS


def test_only_the_main_process_talks_to_wandb(tracked, tmp_path):
    tracker = Tracker(tracked, origin(tracked))
    state = SimpleNamespace(is_world_process_zero=False, global_step=3, log_history=[])
    for event in ("on_init_end", "on_train_begin", "on_step_begin"):
        getattr(tracker, event)(None, state, None)
    tracker.on_log(None, state, None, {"loss": 1.0})
    assert tracker.run is None and not (tmp_path / "wandb").exists()


def test_disabled_and_none_leave_nothing(tracked, monkeypatch, tmp_path):
    short = replace(tracked, max_steps=2, eval_steps=2)
    train(replace(short, report_to="none", output_dir=str(tmp_path / "untracked")))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    track(short)
    assert not (tmp_path / "wandb").exists()
