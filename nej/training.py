"""Training: from a config to a finished model directory."""

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from transformers import EvalPrediction, PreTrainedTokenizerBase, TrainerCallback, set_seed

from nej import InputError
from nej.checkpoints import (
    check_fits, clear_remains, mark_unfinished, read_trace, sole_run, unfinished_run, write_trace,
)
from nej.config import Config
from nej.dataset import cache_folder, describe, load_dataset
from nej.device import check_processes, explained_partners, prepare_device, use_bf16
from nej.files import CONFIG_FILE, TRACE, explained_writes, write_csv, write_json
from nej.model import freeze, load_classifier, load_tokenizer, save_model
from nej.packing import can_pack, take_packed
from nej.stopping import stop_on_signal
from nej.throughput import without_times
from nej.trainer import PaperTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to; `model_dir` is complete unless `interrupted`."""

    model_dir: Path
    metrics: dict[str, float]  # of the best checkpoint, on the validation papers
    steps: int
    seconds: float  # of this process, stepping, validating and saving
    papers: dict[str, int]  # in each split
    split_sha256: dict[str, str]  # of the ids in each split, in order
    interrupted: bool
    resumed: bool
    changes: list[str]  # of the settings, while the run was stopped


def train(
    config: Config, *, callbacks: Sequence[TrainerCallback] = (),
    finish: Callable[[Path, TrainingResult], None] | None = None,
) -> TrainingResult:
    """Train as `config` says and write the model directory.

    The run works in `<output_dir>.partial`, from which the same command goes on after a stop, and
    which takes output_dir's name when all is done.

    Args:
        config: resolved settings.
        callbacks: more of Trainer's callbacks, a tracker's for one.
        finish: called by the main process with the model directory, before it takes its name, and
            the result: to add files that belong to a complete one.

    Raises:
        InputError: bad settings or data, another run in output_dir, a disk that cannot be written.
    """
    check_processes()
    device = prepare_device(config)
    with explained_partners(), sole_run(Path(config.output_dir)):
        return _train(config, device, callbacks, finish)


def _train(config: Config, device: str, callbacks: Sequence[TrainerCallback],
           finish: Callable | None) -> TrainingResult:
    model_dir = Path(config.output_dir)
    clear_remains(model_dir)
    run = unfinished_run(config)
    work_dir, checkpoint = run.folder, run.checkpoint
    set_seed(config.seed)
    tokenizer = load_tokenizer(config.model_name_or_path)
    rates = {} if config.dropout is None else dict.fromkeys(
        ("dropout", "attention_dropout", "seq_classif_dropout"), config.dropout)
    _check_max_length(config, tokenizer.model_max_length)
    with PartialState().local_main_process_first():  # the others find it in the cache
        dataset = load_dataset(config, tokenizer)
        if config.distillation_weight:
            from nej.baselines import soft_labels  # scikit-learn, which takes a second
            soft = soft_labels(dataset["train"], cache_folder(config, tokenizer))
            dataset["train"] = dataset["train"].add_column(  # a list of arrays takes seconds
                "soft_label", pa.FixedSizeListArray.from_arrays(soft.ravel(), soft.shape[1]))
    model = load_classifier(
        config.model_name_or_path, labels=dataset["train"].features["label"].names,
        attn_implementation=config.attn_implementation or "sdpa",
        **rates)
    _check_max_length(config, model.config.max_position_embeddings)
    packed = config.attn_implementation is None and can_pack(device, use_bf16(config, device))
    if packed:
        take_packed(model)
    freeze(model, config.frozen_layers)
    if checkpoint is not None:
        check_fits(checkpoint, model)
    mark_unfinished(run, config)
    trainer = PaperTrainer(
        config, model, dataset, work_dir, packed=packed, pad_token_id=tokenizer.pad_token_id,
        callbacks=callbacks, compute_metrics=partial(
            _validate, num_classes=model.classifier.out_features))
    if checkpoint is not None:
        trainer.trace += read_trace(checkpoint / TRACE)
    with explained_writes(work_dir), stop_on_signal(trainer):
        start = time.perf_counter()
        if not trainer.is_finished(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.perf_counter() - start
    from nej.metrics import best_validation  # see _validate
    result = TrainingResult(
        model_dir=model_dir, steps=trainer.state.global_step, seconds=seconds,
        metrics=best_validation(trainer.state.log_history),
        papers={name: len(split) for name, split in dataset.items()},
        split_sha256={name: split["sha256"]["id"] for name, split in describe(dataset).items()},
        interrupted=trainer.interrupted, resumed=checkpoint is not None, changes=run.changes)
    if PartialState().is_main_process and not result.interrupted:
        with explained_writes(work_dir):
            _write_model_dir(trainer, tokenizer, work_dir, result, finish)
    PartialState().wait_for_everyone()
    return result


def _validate(prediction: EvalPrediction, *, num_classes: int) -> dict[str, float]:
    from nej.metrics import validation_metrics  # it takes a second, which the first step need not
    return validation_metrics(np.asarray(prediction.predictions).argmax(-1),
                              np.asarray(prediction.label_ids), num_classes=num_classes)


def _check_max_length(config: Config, most: int) -> None:
    if config.max_length > most:
        raise InputError(f"max_length is {config.max_length}, but {config.model_name_or_path} "
                         f"reads at most {most} tokens; lower max_length")


def _write_model_dir(trainer: PaperTrainer, tokenizer: PreTrainedTokenizerBase, work_dir: Path,
                     result: TrainingResult, finish: Callable | None) -> None:
    """Fill the work folder with a complete model and give it its name."""
    write_json(work_dir / CONFIG_FILE, dataclasses.asdict(trainer.config))
    save_model(trainer.model, work_dir)
    tokenizer.save_pretrained(work_dir)
    # without times, so that the same run writes the same file; manifest.json has them
    trainer.state.log_history = [without_times(log) for log in trainer.state.log_history]
    trainer.state.save_to_json(str(work_dir / "trainer_state.json"))
    write_trace(work_dir / TRACE, trainer.trace)
    keys = ("loss", "accuracy", "macro_f1", "weighted_f1")
    write_csv(work_dir / "validations.csv", ("step", *keys), (
        (log["step"], *(log[f"eval_{key}"] for key in keys))
        for log in trainer.state.log_history if "eval_loss" in log))
    write_json(work_dir / "metrics.json", {"validation": result.metrics})
    if finish is not None:
        finish(work_dir, result)
    replaced = result.model_dir.with_name(result.model_dir.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if result.model_dir.exists():
        result.model_dir.rename(replaced)
    work_dir.rename(result.model_dir)
    for folder in (replaced, result.model_dir / "checkpoints"):  # last: a kill loses nothing
        shutil.rmtree(folder, ignore_errors=True)
