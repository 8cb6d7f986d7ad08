"""Unfinished runs and their checkpoints by themselves; test_training.py stops real runs."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from nej import InputError
from nej.checkpoints import (
    UnfinishedRun, check_fits, clear_remains, mark_unfinished, newest_intact, read_trace, seal,
    sole_run, unfinished_run, write_trace,
)
from nej.config import load_config


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a Config whose data is three bytes."""
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    (tmp_path / "papers.csv").write_text("id\n")
    return replace(load_config(), data_path=str(tmp_path / "papers.csv"),
                   output_dir=str(tmp_path / "models" / "x"), num_train_epochs=2.0)


def begin(config, **changes) -> UnfinishedRun:
    run = unfinished_run(replace(config, **changes))
    mark_unfinished(run, replace(config, **changes))
    return run


def save(folder: Path, step: int, *, best: int | None = None, weights: bytes = b"weights") -> Path:
    """Write a checkpoint as Trainer does, and seal it."""
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "folder").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(weights)
    # the folder has another name now than when Trainer wrote where the best one is
    (checkpoint / "trainer_state.json").write_text(json.dumps({
        "best_model_checkpoint": best and f"before/checkpoints/checkpoint-{best}"}))
    seal(checkpoint)
    return checkpoint


def test_a_run_begins_beside_its_place_and_keeps_its_id(config, tmp_path, monkeypatch):
    run = unfinished_run(config)
    assert run.folder == tmp_path / "models" / "x.partial" and not run.folder.parent.exists()
    assert len(run.id) == 8 and int(run.id, 16) >= 0
    assert run.checkpoint is None and run.changes == []
    assert unfinished_run(config).id != run.id
    mark_unfinished(run, config)
    again = unfinished_run(config)
    assert (again.id, again.folder, again.checkpoint, again.changes) == (
        run.id, run.folder, None, [])
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    assert unfinished_run(config).id == run.id
    assert unfinished_run(replace(config, output_dir=str(tmp_path / "y"))).id == "trial7"


def test_a_run_goes_on_from_its_newest_checkpoint(config, caplog):
    caplog.set_level("INFO", "nej")
    run = begin(config)
    assert unfinished_run(config).checkpoint is None
    assert "going on from the beginning: no checkpoint yet" in caplog.text
    save(run.folder / "checkpoints", 5)
    newest = save(run.folder / "checkpoints", 10)
    again = unfinished_run(config)
    assert again.checkpoint == newest
    assert caplog.messages[-1] == f"going on from {newest}"
    mark_unfinished(again, config)
    assert newest.exists()
    # from the beginning there is nothing to keep
    mark_unfinished(replace(again, checkpoint=None), config)
    assert not newest.exists() and unfinished_run(config).id == run.id


def test_a_finished_run_is_replaced_only_if_asked(config):
    model_dir = Path(config.output_dir)
    model_dir.mkdir(parents=True)
    assert unfinished_run(config)  # an empty folder is free
    (model_dir / "training_config.json").write_text("{}")
    with pytest.raises(InputError, match="^output_dir: .*models/x holds a finished run .*another --"
                                         "output_dir, or replace .* --overwrite_output_dir true$"):
        unfinished_run(config)
    assert unfinished_run(replace(config, overwrite_output_dir=True)).checkpoint is None


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("is_file", [False, True])
def test_something_else_is_never_replaced(config, overwrite, is_file):
    path = Path(config.output_dir)
    path.parent.mkdir()
    if is_file:
        path.write_text("years of work")
    else:
        path.mkdir()
        (path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="^output_dir: .* holds something else than a run of nej, "
                                         "which is never replaced; name another --output_dir$"):
        unfinished_run(replace(config, overwrite_output_dir=overwrite))


def test_other_settings_or_data_are_another_run(config):
    run = begin(config)
    save(run.folder / "checkpoints", 5)
    with pytest.raises(InputError) as refusal:
        unfinished_run(replace(config, learning_rate=0.5, seed=7))
    assert str(refusal.value) == (
        f"output_dir: {run.folder} holds another run, unfinished (learning_rate: 5e-05 there, 0.5 "
        "here, seed: 42 there, 7 here); go on with its settings, or with these by --allow_changes "
        "true, name another --output_dir, or discard it with --overwrite_output_dir true")
    Path(config.data_path).write_text("id\n1\n")
    with pytest.raises(InputError, match="data's sha256: '[0-9a-f]{64}' there, '[0-9a-f]{64}' he"):
        unfinished_run(config)
    fresh = unfinished_run(replace(config, overwrite_output_dir=True))
    assert fresh.checkpoint is None and fresh.id != run.id and fresh.changes == []
    with pytest.raises(InputError, match="^data_path: no file .*nowhere.csv"):
        unfinished_run(replace(config, data_path="nowhere.csv"))


