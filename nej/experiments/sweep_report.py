"""What a search came to: a table, the importance of each key, a picture, the best settings."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.ticker import MaxNLocator, NullFormatter
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from nej import InputError
from nej.config import Config, load_config
from nej.experiments.search import STATES, Search
from nej.experiments.sweep import split_command
from nej.files import write_csv, write_json
from nej.pictures import BLUE, ORANGE, picture
from nej.tables import text_table

NAMES = {state: name for name, state in STATES.items()} | {TrialState.RUNNING: "unfinished"}


def write_report(search: Search) -> str:
    """Write trials.csv, search.png and best.json into the search's folder; return what to print.

    Raises:
        InputError: no trial is finished, or something cannot be written.
    """
    trials = ranked(search)
    if trials and trials[-1].state == TrialState.RUNNING and (
            trials[0].state != TrialState.COMPLETE):
        return f"no trial of {search.folder} is finished yet; other agents are working on it"
    if not trials or trials[0].state != TrialState.COMPLETE:
        raise InputError(f"no trial of {search.folder} is finished; give a larger --count, or see "
                         f"{search.folder}/trials for what they said")
    keys = list(search.sweep.space)
    importance = importances(search)
    header = ("trial", "state", search.sweep.metric, "validations", "minutes", *keys)
    rows = [(search.name(one), NAMES[one.state], one.value, len(one.intermediate_values),
             _minutes(one), *(one.params.get(key) for key in keys)) for one in trials]
    write_csv(search.folder / "trials.csv", header, rows)
    draw_search(search, importance, search.folder / "search.png")
    write_json(search.folder / "best.json", best_settings(search, trials[0]))
    finished = [one for one in trials if one.state == TrialState.COMPLETE]
    weights = "too few trials are finished to tell" if not importance else ", ".join(
        f"{key} {weight:.2f}" for key, weight in importance.items())
    return (f"{text_table([header, *(tuple(map(_text, row)) for row in rows)])}\n"
            f"importance, by PED-ANOVA over {len(finished)} finished trials: {weights}\n"
            f"written: {search.folder}/trials.csv, search.png\n"
            f"best settings: {search.folder}/best.json")


def ranked(search: Search) -> list[FrozenTrial]:
    """Return the trials that were begun: finished ones, the best first, then the others."""
    sign = -1 if search.sweep.maximize else 1
    order = [*STATES.values(), TrialState.RUNNING]
    return sorted(search.trials(*order), key=lambda one: (
        order.index(one.state), sign * (one.value if one.value is not None else 0), one.number))


def importances(search: Search) -> dict[str, float]:
    """Return how much of the variance of the best finished trials each key tells, in sum 1.

    Empty if there are too few to tell.
    """
    if len(search.trials(TrialState.COMPLETE)) < 4:
        return {}
    found = optuna.importance.get_param_importances(search.study)
    return found if sum(found.values()) > 0 else {}


def best_settings(search: Search, best: FrozenTrial) -> dict[str, Any]:
    """Return the config of the best trial as that of a run of its own, to be trained and judged."""
    sweep = search.sweep
    environment = {"WANDB_RUN_ID": search.name(best)}
    path, _ = split_command(sweep.command_line({}))
    base = load_config(path, environment=environment)
    given = json.loads(path.read_text("utf-8")) if path else {}
    resolved = asdict(sweep.config_of(best.params, environment=environment)) | {
        "output_dir": f"models/{sweep.name}-best", "reports_dir": base.reports_dir,
        "do_predict": base.do_predict}
    default = asdict(Config())
    return {key: value for key, value in resolved.items()
            if key in given or value != default[key]}


def draw_search(search: Search, importance: dict[str, float], target: Path) -> None:
    """Draw the metric over the trials, with the best so far, and over each key.

    Raises:
        InputError: it cannot be written.
    """
    keys = list(importance) or list(search.sweep.space)
    columns = min(4, len(keys) + 1)
    rows = -(-(len(keys) + 1) // columns)
    scored = [one for one in search.trials(TrialState.COMPLETE, TrialState.PRUNED)
              if one.value is not None]
    with picture(target, rows=rows, columns=columns, size=(3.4 * columns, 3 * rows + 0.4),
                 sharey=True, squeeze=False) as (figure, axes):
        axes = list(axes.flat)
        _draw_points(axes[0], [one.number for one in scored], scored)
        finished = [one for one in scored if one.state == TrialState.COMPLETE]
        better = np.maximum.accumulate if search.sweep.maximize else np.minimum.accumulate
        axes[0].step([one.number for one in finished],
                     better([one.value or 0.0 for one in finished]), where="post", color=BLUE,
                     linewidth=1, label="best so far")
        axes[0].set(title="All trials", xlabel="trial", ylabel=_words(search.sweep.metric))
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].legend(fontsize=8, loc="best")
        for axis, key in zip(axes[1:], keys):
            _draw_key(axis, key, search, scored)
            weight = f"\nimportance {importance[key]:.2f}" if key in importance else ""
            axis.set(title=f"{key}{weight}")
        for axis in axes[len(keys) + 1:]:
            axis.set_axis_off()
        figure.suptitle(f"Search {search.sweep.name}: {len(finished)} finished trials, "
                        f"{len(scored) - len(finished)} pruned")


def _draw_key(axis: Any, key: str, search: Search, trials: Sequence[FrozenTrial]) -> None:
    space = search.sweep.space[key]
    if isinstance(space, CategoricalDistribution):
        names = [str(choice) for choice in space.choices]
        _draw_points(axis, [names.index(str(one.params[key])) for one in trials], trials)
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.5)
    else:
        _draw_points(axis, [one.params[key] for one in trials], trials)
        axis.set_xlim(space.low, space.high)
        if space.log:
            axis.set_xscale("log")
            ticks = [space.low, math.sqrt(space.low * space.high), space.high]
            axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
            axis.xaxis.set_minor_formatter(NullFormatter())


def _draw_points(axis: Any, x: Sequence[float], trials: Sequence[FrozenTrial]) -> None:
    for state, colour, marker in ((TrialState.COMPLETE, BLUE, "o"),
                                  (TrialState.PRUNED, ORANGE, "x")):
        points = [(where, one.value) for where, one in zip(x, trials) if one.state == state]
        if points:
            axis.scatter(*zip(*points), color=colour, marker=marker, s=28, clip_on=False,
                         label=NAMES[state], zorder=3)
    axis.grid(alpha=0.3)


def _words(metric: str) -> str:
    names = {"eval_macro_f1": "macro F1", "eval_weighted_f1": "weighted F1"}
    return f"{names.get(metric, metric.removeprefix('eval_'))} on validation papers"


def _minutes(trial: FrozenTrial) -> float | None:
    return None if trial.duration is None else trial.duration.total_seconds() / 60


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
