"""Trainer with nej's batches, loss, optimizer and checkpoints."""

import dataclasses
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    DistilBertForSequenceClassification, EarlyStoppingCallback, EvalPrediction, Trainer,
    TrainerCallback, TrainerState, TrainingArguments,
)
from transformers.trainer_utils import rotate_checkpoints

from nej.batching import IGNORED, StepBatchSampler, collate, micro_batches_per_step
from nej.checkpoints import seal, write_trace
from nej.config import Config
from nej.device import use_bf16
from nej.files import TRACE, flush
from nej.optimizer import make_optimizer
from nej.packing import pack
from nej.stopping import StopInOrder
from nej.throughput import Throughput


class PaperTrainer(Trainer):
    """Trainer with nej's batches and a loss that is the mean over the papers of a whole step."""

    model: DistilBertForSequenceClassification
    train_dataset: Any  # a datasets.Dataset, or what behaves like one

    def __init__(self, config: Config, model: DistilBertForSequenceClassification,
                 dataset: Mapping[str, Any], work_dir: Path, *, packed: bool, pad_token_id: int,
                 callbacks: Sequence[TrainerCallback] = (),
                 compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None):
        self.config = config
        self.stop_requested = self.interrupted = False
        self.saving_in: Path | None = None
        # of each step: loss (this process's share) and gradient norm
        self.trace: list[tuple[float | torch.Tensor, float | torch.Tensor]] = []
        self.loss_so_far: torch.Tensor | float = 0.0  # of the step that is under way
        labels = np.asarray(dataset["train"]["label"][:])
        callbacks = [StopInOrder(self), *callbacks]
        if config.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(config.early_stopping_patience))
        super().__init__(
            model=model, args=_training_arguments(
                config, np.asarray(dataset["train"]["length"][:]), work_dir),
            data_collator=partial(pack if packed else collate, pad_token_id=pad_token_id),
            train_dataset=dataset["train"],
            eval_dataset=_to_read(dataset["validation"].select(  # neighbours pad each other little
                np.argsort(dataset["validation"]["length"][:], kind="stable"),
                keep_in_memory=True)),
            compute_loss_func=self.step_loss, callbacks=callbacks,
            compute_metrics=compute_metrics)
        self.throughput = Throughput(model, self.args.bf16)
        self.paper_weights = None
        if config.class_weights == "balanced":
            counts = np.bincount(labels, minlength=model.classifier.out_features)
            self.paper_weights = torch.tensor(
                len(labels) / (len(counts) * counts), dtype=torch.float32, device=self.args.device)

    def is_finished(self, checkpoint: Path | None) -> bool:
        """Return whether `checkpoint` is that of the last step, and if so take its best model.

        Trainer would train a step too many when the last step is not the last of an epoch, and go
        on after early stopping.
        """
        if checkpoint is None:
            return False
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        stopping = state.stateful_callbacks.get("EarlyStoppingCallback", {}).get("attributes", {})
        patience = self.config.early_stopping_patience
        stopped = patience is not None and (
            stopping.get("early_stopping_patience_counter", 0) >= patience)
        if state.global_step < self.args.max_steps and not stopped:
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
                self.trace = [(float(loss), float(norm)) for loss, norm in self.trace]
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
            self.train_dataset["length"][:], global_batch_size=self.config.global_batch_size,
            micro_batches=self.args.gradient_accumulation_steps, seed=self.config.seed,
            rank=self.args.process_index, world_size=self.args.world_size)
        loader = DataLoader(
            _to_read(self.train_dataset), batch_sampler=sampler,
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

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0, at once: what Trainer would count is not logged, `mfu` is."""
        return 0

    def _get_num_items_in_batch(self, batches: list[dict], device: torch.device
                                ) -> torch.Tensor | int | None:
        if self.args.world_size > 1:
            return super()._get_num_items_in_batch(batches, device)
        return sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)  # not on a GPU yet

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)  # pinned by the loader
        return super()._prepare_input(data)

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
        self.trace.append((self.loss_so_far, norm))  # numbers when saved: nobody waits
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


def _to_read(papers: Any) -> Any:
    """Return the columns that batches are made of, as arrays."""
    needed = [column for column in ("input_ids", "label", "soft_label")
              if column in papers.column_names]
    return papers.select_columns(needed).with_format("numpy")


def _training_arguments(config: Config, lengths: np.ndarray, work_dir: Path
                        ) -> TrainingArguments:
    """Translate the config; keys of the same name go through as they are."""
    world_size = PartialState().num_processes
    device = PartialState().device.type
    bf16 = use_bf16(config, device)
    large = device == "cuda" and bf16  # then papers lie end to end
    steps_per_epoch = math.ceil(len(lengths) / config.global_batch_size)
    steps = config.max_steps
    if steps < 0:
        steps = math.ceil(config.num_train_epochs * steps_per_epoch)
    micro_batches = micro_batches_per_step(
        lengths, global_batch_size=config.global_batch_size,
        micro_batch_tokens=config.micro_batch_tokens or (
            8192 if device == "cpu" else 65536 if large else 16384),
        epochs=math.ceil(steps / steps_per_epoch), seed=config.seed, world_size=world_size)
    every = {name: math.ceil(value * steps) if value < 1 else int(value)
             for name, value in (("eval", config.eval_steps), ("logging", config.logging_steps))}
    shared = {f.name for f in dataclasses.fields(Config)} & {
        f.name for f in dataclasses.fields(TrainingArguments)}
    same = {name: getattr(config, name) for name in shared}
    workers = config.dataloader_num_workers
    if workers is None:
        workers = 4 if device == "cuda" else 0
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"  # over the launcher's
    arguments = TrainingArguments(**same | {
        "output_dir": str(work_dir / "checkpoints"), "bf16": bf16, "use_cpu": device == "cpu",
        "max_steps": steps,
        "run_name": config.run_name or Path(config.output_dir).name,
        "per_device_train_batch_size": math.ceil(
            config.global_batch_size / (micro_batches * world_size)),
        "gradient_accumulation_steps": micro_batches,
        "per_device_eval_batch_size": 256 if large else 32,
        "eval_strategy": "steps", "save_strategy": "steps",
        "eval_steps": every["eval"], "save_steps": every["eval"],
        "logging_steps": every["logging"], "save_total_limit": 2,
        "dataloader_num_workers": workers,
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
