"""Tracking works without a network or a key, and says so in one line."""

import logging
import signal
from dataclasses import replace

import pytest
import wandb
from transformers import TrainerCallback

from nej.tracking import TrackingCallback, finish_run
from nej.training import train


@pytest.fixture
def tracked(make_config, tmp_path, monkeypatch):
    """Return a config whose run is tracked in an empty folder, by nobody who is logged in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    wandb.teardown()  # it keeps the environment that it saw first
    yield make_config(report_to="wandb", num_train_epochs=1)
    wandb.teardown()


def test_with_no_way_to_wandb_the_run_is_offline_and_one_line_says_how_to_send_it(
        tracked, tmp_path, caplog):
    caplog.set_level(logging.INFO, "nej")
    train(tracked, callbacks=[TrackingCallback(tracked)])
    assert wandb.run.config["global_batch_size"] == tracked.global_batch_size
    assert wandb.run.config["learning_rate"] == tracked.learning_rate
    finish_run({"accuracy": 0.5, "per_class": {}})
    wandb.teardown()  # as at the end of a script: what is left in its buffers is written
    lines = [record.message for record in caplog.records if "W&B" in record.message]
    assert len(lines) == 1 and "offline (no way to http://127.0.0.1:9)" in lines[0]
    folder = lines[0].split("wandb sync ")[1]
    files = list((tmp_path / folder).glob("run-*.wandb"))
    assert len(files) == 1 and files[0].stat().st_size > 1000


def test_a_run_that_goes_on_is_the_same_run(tracked, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                signal.raise_signal(signal.SIGTERM)
    ids = []
    for callbacks in ([Stop()], []):
        train(tracked, callbacks=[TrackingCallback(tracked), *callbacks])
        ids.append(wandb.run.id)
        finish_run({})
    assert ids[0] == ids[1]
    folders = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert folders and all(name.endswith(ids[0]) for name in folders)


def test_with_none_nothing_is_tracked(tracked, tmp_path):
    train(replace(tracked, report_to="none"))
    assert wandb.run is None and not (tmp_path / "wandb").exists()


def test_a_mode_of_the_users_own_is_kept(tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    callback = TrackingCallback(tracked)
    assert callback.reason is None
    train(tracked, callbacks=[callback])
    assert not (tmp_path / "wandb").exists()
