"""Stopping in order: a signal ends the training after its step, with a checkpoint."""

import logging
import os
import signal
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainingArguments

logger = logging.getLogger(__name__)


class Stoppable(Protocol):
    """A Trainer that can be asked to stop, and learns that it was."""

    args: TrainingArguments
    accelerator: Any
    stop_requested: bool
    interrupted: bool


class StopInOrder(TrainerCallback):
    """When a signal asked for it, end the step with a checkpoint and stop.

    Args:
        trainer: it has stop_requested, which a signal sets, and learns that it was interrupted.
    """

    def __init__(self, trainer: Stoppable):
        self.trainer = trainer
        # accelerate launch ends at a signal and says nothing to the process that it has started
        self.launcher = os.getppid() if "ACCELERATE_USE_CPU" in os.environ else None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step < state.max_steps and self._stop_wanted():
            # a validation that is due after this step still happens: the best one counts
            control.should_save = control.should_training_stop = True
            self.trainer.interrupted = True

    def _stop_wanted(self) -> bool:
        if self.launcher not in (None, os.getppid()):
            self.trainer.stop_requested = True
        if self.trainer.args.world_size > 1:  # all processes must leave at the same step
            wanted = torch.tensor([self.trainer.stop_requested], device=self.trainer.args.device)
            self.trainer.stop_requested = bool(self.trainer.accelerator.gather(wanted).any())
        return self.trainer.stop_requested


class stop_on_signal:
    """While the block runs, SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (which clusters send before they
    take a machine away) ask the trainer to save and stop; a second one stops at once.
    """

    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1")
               if hasattr(signal, name)]

    def __init__(self, trainer: Stoppable):
        self.trainer = trainer

    def __enter__(self):
        self.before = {number: signal.signal(number, self._handle)
                       for number in self.signals}

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        self.trainer.stop_requested = True
        for again, handler in self.before.items():
            signal.signal(again, handler)
        logger.warning("stopping after this step, with a checkpoint; once more stops at once")
