"""A sweep's yaml, in W&B's own format: what is searched, how, and the command that tries it."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution,
)

from nej import InputError
from nej.config import Config, load_config

KEYS = ("project", "entity", "name", "description", "program", "method", "metric", "run_cap",
        "early_terminate", "command", "parameters")
METRICS = ("eval/macro_f1", "eval/accuracy", "eval/weighted_f1", "eval/loss")
DISTRIBUTIONS = {  # and the keys that each has beside `distribution`
    "constant": {"value"}, "categorical": {"values"}, "int_uniform": {"min", "max"},
    "uniform": {"min", "max"}, "q_uniform": {"min", "max", "q"},
    "log_uniform_values": {"min", "max"}, "log_uniform": {"min", "max"},
}
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
    space: dict[str, BaseDistribution]
    hyperband: Hyperband | None
    run_cap: int | None
    overrides: list[str]  # of every trial, from the command line

    def command_line(self, settings: Mapping[str, Any]) -> list[str]:
        """Return the command that tries `settings`, as W&B's agent puts it together."""
        flags = [f"--{key}={value}" for key, value in {**self.constants, **settings}.items()]
        line = [part for item in self.command
                for part in ([*flags, *self.overrides] if item == "${args}" else [item])]
        return line

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
        values = {key: _values(key, distribution) for key, distribution in self.space.items()}
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
        _known(key, KEYS, str(path))
    metric, goal = _metric(content.get("metric"), path)
    constants, space = {}, {}
    for key, parameter in _object(content.get("parameters"), f"{path}: parameters").items():
        found = _distribution(parameter, f"{path}: {key}")
        (space if isinstance(found, BaseDistribution) else constants)[key] = found
    if not space:
        raise InputError(f"{path}: parameters has nothing to search; give a key min and max, or "
                         "values")
    method = content.get("method")
    if method not in ("bayes", "random", "grid"):
        raise InputError(f"{path}: method is {method!r}; it must be bayes, random or grid")
    sweep = Sweep(
        name=str(content.get("name", path.stem)), method=method, metric=metric,
        maximize=goal == "maximize", command=_command(content, path), constants=constants,
        space=space, hyperband=_hyperband(content.get("early_terminate"), path),
        run_cap=content.get("run_cap"), overrides=overrides)
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
    try:
        return _object(yaml.safe_load(path.read_text("utf-8")), str(path))
    except FileNotFoundError:
        there = ", ".join(sorted(str(p) for p in Path("configs").glob("*.yaml"))) or "none"
        raise InputError(f"no file {path}; there are: {there}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error


def _object(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InputError(f"{where} is {found!r}; it must be keys with values")
    return found


def _known(key: str, known: Any, where: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
        raise InputError(f"{where}: {key!r} is not known here; did you mean {near!r}? There are: "
                         f"{', '.join(sorted(known))}")


def _metric(found: Any, path: Path) -> tuple[str, str]:
    name = _object(found, f"{path}: metric").get("name")
    _known(name, METRICS, f"{path}: metric")
    goal = found.get("goal", "minimize")  # as W&B takes it
    if goal != ("minimize" if name == "eval/loss" else "maximize"):
        raise InputError(f"{path}: metric: goal is {goal!r}, which is the worst {name}; change it")
    return name.replace("eval/", "eval_"), goal


def _command(content: dict[str, Any], path: Path) -> list[str]:
    names = {"${env}": ["/usr/bin/env"], "${interpreter}": ["python"],
             "${program}": [content.get("program")], "${args}": ["${args}"]}
    found = content.get("command")
    if not isinstance(found, list) or "${args}" not in found:
        raise InputError(f"{path}: command is {found!r}; it must be a list with ${{args}}, as in "
                         "configs/sweep.yaml")
    for item in found:
        if str(item).startswith("${"):
            _known(item, names, f"{path}: command")
    return [str(part) for item in found for part in names.get(item, [item])]


def _hyperband(found: Any, path: Path) -> Hyperband | None:
    """Translate W&B's ways to say it: from min_iter upwards, or s times downwards from max_iter."""
    if found is None:
        return None
    where = f"{path}: early_terminate"
    for key in _object(found, where):
        _known(key, ("type", "min_iter", "max_iter", "s", "eta", "strict"), where)
    if found.get("type") != "hyperband":
        raise InputError(f"{where}: type is {found.get('type')!r}; it must be hyperband")
    eta, most = found.get("eta", 3), found.get("max_iter")
    least = found.get("min_iter")
    if least is None and most is not None and "s" in found:
        least = max(1, int(most / eta ** found["s"]))
    for key, value, low in ("eta", eta, 2), ("min_iter, or max_iter and s,", least, 1):
        if not isinstance(value, int) or value < low:
            raise InputError(f"{where}: {key} is {value!r}; it must be a whole number, at least "
                             f"{low}")
    return Hyperband(least, most, eta)


def _distribution(found: Any, where: str) -> Any:
    """Return Optuna's distribution of a parameter, or its one value."""
    kind = _object(found, where).get("distribution")
    keys = set(found) - {"distribution"}
    bounds = [found.get("min"), found.get("max")]
    if kind is None:  # as W&B tells them apart
        whole = [isinstance(bound, int) for bound in bounds]
        if keys == {"min", "max"} and any(whole) != all(whole):
            raise InputError(f"{where}: min and max are {bounds}; write both as whole numbers or "
                             "both with a point, or give a distribution")
        kind = ("constant" if keys == {"value"} else "categorical" if keys == {"values"}
                else "int_uniform" if all(whole) else "uniform")
    _known(kind, DISTRIBUTIONS, where)
    if keys != DISTRIBUTIONS[kind] and keys | {"q"} != DISTRIBUTIONS[kind]:
        raise InputError(f"{where}: {kind} has {', '.join(sorted(DISTRIBUTIONS[kind]))}, and there "
                         f"is {', '.join(sorted(keys)) or 'nothing'}")
    if kind == "constant":
        return found["value"]
    if kind == "categorical":
        return _categories(found["values"], where)
    for name, bound in zip(("min", "max"), bounds):
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise InputError(f"{where}: {name} is {bound!r}; it must be a number (YAML takes 1e-5 "
                             "for a text: write 1.0e-5)")
    if not bounds[0] < bounds[1] or kind == "log_uniform_values" and bounds[0] <= 0:
        raise InputError(f"{where}: from {bounds[0]} to {bounds[1]} there is nothing to draw by "
                         f"{kind}; correct min and max")
    return _interval(kind, *bounds, found.get("q", 1))


def _categories(values: Any, where: str) -> CategoricalDistribution:
    plain = (str, int, float, bool, type(None))
    if not isinstance(values, list) or not values or not all(isinstance(v, plain) for v in values):
        raise InputError(f"{where}: values is {values!r}; it must be a list of numbers, texts, "
                         "true, false or null")
    return CategoricalDistribution(values)


def _interval(kind: str, low: float, high: float, q: float) -> BaseDistribution:
    if kind == "int_uniform":
        return IntDistribution(int(low), int(high))
    if kind == "q_uniform":  # multiples of q
        low, high = round(low / q) * q, round(high / q) * q
        whole = isinstance(q, int)
        return IntDistribution(low, high, step=q) if whole else FloatDistribution(low, high, step=q)
    if kind == "log_uniform":  # the bounds are exponents
        low, high = math.exp(low), math.exp(high)
    return FloatDistribution(low, high, log=kind.startswith("log"))


def _values(key: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if distribution.step is None:
        raise InputError(f"method: a grid needs an end of values, and {key} has none; give it "
                         "values, or random or bayes in place of grid")
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + index * distribution.step for index in range(count)]


def _try(sweep: Sweep) -> None:
    """Resolve the config of each end of each parameter; a mistake shows now, not in trial 17."""
    ends = {key: _ends(distribution) for key, distribution in sweep.space.items()}
    settings = {key: values[0] for key, values in ends.items()}
    environment = {"WANDB_RUN_ID": "first"}
    config = sweep.config_of(settings, environment=environment)
    names = [item[2:].partition("=")[0] for item in sweep.overrides if item.startswith("--")]
    for key in names:
        if key in sweep.space:
            raise InputError(f"command line: the sweep searches {key}; take it out of the yaml's "
                             "parameters to give it one value")
    for key, values in ends.items():
        for value in values[1:]:
            sweep.config_of({**settings, key: value}, environment=environment)
    other = sweep.config_of(settings, environment={"WANDB_RUN_ID": "second"})
    if config.output_dir == other.output_dir:
        raise InputError(f"output_dir: each trial needs one of its own, and all have "
                         f"{config.output_dir}; give $WANDB_RUN_ID in it, as configs/sweep.yaml")
    if set(sweep.space) & {"output_dir", "reports_dir", "data_path"}:
        raise InputError("parameters: where things lie is nothing to search")


def _ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return [distribution.low, distribution.high]


def describe(sweep: Sweep) -> dict[str, Any]:
    """Return what makes a sweep the one that it is, as JSON: to go on with it and no other."""
    fields = dataclasses.asdict(dataclasses.replace(sweep, space={}))
    return {key: value for key, value in fields.items() if key not in ("run_cap", "space")} | {
        "space": {key: repr(distribution) for key, distribution in sweep.space.items()}}