def test_data_of_the_same_content_elsewhere_is_the_same_run(config, tmp_path):
    newest = save(begin(config).folder / "checkpoints", 5)
    (tmp_path / "moved.csv").write_text("id\n")
    here = replace(config, data_path=str(tmp_path / "moved.csv"), reports_dir="elsewhere",
                   report_to="none", logging_steps=3)
    assert unfinished_run(here).checkpoint == newest


def test_changes_that_are_allowed_are_remembered(config, caplog):
    caplog.set_level("INFO", "nej")
    newest = save(begin(config).folder / "checkpoints", 5)
    allowed = replace(config, learning_rate=0.5, allow_changes=True)
    run = unfinished_run(allowed)
    assert run.checkpoint == newest
    assert run.changes == ["learning_rate: 5e-05 there, 0.5 here"]
    assert caplog.messages[-1].endswith(
        "checkpoint-5 with changes: learning_rate: 5e-05 there, 0.5 here")
    mark_unfinished(run, allowed)
    again = unfinished_run(replace(allowed, seed=7))
    assert again.changes == ["learning_rate: 5e-05 there, 0.5 here", "seed: 42 there, 7 here"]


@pytest.mark.parametrize("before, now, safe", [
    ({}, {"num_train_epochs": 3.0}, True), ({}, {"num_train_epochs": 1.0}, False),
    ({"max_steps": 10}, {"max_steps": 20}, True), ({"max_steps": 10}, {"max_steps": 9}, False),
    ({"max_steps": 10}, {"max_steps": -1}, True), ({}, {"max_steps": 10}, False),
    ({"max_steps": 10}, {"max_steps": 20, "num_train_epochs": 1.0}, False),
    ({}, {"num_train_epochs": 3.0, "seed": 7}, False),
    ({"max_steps": 1}, {"max_steps": 2}, True)])
def test_more_steps_are_safe(config, before, now, safe):
    first = replace(config, **before)
    newest = save(begin(first).folder / "checkpoints", 5)
    longer = replace(first, **now)
    if safe:
        assert unfinished_run(longer).checkpoint == newest
    else:
        with pytest.raises(InputError, match="holds another run, unfinished"):
            unfinished_run(longer)
    # who wants the run replaced gets it anew
    overwritten = unfinished_run(replace(longer, overwrite_output_dir=True))
    assert overwritten.checkpoint is None and overwritten.changes == []


@pytest.mark.parametrize("record", [None, "{", "{}", "[]", '{"settings": {}, "id": "a"}'])
def test_a_folder_without_a_record_that_can_be_read(config, record):
    folder = begin(config).folder
    path = folder / "checkpoints" / "run.json"
    path.with_name("checkpoint-2").mkdir()
    path.unlink() if record is None else path.write_text(record)
    with pytest.raises(InputError, match=r"unfinished \(no run.json in it\); go on"):
        unfinished_run(replace(config, allow_changes=True))
    assert unfinished_run(replace(config, overwrite_output_dir=True)).checkpoint is None


@pytest.mark.parametrize("left", ["m.partial", "m.partial/checkpoints",
                                  "m.partial/checkpoints/.run.json.a1b2/run.json"])
def test_a_kill_before_there_is_a_record_is_no_other_run(config, left):
    model_dir = Path(config.output_dir)
    (model_dir.parent / left.replace("m.partial", f"{model_dir.name}.partial")).mkdir(parents=True)
    assert unfinished_run(config).checkpoint is None
    (model_dir.with_name(f"{model_dir.name}.partial") / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds another run"):
        unfinished_run(config)


def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path):
    saved = save(tmp_path, 3)
    (tmp_path / "checkpoint-old").mkdir()
    assert newest_intact(tmp_path) == saved


def test_the_newest_by_number_that_is_as_it_was_saved(tmp_path, caplog):
    assert newest_intact(tmp_path) is None
    second, ninth, tenth = (save(tmp_path, step) for step in (2, 9, 10))
    (tmp_path / "run.json").write_text("{}")
    assert newest_intact(tmp_path) == tenth and caplog.messages == []
    (tenth / "model.safetensors").write_bytes(b"weightz")
    assert newest_intact(tmp_path) == ninth
    assert caplog.messages == [f"{tenth} is passed over: model.safetensors is not what was saved"]
    (ninth / "trainer_state.json").unlink()
    assert newest_intact(tmp_path) == second
    assert caplog.messages[-1] == f"{ninth} is passed over: it lacks trainer_state.json"
    (second / "checksums.json").write_text("{")
    assert newest_intact(tmp_path) is None
    assert caplog.messages[-1].startswith(f"{second} is passed over: Expecting property name")
    assert len(caplog.messages[-1]) <= 150 + len(f"{second} is passed over: ")
    (second / "checksums.json").unlink()
    assert newest_intact(tmp_path) is None
    assert caplog.messages[-1] == f"{second} is passed over: it lacks checksums.json"


