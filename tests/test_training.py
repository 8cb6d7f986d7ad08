"""Training ends with a complete model, the same one each time, also after a stop."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from nej import InputError, device
from nej.checkpoints import newest_intact
from nej.files import checksum
from nej.judging.evaluation import evaluate, write_card
from nej.manifest import origin, write_manifest
from nej.training import PaperTrainer, train

COMMON = ["we", "show", "that", "the", "method", "is", "better", "than", "a", "model"]
ROOT = Path(__file__).resolve().parent.parent


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def same(one, other) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


class StopAt(TrainerCallback):
    """Send this process the signal of Ctrl-C in the middle of a step."""

    def __init__(self, step: int, number: int = signal.SIGINT):
        self.step, self.number = step, number

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def easy_csv(tmp_path) -> Path:
    """Return papers whose class is given away by a word."""
    random = np.random.default_rng(0)
    rows = [f"abs-2101.{i:05d}v1,Title,Name,cs.{word},{' '.join(random.choice(COMMON, 8))} {word}"
            for i in range(300) for word in [("image", "robot")[i % 2]]]
    path = tmp_path / "easy.csv"
    path.write_text("\r\n".join(["id,title,category,category_code,summary", *rows]), "utf-8")
    return path


def test_a_run_learns_and_its_model_directory_is_complete(make_config, easy_csv):
    config = make_config(data_path=str(easy_csv), num_train_epochs=6, learning_rate=5e-3)

    def finish(folder, result):
        write_manifest(folder, config, result, origin(config))
        write_card(folder)
    result = train(config, finish=finish)
    evaluate(result.model_dir)
    names = {path.name for path in result.model_dir.iterdir()}
    assert names == {
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
        "training_config.json", "trainer_state.json", "metrics.json", "calibration.json",
        "predictions.csv", "precision_recall.csv", "headline.json", "steps.csv", "validations.csv",
        "manifest.json", "README.md", "embeddings.npy", "mistakes.json", "label_issues.csv",
        "report.md", "report.html", "reference.json", "figures"}
    assert not Path(f"{result.model_dir}.partial").exists()
    files = [path for path in result.model_dir.rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1
    model = AutoModelForSequenceClassification.from_pretrained(result.model_dir)
    assert list(model.config.id2label.values()) == sorted(model.config.label2id)
    assert AutoTokenizer.from_pretrained(result.model_dir).is_fast
    metrics = json.loads((result.model_dir / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] > 0.95
    assert metrics["baselines"]["majority class"]["accuracy"] < 0.7
    assert metrics["validation"]["macro_f1"] == result.metrics["macro_f1"]
    manifest = json.loads((result.model_dir / "manifest.json").read_text())
    assert manifest["weights_sha256"] == checksum(result.model_dir / "model.safetensors")
    assert manifest["data"]["md5"] == checksum(Path(config.data_path), "md5")
    steps = (result.model_dir / "steps.csv").read_text().splitlines()
    assert len(steps) == 1 + result.steps
    logged = [log for log in json.loads((result.model_dir / "trainer_state.json").read_text())[
        "log_history"] if "grad_norm" in log]
    assert all(float(steps[log["step"]].split(",")[2]) == log["grad_norm"] for log in logged)


@pytest.mark.parametrize("settings", [
    {}, {"bf16": True, "frozen_layers": 1, "distillation_weight": 0.5, "optimizer": "muon"},
    {"global_batch_size": 20, "micro_batch_tokens": 90, "class_weights": "balanced",
     "label_smoothing_factor": 0.1}])
def test_the_same_command_twice_gives_the_same_weights(make_config, tmp_path, settings):
    settings = settings | {"max_steps": 10, "eval_steps": 5}
    runs = [weights(train(make_config(output_dir=str(tmp_path / name), **settings)).model_dir)
            for name in ("one", "two")]
    assert same(*runs)
    other = train(make_config(output_dir=str(tmp_path / "three"), seed=1, **settings))
    assert not same(runs[0], weights(other.model_dir))


def validations(model_dir: Path) -> list[tuple[int, float]]:
    """Return the steps of a run's validations and their macro F1."""
    state = json.loads((model_dir / "trainer_state.json").read_text())
    return [(log["step"], log["eval_macro_f1"]) for log in state["log_history"]
            if "eval_macro_f1" in log]


