"""Training: from a config to a finished model directory."""

import dataclasses
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    DistilBertForSequenceClassification, EarlyStoppingCallback, EvalPrediction,
    PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerState, TrainingArguments, set_seed,
)
from transformers.trainer_utils import rotate_checkpoints

from nej import InputError
from nej.baselines import soft_labels
from nej.batching import IGNORED, StepBatchSampler, collate, micro_batches_per_step
from nej.checkpoints import (
    check_fits, clear_remains, mark_unfinished, read_trace, seal, sole_run, unfinished_run,
    write_trace,
)
from nej.config import Config
from nej.dataset import cache_folder, describe, load_dataset
from nej.device import check_processes, explained_partners, prepare_device, use_bf16
from nej.files import CONFIG_FILE, TRACE, explained_writes, flush, write_csv, write_json
from nej.metrics import best_validation, validation_metrics
from nej.model import freeze, load_classifier, load_tokenizer, save_model
from nej.optimizer import make_optimizer
from nej.packing import pack, take_packed
from nej.stopping import StopInOrder, stop_on_signal
from nej.throughput import Throughput, without_times

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
            soft = soft_labels(dataset["train"], cache_folder(config, tokenizer))
            dataset["train"] = dataset["train"].add_column("soft_label", list(soft))
    model = load_classifier(
        config.model_name_or_path, labels=dataset["train"].features["label"].names,
        attn_implementation=config.attn_implementation or "sdpa",
        **rates)
    _check_max_length(config, model.config.max_position_embeddings)
    packed = device == "cpu" and config.attn_implementation is None
    if packed:
        take_packed(model)
    freeze(model, config.frozen_layers)
    if checkpoint is not None:
        check_fits(checkpoint, model)
    mark_unfinished(run, config)
    trainer = PaperTrainer(config, model, tokenizer, dataset, work_dir, packed=packed,
                           callbacks=callbacks)
    if checkpoint is not None:
        trainer.trace = read_trace(checkpoint / TRACE)
    with explained_writes(work_dir), stop_on_signal(trainer):
        start = time.perf_counter()
        if not trainer.is_finished(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.perf_counter() - start
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


class PaperTrainer(Trainer):
    """Trainer with nej's batches and a loss that is the mean over the papers of a whole step."""

    model: DistilBertForSequenceClassification
    train_dataset: datasets.Dataset

    def __init__(self, config: Config, model: DistilBertForSequenceClassification,
                 tokenizer: PreTrainedTokenizerBase, dataset: datasets.DatasetDict,
                 work_dir: Path, packed: bool, callbacks: Sequence[TrainerCallback] = ()):
        self.config = config
        self.stop_requested = self.interrupted = False
        self.saving_in: Path | None = None
        self.trace: list[tuple[float, float]] = []  # loss (this process's share), gradient norm
        self.loss_so_far: torch.Tensor | float = 0.0  # of the step that is under way
        labels = np.asarray(dataset["train"]["label"])
        names = dataset["train"].features["label"].names
        callbacks = [StopInOrder(self), *callbacks]
        if config.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
        super().__init__(
            model=model, args=_training_arguments(config, dataset["train"]["length"], work_dir),
            data_collator=partial(pack if packed else collate, pad_token_id=tokenizer.pad_token_id),
            train_dataset=dataset["train"],
            eval_dataset=dataset["validation"].select(  # neighbours pad each other little
                np.argsort(dataset["validation"]["length"], kind="stable"), keep_in_memory=True),
            compute_loss_func=self.step_loss, callbacks=callbacks,
            compute_metrics=partial(_validate, num_classes=len(names)))
        self.throughput = Throughput(model, self.args.bf16)
        self.paper_weights = None
        if config.class_weights == "balanced":
            counts = np.bincount(labels, minlength=len(names))
            self.paper_weights = torch.tensor(
                len(labels) / (len(names) * counts), dtype=torch.float32, device=self.args.device)

    def is_finished(self, checkpoint: Path | None) -> bool:
        """Return whether `checkpoint` is that of the last step, and if so take its best model.

        Trainer would train a step too many when the last step is not the last of an epoch.
        """
        if checkpoint is None:
            return False
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step < self.args.max_steps:
            return False
        self.state = state
        self._load_best_model()
        return True

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saving_in or self.args.output_dir)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint aside; give it its name when it is whole and sealed.

        Only then are older ones removed. A kill at any moment leaves whole checkpoints behind, and
        at most a folder .saving.
        """
        folder = Path(str(self.args.output_dir))
        target = folder / f"checkpoint-{self.state.global_step}"
        self.saving_in = folder / ".saving"
        if self.args.should_save:
            shutil.rmtree(self.saving_in, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process has written its random state
            if self.args.should_save:
                aside = self.saving_in / target.name
                if self.state.best_global_step:  # Trainer looked for it aside
                    best = folder / f"checkpoint-{self.state.best_global_step}"
                    self.state.best_model_checkpoint = str(best)
                    self.state.save_to_json(str(aside / "trainer_state.json"))
                write_trace(aside / TRACE, self.trace)
                seal(aside)
                shutil.rmtree(target, ignore_errors=True)  # one that was passed over
                aside.rename(target)
                flush(folder)
                self.saving_in.rmdir()
                rotate_checkpoints(str(folder), self.args.save_total_limit,
                                   self.state.best_model_checkpoint)
        finally:
            self.saving_in = None
        self.accelerator.wait_for_everyone()

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's micro-batches; see StepBatchSampler."""
        sampler = StepBatchSampler(
            self.train_dataset["length"], global_batch_size=self.config.global_batch_size,
            micro_batches=self.args.gradient_accumulation_steps, seed=self.config.seed,
            rank=self.args.process_index, world_size=self.args.world_size)
        loader = DataLoader(
            self.train_dataset.select_columns(
                [column for column in ("input_ids", "label", "soft_label")
                 if column in self.train_dataset.column_names]), batch_sampler=sampler,
            collate_fn=self.data_collator, num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
            generator=torch.Generator().manual_seed(self.config.seed))  # not the model's
        loader.set_epoch = sampler.set_epoch  # Trainer calls it
        return loader

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer that the config asks for."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(
                self.model, muon=self.config.optimizer == "muon",
                decayed=self.get_decay_parameter_names(self.model), lr=self.args.learning_rate,
                weight_decay=self.args.weight_decay, layer_decay=self.config.layer_decay)
        return self.optimizer

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """Add the micro-batch's loss to that of the step, and its tokens to what is logged."""
        loss = super().training_step(*args, **kwargs)
        self.loss_so_far = self.loss_so_far + loss
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if self.model.training:
            self.throughput.count(inputs)
        return inputs

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Log how fast it goes beside the loss."""
        if "loss" in logs:
            logs |= self.throughput.read()
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Validate; its time is none of the training's."""
        before = time.perf_counter()
        metrics = super().evaluate(*args, **kwargs)
        self.throughput.leave_out(time.perf_counter() - before)
        return metrics

    def _get_grad_norm(self, *args, **kwargs) -> float:
        norm = super()._get_grad_norm(*args, **kwargs)  # once in each step, before the update
        self.trace.append((float(self.loss_so_far), float(norm)))
        self.loss_so_far = 0.0
        return norm

    def compute_loss(self, model: torch.nn.Module, inputs: dict, *args, **kwargs):
        """Keep the soft labels, which the model does not take, for step_loss."""
        self.soft_labels = inputs.pop("soft_labels", None)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def step_loss(self, outputs: Any, labels: torch.Tensor,
                  num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        """Return the cross-entropy summed over these papers, over the papers of the whole step.

        Soft labels (Hinton et al., 2015, Distilling the Knowledge in a Neural Network, at
        temperature 1), class weights and label smoothing count in training only, so that the
        validation loss is the plain one.
        """
        training = self.model.training
        logits = outputs["logits"].float()
        losses = cross_entropy(
            logits, labels, reduction="none", ignore_index=IGNORED,
            label_smoothing=self.config.label_smoothing_factor if training else 0.0)
        if training and self.soft_labels is not None:
            share = self.config.distillation_weight
            soft = cross_entropy(logits, self.soft_labels, reduction="none")
            losses = (1 - share) * losses + share * soft * (labels != IGNORED)
        if training and self.paper_weights is not None:
            losses = losses * self.paper_weights[labels.clamp(min=0)]
        if num_items_in_batch is None:
            num_items_in_batch = (labels != IGNORED).sum()
        return losses.sum() / num_items_in_batch


def _training_arguments(config: Config, lengths: Sequence[int], work_dir: Path
                        ) -> TrainingArguments:
    """Translate the config; keys of the same name go through as they are."""
    world_size = PartialState().num_processes
    on_cpu = PartialState().device.type == "cpu"
    steps_per_epoch = math.ceil(len(lengths) / config.global_batch_size)
    steps = config.max_steps
    if steps < 0:
        steps = math.ceil(config.num_train_epochs * steps_per_epoch)
    micro_batches = micro_batches_per_step(
        np.asarray(lengths), global_batch_size=config.global_batch_size,
        micro_batch_tokens=config.micro_batch_tokens or (4096 if on_cpu else 16384),
        epochs=math.ceil(steps / steps_per_epoch), seed=config.seed, world_size=world_size)
    every = {name: math.ceil(value * steps) if value < 1 else int(value)
             for name, value in (("eval", config.eval_steps), ("logging", config.logging_steps))}
    shared = {f.name for f in dataclasses.fields(Config)} & {
        f.name for f in dataclasses.fields(TrainingArguments)}
    same = {name: getattr(config, name) for name in shared}
    bf16 = use_bf16(config, PartialState().device.type)
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"  # over the launcher's
    arguments = TrainingArguments(**same | {
        "output_dir": str(work_dir / "checkpoints"), "bf16": bf16, "use_cpu": on_cpu,
        "max_steps": steps,
        "run_name": config.run_name or Path(config.output_dir).name,
        "per_device_train_batch_size": math.ceil(
            config.global_batch_size / (micro_batches * world_size)),
        "gradient_accumulation_steps": micro_batches, "per_device_eval_batch_size": 32,
        "eval_strategy": "steps", "save_strategy": "steps",
        "eval_steps": every["eval"], "save_steps": every["eval"],
        "logging_steps": every["logging"], "save_total_limit": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "macro_f1",
        "label_names": ["labels"], "ddp_find_unused_parameters": False,
        "label_smoothing_factor": 0.0,  # step_loss does it
        "report_to": "none",  # a tracker is one of the callbacks
        "restore_callback_states_from_checkpoint": True,  # or early stopping forgets its count
        "logging_nan_inf_filter": False,  # a run that diverged says so
        "disable_tqdm": not sys.stderr.isatty(),
    })
    # one process takes one GPU: Trainer would otherwise wrap the model in DataParallel
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _validate(prediction: EvalPrediction, *, num_classes: int) -> dict[str, float]:
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