def test_the_best_one_must_be_whole_too(tmp_path, caplog):
    best, newest = save(tmp_path, 4), save(tmp_path, 8, best=4)
    assert newest_intact(tmp_path) == newest
    save(tmp_path, 12, best=12)
    assert newest_intact(tmp_path).name == "checkpoint-12"
    (tmp_path / "checkpoint-12" / "model.safetensors").unlink()
    (best / "model.safetensors").write_bytes(b"")
    assert newest_intact(tmp_path) is None
    assert caplog.messages[1] == (f"{newest} is passed over: the best one, checkpoint-4, cannot be "
                                  "used: model.safetensors is not what was saved")


def test_a_seal_has_the_sha256_of_every_file(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("nej.checkpoints.flush", flushed.append)
    checkpoint = save(tmp_path, 1, weights=b"abc")
    sums = json.loads((checkpoint / "checksums.json").read_text())
    assert list(sums) == ["model.safetensors", "trainer_state.json"]
    assert sums["model.safetensors"] == (  # FIPS 180-2, B.1
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert flushed == [checkpoint]


def test_a_model_of_other_size_or_classes_does_not_fit(tmp_path):
    def model(**settings):
        return DistilBertForSequenceClassification(DistilBertConfig(**(dict(
            vocab_size=9, dim=4, n_layers=1, n_heads=2, hidden_dim=8, num_labels=2) | settings)))
    model().save_pretrained(tmp_path)
    check_fits(tmp_path, model(dropout=0.5))
    for key, value in {"vocab_size": 10, "dim": 8, "n_layers": 2, "n_heads": 1, "hidden_dim": 4,
                       }.items():
        with pytest.raises(InputError, match=rf"has a model with other {key} than these settings "
                                             rf"make \(\d+ there, {value} here\); go on with its "):
            check_fits(tmp_path, model(**{key: value}))
    with pytest.raises(InputError, match=r"^output_dir: .* other id2label .*\{0: 'LABEL_0', 1: .*"
                                         "--overwrite_output_dir true and without allow_changes$"):
        check_fits(tmp_path, model(num_labels=3))


def test_remains_are_cleared_only_beside_a_finished_run(tmp_path):
    model_dir = tmp_path / "x"
    remains = [model_dir / "checkpoints" / "checkpoint-1", tmp_path / "x.replaced" / "figures"]
    for folder in remains:
        folder.mkdir(parents=True)
    clear_remains(model_dir)
    assert all(folder.exists() for folder in remains)
    (model_dir / "training_config.json").write_text("{}")
    clear_remains(model_dir)
    assert [path.name for path in model_dir.iterdir()] == ["training_config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    clear_remains(model_dir)  # nothing is there to clear


def test_one_run_at_a_time(tmp_path):
    target = tmp_path / "models" / "x"
    lock = tmp_path / "models" / "x.lock"
    with sole_run(target):
        assert lock.exists()
        with pytest.raises(InputError, match="^output_dir: another run is working on .*models/x at "
                                             "this moment; wait until it has ended, or name "
                                             "another --output_dir$"), sole_run(target):
            raise AssertionError("two at once")
        with pytest.raises(InputError, match="^--output: .* another --output$"), \
                sole_run(target, option="--output"):
            raise AssertionError("two at once")
        with sole_run(tmp_path / "models" / "y"):
            pass
        assert lock.exists()
    assert list((tmp_path / "models").iterdir()) == []
    with pytest.raises(ZeroDivisionError), sole_run(target):
        1 / 0
    with sole_run(target):  # it is free again, and its folder may be there
        pass


@pytest.mark.skipif(os.name == "nt", reason="a folder's permissions are other ones there")
def test_a_lock_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*file"), sole_run(tmp_path / "file" / "x"):
        raise AssertionError


def test_a_trace_is_read_as_it_was_written(tmp_path):
    trace = [(2.5, 1.25), (0.1 + 0.2, 3e-9)]
    write_trace(tmp_path / "steps.csv", trace)
    assert (tmp_path / "steps.csv").read_text() == (
        "step,loss,grad_norm\n1,2.5,1.25\n2,0.30000000000000004,3e-09\n")
    assert read_trace(tmp_path / "steps.csv") == trace
