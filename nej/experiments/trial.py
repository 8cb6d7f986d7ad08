"""One trial of a sweep: its process, what it has come to so far, and its end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from nej.files import CONFIG_FILE, checkpoints, run_lock

POLL_SECONDS = 0.5


def is_worked_on(model_dir: Path) -> bool:
    """Return whether a run works on `model_dir` at this moment, here or on another machine."""
    lock = run_lock(model_dir)
    if not Path(lock.lock_file).exists():
        return False
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: finished, pruned, failed, or stopped and to be gone on with."""

    state: str
    value: float | None = None  # of the kept checkpoint, if it is finished
    message: str = ""  # why it failed


@dataclass(frozen=True)
class TrialRun:
    """A trial's command and the places it writes to."""

    command: Sequence[str]
    environment: Mapping[str, str]
    model_dir: Path
    log: Path  # what it prints
    metric: str  # as in Trainer's log

    def run(self, report: Callable[[list[float]], bool], stop: threading.Event) -> Outcome:
        """Start the command, or go on with what it was stopped at, until it ends.

        A process that outlived the agent which had started it is followed, not started twice.

        Args:
            report: takes the values of all validations so far; whether the trial is to be pruned.
            stop: set to end in order, with a checkpoint.
        """
        while not self.is_finished():
            process = None if is_worked_on(self.model_dir) else self._start()
            ended = self._follow(process, report, stop)
            if ended is not None:
                return ended
            if process is not None and not self.is_finished() and not is_worked_on(self.model_dir):
                return Outcome("failed", message=self._last_words())
        report(self.validations())
        metrics = json.loads((self.model_dir / "metrics.json").read_text("utf-8"))
        return Outcome("finished", metrics["validation"][self.metric.removeprefix("eval_")])

    def is_finished(self) -> bool:
        """Return whether the model directory is complete, and no process writes to it any more."""
        return (self.model_dir / CONFIG_FILE).exists() and not is_worked_on(self.model_dir)

    def validations(self) -> list[float]:
        """Return the metric of each validation so far, from the newest checkpoint or the model."""
        folder = self.model_dir.with_name(self.model_dir.name + ".partial") / "checkpoints"
        for place in (self.model_dir, *checkpoints(folder)):
            try:
                state = json.loads((place / "trainer_state.json").read_text("utf-8"))
            except (OSError, ValueError):  # it is another's turn: the run removes older ones
                continue
            return [log[self.metric] for log in state["log_history"] if self.metric in log]
        return []

    def discard(self) -> None:
        """Remove what a pruned trial has written: it is not gone on with."""
        shutil.rmtree(self.model_dir.with_name(self.model_dir.name + ".partial"),
                      ignore_errors=True)

    def _start(self) -> subprocess.Popen:
        path = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                list(self.command), env={**os.environ, "PATH": path, **self.environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)  # Ctrl-C is for us, who pass it on

    def _follow(self, process: subprocess.Popen | None, report: Callable[[list[float]], bool],
                stop: threading.Event) -> Outcome | None:
        """Report validations until nothing works on the trial any more, or its end is wanted."""
        seen = 0
        while True:
            alive = process.poll() is None if process else is_worked_on(self.model_dir)
            values = self.validations()
            if len(values) > seen:
                seen = len(values)
                if report(values) and process and alive:
                    self._end(process)
                    if not self.is_finished():  # it may have come first
                        self.discard()
                        return Outcome("pruned")
            if stop.is_set():
                if process and alive:
                    self._end(process)
                return None if self.is_finished() else Outcome("stopped")
            if not alive:
                return None
            stop.wait(POLL_SECONDS)

    def _end(self, process: subprocess.Popen) -> None:
        """Let the trial stop in order, and wait until it has.

        All of its processes are told; accelerate's launcher ends at once, before the training.
        """
        try:
            os.killpg(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        process.wait()
        while is_worked_on(self.model_dir):
            time.sleep(POLL_SECONDS)

    def _last_words(self) -> str:
        lines = self.log.read_text("utf-8", errors="replace").splitlines()
        errors = [line for line in lines if re.match(r"error\b", line)]
        return (errors or [line for line in lines if line.strip()] or ["it said nothing"])[-1]