@pytest.mark.parametrize("step, number, settings", [
    (1, signal.SIGUSR1, {}), (9, signal.SIGTERM, {"bf16": True}),
    (16, signal.SIGINT, {"optimizer": "muon", "bf16": True}), (29, signal.SIGINT, {})])
def test_a_stopped_run_goes_on_to_the_same_weights(make_config, tmp_path, step, number, settings):
    whole = train(make_config(output_dir=str(tmp_path / "whole"), **settings))
    config = make_config(**settings)
    stopped = train(config, callbacks=[StopAt(step, number)])
    assert stopped.interrupted and stopped.steps == step
    assert not Path(config.output_dir).exists()
    ended = train(config)
    assert not ended.interrupted and ended.resumed and ended.steps == whole.steps
    assert same(weights(whole.model_dir), weights(ended.model_dir))
    assert validations(whole.model_dir) == validations(ended.model_dir)


def test_a_second_signal_stops_at_once(make_config):
    class Twice(StopAt):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
    config = make_config()
    # a shell starts its background jobs with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config, callbacks=[Twice(99)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert not Path(f"{config.output_dir}.lock").exists()
    assert train(config).steps == 30


def test_a_stop_in_a_step_that_validates_loses_no_validation(make_config, tmp_path):
    settings = {"learning_rate": 0.02, "eval_steps": 2, "max_steps": 6}
    whole = train(make_config(output_dir=str(tmp_path / "whole"), **settings))
    for step in (2, 4):
        config = make_config(output_dir=str(tmp_path / str(step)), **settings)
        assert train(config, callbacks=[StopAt(step)]).interrupted
        ended = train(config)
        assert validations(whole.model_dir) == validations(ended.model_dir)
        assert same(weights(whole.model_dir), weights(ended.model_dir))


def test_a_signal_in_the_last_step_lets_the_run_finish(make_config):
    result = train(make_config(max_steps=5), callbacks=[StopAt(5)])
    assert not result.interrupted and result.steps == 5 and result.model_dir.exists()


def test_a_run_that_was_killed_while_its_model_was_written_trains_no_step_more(make_config):
    config = make_config(num_train_epochs=1.5, lr_scheduler_type="constant")
    seen = []

    def killed(folder, result):
        seen.append(weights(folder))
        raise SystemExit
    with pytest.raises(SystemExit):
        train(config, finish=killed)
    result = train(config)
    assert result.steps == 23 and same(seen[0], weights(result.model_dir))


def test_early_stopping_counts_on_after_a_stop(make_config, tmp_path):
    settings = {"learning_rate": 1e-9, "eval_steps": 2, "early_stopping_patience": 2}
    whole = train(make_config(output_dir=str(tmp_path / "whole"), **settings))
    config = make_config(**settings)
    train(config, callbacks=[StopAt(5)])
    assert train(config).steps == whole.steps < 30


def test_a_run_that_stopped_early_trains_no_step_more(make_config, tmp_path):
    settings = {"learning_rate": 1e-9, "eval_steps": 2, "early_stopping_patience": 1}
    whole = train(make_config(output_dir=str(tmp_path / "whole"), **settings))

    def killed(folder, result):
        raise SystemExit
    config = make_config(output_dir=str(tmp_path / "killed"), **settings)
    with pytest.raises(SystemExit):
        train(config, finish=killed)
    stopped = make_config(output_dir=str(tmp_path / "stopped"), **settings)
    train(stopped, callbacks=[StopAt(whole.steps)])  # by a signal in the step that ends it
    for again in (config, stopped):
        result = train(again)
        assert not result.interrupted and result.steps == whole.steps < 30
        assert same(weights(whole.model_dir), weights(result.model_dir))


