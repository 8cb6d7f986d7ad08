"""What a sweep may draw a setting from: W&B's distributions, as Optuna's."""

import difflib
import math
from collections.abc import Collection
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from nej import InputError

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
DISTRIBUTIONS = {  # and the keys that each has beside `distribution`
    "constant": {"value"}, "categorical": {"values"}, "int_uniform": {"min", "max"},
    "uniform": {"min", "max"}, "q_uniform": {"min", "max", "q"},
    "log_uniform_values": {"min", "max"}, "log_uniform": {"min", "max"},
}
LARGEST = 1e300
LARGEST_EXPONENT = 700  # e to the power of more is no float


def distribution_of(found: Any, where: str) -> Any:
    """Return Optuna's distribution of a parameter in the yaml, or its one value.

    Raises:
        InputError: it is of no kind that nej knows, or incomplete.
    """
    kind = check_object(found, where).get("distribution")
    keys = set(found) - {"distribution"}
    bounds = [found.get("min"), found.get("max")]
    if kind is None:  # as W&B tells them apart
        whole = [isinstance(bound, int) for bound in bounds]
        if keys == {"min", "max"} and any(whole) != all(whole):
            raise InputError(f"{where}: min and max are {bounds}; write both as whole numbers or "
                             "both with a point, or give a distribution")
        kind = ("constant" if keys == {"value"} else "categorical" if keys == {"values"}
                else "int_uniform" if all(whole) else "uniform")
    check_known(kind, DISTRIBUTIONS, where)
    if keys != DISTRIBUTIONS[kind] and keys | {"q"} != DISTRIBUTIONS[kind]:
        raise InputError(f"{where}: {kind} has {', '.join(sorted(DISTRIBUTIONS[kind]))}, and there "
                         f"is {', '.join(sorted(keys)) or 'nothing'}")
    if kind == "constant":
        return found["value"]
    if kind == "categorical":
        return _categories(found["values"], where)
    low, high, q = (_number(found.get(name, 1), f"{where}: {name}") for name in ("min", "max", "q"))
    if kind == "q_uniform" and q > 0:  # multiples of q
        low, high = round(low / q) * q, round(high / q) * q
    if not low < high or q <= 0 or kind == "log_uniform_values" and low <= 0:
        raise InputError(f"{where}: from {bounds[0]} to {bounds[1]} there is nothing to draw by "
                         f"{kind}; correct it")
    if kind == "log_uniform" and max(-low, high) > LARGEST_EXPONENT:
        raise InputError(f"{where}: min and max are {bounds}, which log_uniform takes as powers of "
                         f"e, from -{LARGEST_EXPONENT} to {LARGEST_EXPONENT}; to give the values "
                         "themselves, write log_uniform_values")
    return _interval(kind, low, high, q)


def _number(found: Any, where: str) -> float:
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise InputError(f"{where} is {found!r}; it must be a number (YAML takes 1e-5 for a text: "
                         "write 1.0e-5)")
    if not abs(found) <= LARGEST:
        raise InputError(f"{where} is not from -{LARGEST:g} to {LARGEST:g}; correct it")
    return found


def _categories(values: Any, where: str) -> CategoricalDistribution:
    plain = (str, int, float, bool, type(None))
    if not isinstance(values, list) or not values or not all(isinstance(v, plain) for v in values):
        raise InputError(f"{where}: values is {values!r}; it must be a list of numbers, texts, "
                         "true, false or null")
    return CategoricalDistribution(values)


def _interval(kind: str, low: float, high: float, q: float) -> Distribution:
    if kind == "int_uniform":
        return IntDistribution(int(low), int(high))
    if kind == "q_uniform":
        if isinstance(q, int):
            return IntDistribution(int(low), int(high), step=q)
        return FloatDistribution(low, high, step=q)
    if kind == "log_uniform":  # the bounds are exponents
        low, high = math.exp(low), math.exp(high)
    return FloatDistribution(low, high, log=kind.startswith("log"))


def grid_values(key: str, distribution: Distribution) -> list[Any]:
    """Return all values of a distribution; raise InputError if there is no end of them."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if distribution.step is None:
        raise InputError(f"method: a grid needs an end of values, and {key} has none; give it "
                         "values, or random or bayes in place of grid")
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [distribution.low + index * distribution.step for index in range(count)]


def extremes(distribution: Distribution) -> list[Any]:
    """Return the lowest and the highest value, or all if they have no order."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    return [distribution.low, distribution.high]


def check_object(found: Any, where: str) -> dict[str, Any]:
    """Return what has been found, if it is a mapping; else raise InputError."""
    if not isinstance(found, dict):
        raise InputError(f"{where} is {found!r}; it must be keys with values")
    return found


def check_known(key: Any, known: Collection[str], where: str) -> None:
    """Raise InputError, with what is nearest, if `key` is none of `known`."""
    if key not in [*known]:  # it may be of any type
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
        raise InputError(f"{where}: {key!r} is not known here; did you mean {near!r}? There are: "
                         f"{', '.join(sorted(known))}")
