"""A sweep's yaml, in W&B's own format: what is searched, how, and the command that tries it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from nej import InputError
from nej.config import Config, load_config, read_settings
from nej.experiments.search_space import (
    Distribution, check_known, check_object, distribution_of, extremes, grid_values,
)

KEYS = ("project", "entity", "name", "description", "program", "method", "metric", "run_cap",
        "early_terminate", "command", "parameters")
METRICS = ("eval/macro_f1", "eval/accuracy", "eval/weighted_f1", "eval/loss")
LARGEST_GRID = 10_000


@dataclass(frozen=True)
class Hyperband:
    """After how many validations trials are compared, and which share of them goes on."""

    min_validations: int
    max_validations: int | None  # None: as many as a trial makes
    eta: int


@dataclass(frozen=True)
class Sweep:
    """A sweep, checked; `space` has Optuna's distribution of each key that is searched."""

    name: str
    method: str  # bayes, random or grid
    metric: str  # as in Trainer's log, eval_macro_f1 for one
    maximize: bool
    command: list[str]  # with ${args} where the settings go
    constants: dict[str, Any]
    space: dict[str, Distribution]
    hyperband: Hyperband | None
    run_cap: int | None
    overrides: list[str]  # of every trial, from the command line
    project: str | None = None  # in W&B
    entity: str | None = None

    def command_line(self, settings: Mapping[str, Any]) -> list[str]:
        """Return the command that tries `settings`, as W&B's agent puts it together."""
        flags = [f"--{key}={value}" for key, value in {**self.constants, **settings}.items()]
        return [part for item in self.command
                for part in ([*flags, *self.overrides] if item == "${args}" else [item])]

    def config_of(self, settings: Mapping[str, Any], *, environment: Mapping[str, str]) -> Config:
        """Return the config that a trial resolves.

        Raises:
            InputError: nej does not take it.
        """
        path, overrides = split_command(self.command_line(settings))
        return load_config(path, overrides, environment=environment)

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination of the values.

        Raises:
            InputError: a key has no end of values, or there are too many combinations.
        """
        values = {key: grid_values(key, distribution) for key, distribution in self.space.items()}
        size = math.prod(map(len, values.values()))
        if size > LARGEST_GRID:
            raise InputError(f"method: a grid of {size:,} trials; there may be {LARGEST_GRID:,}: "
                             "give fewer values, or random or bayes in place of grid")
        return [dict(zip(values, combination)) for combination in product(*values.values())]


def load_sweep(path: Path, overrides: list[str]) -> Sweep:
    """Read and check a sweep's yaml.

    Args:
        overrides: `--key value` for every trial, over the command's config.

    Raises:
        InputError: no such file, not of W&B's format, something in it that only W&B can do, a
            parameter that is no key of nej's or whose values nej does not take.
    """
    content = _read(path)
    for key in content:
        check_known(key, KEYS, str(path))
    metric, goal = _metric(content.get("metric"), path)
    constants: dict[str, Any] = {}
    space: dict[str, Distribution] = {}
    for key, parameter in check_object(content.get("parameters"), f"{path}: parameters").items():
        found = distribution_of(parameter, f"{path}: {key}")
        if isinstance(found, Distribution):
            space[key] = found
        else:
            constants[key] = found
    if not space:
        raise InputError(f"{path}: parameters has nothing to search; give a key min and max, or "
                         "values")
    method = content.get("method")
    if method not in ("bayes", "random", "grid"):
        raise InputError(f"{path}: method is {method!r}; it must be bayes, random or grid")
    for key in ("project", "entity"):
        if not isinstance(content.get(key), str | None):
            raise InputError(f"{path}: {key} is {content[key]!r}; it must be a name")
    run_cap = content.get("run_cap")
    if run_cap is not None and (type(run_cap) is not int or run_cap < 1):
        raise InputError(f"{path}: run_cap is {run_cap!r}; it must be a number of trials")
    sweep = Sweep(
        name=str(content.get("name", path.stem)), method=method, metric=metric,
        maximize=goal == "maximize", command=_command(content, path), constants=constants,
        space=space, hyperband=_hyperband(content.get("early_terminate"), path),
        run_cap=run_cap, overrides=overrides, project=content.get("project"),
        entity=content.get("entity"))
    _try(sweep)
    return sweep


def split_command(line: list[str]) -> tuple[Path | None, list[str]]:
    """Return the config file and the overrides of a command that trains.

    Raises:
        InputError: it does not train.
    """
    scripts = [index for index, item in enumerate(line) if Path(item).name == "train.py"]
    if not scripts:
        raise InputError("command: it has no scripts/train.py, which the trials must run")
    path, overrides = None, []
    items = iter(line[scripts[0] + 1:])
    for item in items:
        if item.partition("=")[0] != "--config":
            overrides.append(item)
        else:
            path = Path(item.partition("=")[2] or next(items, ""))
    return path, overrides


def _read(path: Path) -> dict[str, Any]:
    text = read_settings(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2020-13-45 is a ValueError
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}; correct the file"
                         ) from error
    return check_object(content, str(path))


def _metric(found: Any, path: Path) -> tuple[str, str]:
    name = check_object(found, f"{path}: metric").get("name")
    check_known(name, METRICS, f"{path}: metric")
    goal = found.get("goal", "minimize")  # as W&B takes it
    if goal != ("minimize" if name == "eval/loss" else "maximize"):
        raise InputError(f"{path}: metric: goal is {goal!r}, which is the worst {name}; change it")
    return str(name).replace("eval/", "eval_"), goal


def _command(content: dict[str, Any], path: Path) -> list[str]:
    names = {"${env}": "/usr/bin/env", "${interpreter}": "python",
             "${program}": content.get("program"), "${args}": "${args}"}
    found = content.get("command")
    if not isinstance(found, list) or "${args}" not in found or any(
            isinstance(item, (list, dict)) for item in found):
        raise InputError(f"{path}: command is {found!r}; it must be a list with ${{args}}, as in "
                         "configs/sweep.yaml")
    for item in found:
        if str(item).startswith("${"):
            check_known(item, names, f"{path}: command")
    return [str(names.get(item, item)) for item in found]


def _hyperband(found: Any, path: Path) -> Hyperband | None:
    """Translate W&B's ways to say it: from min_iter upwards, or s times downwards from max_iter."""
    if found is None:
        return None
    where = f"{path}: early_terminate"
    for key in check_object(found, where):
        check_known(key, ("type", "min_iter", "max_iter", "s", "eta"), where)
    if found.get("type") != "hyperband":
        raise InputError(f"{where}: type is {found.get('type')!r}; it must be hyperband")
    for key, low in ("eta", 2), ("min_iter", 1), ("max_iter", 1), ("s", 0):
        value = found.get(key, low)
        if type(value) is not int or value < low:
            raise InputError(f"{where}: {key} is {value!r}; it must be a whole number, at least "
                             f"{low}")
    eta, least, most = found.get("eta", 3), found.get("min_iter"), found.get("max_iter")
    if least is None and most is not None and "s" in found:
        least = max(1, most // eta ** found["s"])
    if least is None:
        raise InputError(f"{where}: it lacks min_iter, or max_iter and s; give whole numbers")
    if most is not None and most < least:
        raise InputError(f"{where}: max_iter is {most}, under min_iter, {least}; give more")
    return Hyperband(least, most, eta)


def _try(sweep: Sweep) -> None:
    """Resolve the config of each end of each parameter; a mistake shows now, not in trial 17."""
    if set(sweep.space) & {"output_dir", "reports_dir", "data_path"}:
        raise InputError("parameters: where things lie is nothing to search; give one value")
    for item in sweep.overrides:
        key = item.removeprefix("--").partition("=")[0]
        if item.startswith("--") and key in sweep.space:
            raise InputError(f"command line: the sweep searches {key}; give it one value in the "
                             "yaml, or leave it to the search")
    ends = {key: extremes(distribution) for key, distribution in sweep.space.items()}
    settings = {key: values[0] for key, values in ends.items()}
    places = [sweep.config_of(settings, environment={"WANDB_RUN_ID": name}).output_dir
              for name in ("first", "second")]
    if places[0] == places[1]:
        raise InputError(f"output_dir: each trial needs one of its own, and all have {places[0]}; "
                         "give $WANDB_RUN_ID in it, as in configs/sweep.yaml")
    for key, values in ends.items():
        for value in values[1:]:
            sweep.config_of({**settings, key: value}, environment={"WANDB_RUN_ID": "first"})


def describe(sweep: Sweep) -> dict[str, Any]:
    """Return what makes a sweep the one that it is, as JSON: to go on with it and no other."""
    fields = dataclasses.asdict(dataclasses.replace(sweep, space={}))
    left_out = ("run_cap", "space", "project", "entity")  # where it is tracked changes no trial
    return {key: value for key, value in fields.items() if key not in left_out} | {
        "space": {key: repr(distribution) for key, distribution in sweep.space.items()}}