def test_a_broken_checkpoint_is_passed_over(make_config, caplog):
    config = make_config()
    train(config, callbacks=[StopAt(17)])
    folder = Path(f"{config.output_dir}.partial") / "checkpoints"
    newest = newest_intact(folder)
    content = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(content[:len(content) // 2])
    (folder / "checkpoint-99").mkdir()
    older = newest_intact(folder)
    assert older is not None and older != newest
    assert "checkpoint-99 is passed over" in caplog.text
    for content in (b"", b"garbage"):
        (older / "optimizer.pt").write_bytes(content)
        assert newest_intact(folder) not in (newest, older)
    assert train(config).steps == 30


def test_a_flipped_bit_is_noticed_also_in_the_best_checkpoint(make_config, caplog):
    """A bit of a weight makes no file unreadable: only its checksum tells."""
    config = make_config()
    train(config, callbacks=[StopAt(17)])
    folder = Path(f"{config.output_dir}.partial") / "checkpoints"
    newest = newest_intact(folder)
    file = newest / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert newest_intact(folder) != newest
    assert f"{newest} is passed over: model.safetensors is not what was saved" in caplog.text
    file.write_bytes(content)
    assert newest_intact(folder) == newest
    state = json.loads((newest / "trainer_state.json").read_text())
    best = folder / Path(state["best_model_checkpoint"]).name
    assert best != newest
    (best / "model.safetensors").unlink()
    caplog.clear()
    assert newest_intact(folder) is None
    assert f"the best one, {best.name}, cannot be used: it lacks model.safetensors" in caplog.text
    whole = train(make_config(output_dir=config.output_dir + "-whole"))
    assert same(weights(train(config).model_dir), weights(whole.model_dir))  # from the beginning


def test_the_best_validation_is_what_is_kept(make_config):
    result = train(make_config(learning_rate=0.02, num_train_epochs=4, eval_steps=0.1))
    state = json.loads((result.model_dir / "trainer_state.json").read_text())
    history = [log for log in state["log_history"] if "eval_macro_f1" in log]
    assert history[-1]["step"] == state["max_steps"]
    assert result.metrics["macro_f1"] == max(log["eval_macro_f1"] for log in history)


def test_early_stopping_stops(make_config):
    result = train(make_config(learning_rate=1e-9, eval_steps=2, early_stopping_patience=2))
    assert result.steps < 30


def test_the_loss_is_the_mean_over_the_papers_of_the_whole_step(make_config):
    losses, gradients = {}, {}
    for size in (1, 160, 5000):  # micro-batches of 1, of a few, all at once
        config = make_config(global_batch_size=64, micro_batch_tokens=size, dropout=0.0,
                             num_train_epochs=1, logging_steps=1, eval_steps=100,
                             output_dir=make_config().output_dir + str(size))
        result = train(config)
        state = json.loads((result.model_dir / "trainer_state.json").read_text())
        losses[size] = [log["loss"] for log in state["log_history"] if "loss" in log]
        gradients[size] = [log["grad_norm"] for log in state["log_history"] if "loss" in log]
    assert len(losses[1]) == -(-result.papers["train"] // 64)
    for size in (160, 5000):
        assert losses[size] == pytest.approx(losses[1], abs=2e-4)
        assert gradients[size] == pytest.approx(gradients[1], rel=1e-3)


def test_class_weights_smoothing_and_soft_labels_are_those_of_the_formula(make_config, tmp_path):
    from nej.dataset import load_dataset
    from nej.model import load_classifier, load_tokenizer
    config = make_config(class_weights="balanced", label_smoothing_factor=0.2,
                         distillation_weight=0.3)
    tokenizer = load_tokenizer(config.model_name_or_path)
    dataset = load_dataset(config, tokenizer)
    names = dataset["train"].features["label"].names
    model = load_classifier(config.model_name_or_path, labels=names)
    trainer = PaperTrainer(config, model, dataset, tmp_path, packed=False, pad_token_id=0)
    counts = np.bincount(dataset["train"]["label"], minlength=len(names))
    assert (trainer.paper_weights.numpy() * counts).sum() == pytest.approx(counts.sum())
    logits = torch.randn(6, len(names))
    labels = torch.tensor([0, 1, 2, 3, 3, -100])
    model.train()
    by_hand = sum(
        trainer.paper_weights[label] * (
            0.8 * -logits[row].log_softmax(-1)[label] + 0.2 * -logits[row].log_softmax(-1).mean())
        for row, label in enumerate(labels[:5])) / 5
    trainer.soft_labels = None
    found = trainer.step_loss({"logits": logits}, labels, num_items_in_batch=5)
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-5)
    trainer.soft_labels = torch.rand(6, len(names)).softmax(-1)
    soft = sum(trainer.paper_weights[label]
               * -(trainer.soft_labels[row] * logits[row].log_softmax(-1)).sum()
               for row, label in enumerate(labels[:5])) / 5
    found = trainer.step_loss({"logits": logits}, labels, num_items_in_batch=5)
    assert found.item() == pytest.approx((0.7 * by_hand + 0.3 * soft).item(), rel=1e-5)
    model.eval()  # the validation loss is the plain one
    plain = cross_entropy(logits[:5], labels[:5])
    assert trainer.step_loss({"logits": logits}, labels).item() == pytest.approx(plain.item())


@pytest.mark.parametrize("frozen_layers", [None, 0, 1, 2])
def test_frozen_layers_stay_and_the_others_do_not(frozen_layers, make_config, tiny_model):
    trained = weights(train(make_config(frozen_layers=frozen_layers)).model_dir)
    parts = ["embeddings", "transformer.layer.0", "transformer.layer.1"]
    frozen = parts[:0 if frozen_layers is None else 1 + frozen_layers]
    for name, before in weights(tiny_model).items():
        stayed = torch.equal(trained[f"distilbert.{name}"], before)
        assert stayed == name.startswith(tuple(frozen)), name


def test_more_frozen_layers_than_there_are(make_config):
    with pytest.raises(InputError, match="frozen_layers is 3, but the model has 2 layers"):
        train(make_config(frozen_layers=3))


def test_another_run_in_the_output_folder_is_not_touched(make_config):
    config = make_config()
    first = train(config)
    before = checksum(first.model_dir / "model.safetensors")
    with pytest.raises(InputError, match="holds a finished run.*overwrite_output_dir"):
        train(replace(config, seed=7))
    assert checksum(first.model_dir / "model.safetensors") == before
    train(replace(config, seed=7, overwrite_output_dir=True))
    assert checksum(first.model_dir / "model.safetensors") != before
    assert [path.name for path in first.model_dir.parent.iterdir()] == ["model"]


def test_an_unfinished_run_of_other_settings_is_not_mixed_in(make_config, tmp_path):
    config = make_config()
    train(config, callbacks=[StopAt(3)])
    with pytest.raises(InputError, match="unfinished .learning_rate: 0.001 there, 0.5 here"):
        train(replace(config, learning_rate=0.5))
    other = tmp_path / "other.csv"
    other.write_bytes(Path(config.data_path).read_bytes().replace(b" the ", b" this ", 1))
    with pytest.raises(InputError, match="data's sha256"):
        train(replace(config, data_path=str(other)))
    assert train(replace(config, reports_dir="elsewhere")).steps == 30  # changes nothing learned


def test_more_epochs_are_safe_and_other_changes_have_to_be_allowed(make_config, tmp_path):
    config = make_config()
    train(config, callbacks=[StopAt(9)])
    with pytest.raises(InputError, match="num_train_epochs: 2.0 there, 1.0 here.*allow_changes"):
        train(replace(config, num_train_epochs=1.0))
    longer = replace(config, num_train_epochs=3.0)
    result = train(longer, callbacks=[StopAt(20)])
    assert result.resumed and result.steps == 20
    result = train(replace(longer, learning_rate=0.5, allow_changes=True))
    assert result.steps == 45
    assert result.changes == ["num_train_epochs: 2.0 there, 3.0 here",
                              "learning_rate: 0.001 there, 0.5 here"]


def test_more_epochs_begin_anew_where_the_unfinished_run_is_to_be_replaced(make_config):
    config = make_config(overwrite_output_dir=True)
    train(config, callbacks=[StopAt(9)])
    result = train(replace(config, num_train_epochs=3.0))
    assert not result.resumed and not result.changes and result.steps == 45


def test_a_checkpoint_with_other_classes_is_refused_also_if_changes_are_allowed(make_config):
    config = make_config()
    train(config, callbacks=[StopAt(3)])
    with pytest.raises(InputError, match="a model with other id2label than these settings make"):
        train(replace(config, top_k=2, allow_changes=True))


def test_two_runs_on_one_output_folder(make_config):
    """The second is told, loses nothing and leaves nothing; the first goes on."""
    config = make_config()
    told = []

    class Second(StopAt):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                with pytest.raises(InputError, match="another run is working on .*model"):
                    train(replace(config, seed=9, overwrite_output_dir=True))
                told.append(True)
    assert train(config, callbacks=[Second(99)]).steps == 30 and told
    assert [path.name for path in Path(config.output_dir).parent.iterdir()] == ["model"]


def test_what_a_kill_after_the_end_left_is_cleared(make_config):
    config = make_config(max_steps=2)
    model_dir = train(config).model_dir
    replaced = model_dir.with_name("model.replaced")
    for folder in (model_dir / "checkpoints" / "checkpoint-2", replaced):
        folder.mkdir(parents=True)
    with pytest.raises(InputError, match="holds a finished run"):
        train(config)
    assert not (model_dir / "checkpoints").exists() and not replaced.exists()


def test_a_full_disk_is_explained_and_the_run_goes_on_once_there_is_room(make_config, monkeypatch):
    config = make_config()
    save = PaperTrainer._save_checkpoint

    def full(trainer, *arguments, **kwargs):
        if trainer.state.global_step > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(trainer, *arguments, **kwargs)
    with monkeypatch.context() as patch:
        patch.setattr(PaperTrainer, "_save_checkpoint", full)
        with pytest.raises(InputError, match="No space left on device; free some space"):
            train(config)
    assert not Path(config.output_dir).exists()
    assert train(config).steps == 30


def test_an_output_folder_of_something_else_is_refused(make_config):
    folder = Path(make_config().output_dir)
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds something else"):
            train(make_config(overwrite_output_dir=overwrite))
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_a_disk_that_cannot_be_written_is_explained(make_config, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write .*file"):
        train(make_config(output_dir=str(tmp_path / "file" / "model")))


def test_a_folder_of_another_user_is_explained(make_config, monkeypatch):
    """As it is for a folder that this user may not write; tests may run as root, who may."""
    def denied(*arguments, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr("nej.files.FileLock.acquire", denied)
    with pytest.raises(InputError, match="cannot write .*: Permission denied; .*another place"):
        train(make_config())
    assert list(Path(make_config().output_dir).parent.iterdir()) == []


def test_max_length_over_the_models_is_explained(make_config):
    with pytest.raises(InputError, match="max_length is 65, but .* at most 64"):
        train(make_config(max_length=65))


def test_one_process_where_several_were_asked_for_is_noticed(monkeypatch, make_config):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what accelerate launch leaves
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="started 1; on CPUs use .*torchrun"):
        train(make_config())
    monkeypatch.setenv("WORLD_SIZE", "1")
    device.check_processes()


@pytest.mark.system
def test_torchrun_starts_two_processes(make_config, tmp_path):
    """What they learn is in test_processes.py."""
    config = make_config()
    keys = {key: getattr(config, key) for key in (
        "data_path", "model_name_or_path", "output_dir", "reports_dir", "max_length", "report_to")}
    (tmp_path / "two.json").write_text(json.dumps(keys | {"max_steps": 2, "do_predict": False}))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         "--nproc_per_node", "2", str(ROOT / "scripts" / "train.py"),
         "--config", str(tmp_path / "two.json")],
        capture_output=True, text=True)
    assert done.returncode == 0, [
        line for line in done.stderr.splitlines() if "error" in line]
    assert "2 process(es)" in done.stderr
    manifest = json.loads((Path(config.output_dir) / "manifest.json").read_text())
    assert manifest["processes"] == 2 and manifest["steps"] == 2
