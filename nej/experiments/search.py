"""The search of a sweep without W&B: Optuna chooses, agents on one or more machines try.

What is known lies in a folder: a journal that any number of agents append to, and a lock for each
trial that is held while an agent works on it. A lock that nobody holds, of a trial that has not
ended, is that of an agent that was killed: the next one goes on with the trial.
"""

import json
import logging
import math
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState
from tqdm import tqdm

from nej import InputError
from nej.experiments.sweep import Sweep, describe
from nej.experiments.tracked_model import TRIAL
from nej.experiments.trial import Outcome, TrialRun

logger = logging.getLogger(__name__)

SEED = 42
STARTUP_TRIALS = 5  # at random, in each bracket of Hyperband, before TPE models what it has seen
FAILURES = 3  # if so many trials fail before one succeeds, there is a mistake in all of them
STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Search:
    """A study on disk, opened by one agent."""

    def __init__(self, sweep: Sweep, folder: Path):
        """Open the study in `folder`, or begin it.

        Raises:
            InputError: the folder holds another sweep's, or cannot be made.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep, self.folder = sweep, folder
        try:
            (folder / "trials").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--folder: cannot make {folder}/trials: {error.strerror}; name "
                             "another folder") from error
        journal = str(folder / "journal.jsonl")
        # an exclusively created file is a lock on NFS too, which SQLite's are not
        storage = JournalStorage(JournalFileBackend(journal, JournalFileOpenLock(journal)))
        with FileLock(folder / "take.lock"):
            self.study = optuna.create_study(
                study_name=sweep.name, storage=storage, load_if_exists=True,
                direction="maximize" if sweep.maximize else "minimize",
                pruner=_pruner(sweep))
            self._begin_or_check()

    def _begin_or_check(self) -> None:
        known = self.study.user_attrs.get("sweep")
        described = json.loads(json.dumps(describe(self.sweep)))
        if known is None:
            points = self.sweep.grid() if self.sweep.method == "grid" else []
            self.study.set_user_attr("id", secrets.token_hex(3))
            # an agent that was killed here has enqueued the first of them
            for point in points[len(self.trials()):]:
                self.study.enqueue_trial(point)
            self.study.set_user_attr("sweep", described)
        elif known != described:
            changed = [key for key in described if known.get(key) != described[key]]
            raise InputError(
                f"{self.folder} holds another sweep, with other {', '.join(changed)}; go on with "
                "its yaml and options, or name another --folder")

    def name(self, trial: Trial | FrozenTrial) -> str:
        """Return a trial's id, which is also that of its run in W&B."""
        return f"{self.study.user_attrs['id']}-{trial.number:03}"

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials, of these states only if any are given."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def work(self, count: int, stop: threading.Event, progress: tqdm) -> None:
        """Try until `count` trials have been begun by whatever agent, and none was left behind.

        Raises:
            InputError: all trials fail.
        """
        while not stop.is_set() and (taken := self._take(count)) is not None:
            trial, lock = taken
            try:
                outcome = self._try(trial, stop)
                if outcome.state != "stopped":
                    self._tell(trial, outcome)
                    progress.update()
            finally:
                lock.release()

    def _take(self, count: int) -> tuple[Trial, FileLock] | None:
        """Return a trial that was left behind or a new one, and its lock; None if all are taken."""
        with FileLock(self.folder / "take.lock"):
            for left in self.trials(TrialState.RUNNING):
                lock = self._lock(left)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                logger.info("%s: going on with it", self.name(left))
                self.study.sampler = self._sampler(left.number)
                return self._suggest(Trial(self.study, left._trial_id)), lock
            begun = len(self.trials()) - len(self.trials(TrialState.WAITING))
            left_in_grid = self.sweep.method != "grid" or self.trials(TrialState.WAITING)
            if begun >= count or not left_in_grid:
                return None
            self.study.sampler = self._sampler(begun)
            trial = self.study.ask()
            lock = self._lock(trial)
            lock.acquire()
            return self._suggest(trial), lock

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return the sampler of a trial; each has its own seed, so that agents do not draw the
        same, and a search that was stopped goes on as it would have.
        """
        if self.sweep.method == "bayes":
            return optuna.samplers.TPESampler(seed=SEED + number, n_startup_trials=STARTUP_TRIALS)
        return optuna.samplers.RandomSampler(seed=SEED + number)

    def _lock(self, trial: Trial | FrozenTrial) -> FileLock:
        return FileLock(self.folder / "trials" / f"{self.name(trial)}.lock")

    def _suggest(self, trial: Trial) -> Trial:
        """Give the trial a value of each key; those that it has already stay."""
        for key, space in self.sweep.space.items():
            if isinstance(space, CategoricalDistribution):
                trial.suggest_categorical(key, space.choices)
            elif isinstance(space, FloatDistribution):
                trial.suggest_float(key, space.low, space.high, step=space.step, log=space.log)
            else:
                trial.suggest_int(key, space.low, space.high, step=space.step)
        return trial

    def _try(self, trial: Trial, stop: threading.Event) -> Outcome:
        name = self.name(trial)
        environment = {"WANDB_RUN_ID": name, "WANDB_RUN_GROUP": self.sweep.name,
                       "WANDB_JOB_TYPE": TRIAL}
        environment |= {key: value for key, value in (
            ("WANDB_PROJECT", self.sweep.project), ("WANDB_ENTITY", self.sweep.entity)) if value}
        try:
            config = self.sweep.config_of(trial.params, environment=environment)
        except InputError as error:  # each value can be taken, but not these together
            return Outcome("failed", message=f"error: {error}")
        run = TrialRun(
            self.sweep.command_line(trial.params), environment, Path(config.output_dir),
            self.folder / "trials" / f"{name}.log", self.sweep.metric)
        reported = set(self.trials()[trial.number].intermediate_values)

        def report(values: Sequence[float]) -> bool:
            for step, value in enumerate(values, 1):
                if step not in reported:
                    trial.report(value, step)
                    reported.add(step)
                    if trial.should_prune():
                        return True
            return False
        logger.info("%s: %s", name, " ".join(f"{k}={_short(v)}" for k, v in trial.params.items()))
        return run.run(report, stop)

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        if outcome.state == "finished" and not math.isfinite(outcome.value or 0):
            outcome = Outcome("failed", message=f"{self.sweep.metric} is {outcome.value}")
        if outcome.message:
            trial.set_user_attr("message", outcome.message)
        self.study.tell(trial, outcome.value, STATES[outcome.state])
        logger.info("%s: %s%s", self.name(trial), outcome.state, (
            f", {self.sweep.metric} {outcome.value:.4f}" if outcome.value is not None else
            f": {outcome.message}" if outcome.message else ""))
        ended = self.trials(*STATES.values())
        if len(ended) >= FAILURES and all(one.state == TrialState.FAIL for one in ended):
            raise InputError(f"{len(ended)} trials have failed and none succeeded; the last said: "
                             f"{outcome.message} (all of it: {self.folder}/trials)")


def search(sweep: Sweep, folder: Path, *, count: int, jobs: int, stop: threading.Event) -> Search:
    """Try `count` trials in all, `jobs` at a time here; return the search as it stands.

    Raises:
        InputError: the folder holds another sweep, or all trials fail.
    """
    opened = Search(sweep, folder)
    done = len(opened.trials(*STATES.values()))
    with tqdm(total=count, initial=done, desc="trials", disable=None) as progress:
        if jobs == 1:
            opened.work(count, stop, progress)
            return opened
        with ThreadPoolExecutor(jobs) as pool:
            agents = [pool.submit(Search(sweep, folder).work, count, stop, progress)
                      for _ in range(jobs)]
            try:
                for agent in agents:
                    agent.result()
            except BaseException:
                stop.set()  # the others end in order
                raise
    return Search(sweep, folder)


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    if sweep.hyperband is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.HyperbandPruner(
        min_resource=sweep.hyperband.min_validations,
        max_resource=sweep.hyperband.max_validations or "auto",
        reduction_factor=sweep.hyperband.eta)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
