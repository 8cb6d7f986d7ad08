"""The settings of a run: one flat JSON file, checked, overridable from the command line.

Keys that `transformers.TrainingArguments` has keep their name and meaning there; nej's own stand
beside them. The order is: defaults, then the file, then `--key value` or `--key=value`.
"""

import argparse
import dataclasses
import difflib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from string import Template
from typing import Any, Literal, get_args, get_type_hints

from transformers import HfArgumentParser

from nej import InputError
from nej.fields import is_text

OTHER = "Other"
OVER_ZERO = ("learning_rate", "num_train_epochs", "eval_steps", "logging_steps")
BOUNDS = {
    "max_bad_rows": (0, math.inf), "near_duplicate_threshold": (0.6, 1),
    "short_summary_words": (0, math.inf), "small_category_papers": (0, math.inf),
    "min_papers": (1, math.inf), "top_k": (1, math.inf), "max_train_papers": (1, math.inf),
    "validation_fraction": (0.001, 0.4), "test_fraction": (0.001, 0.4),
    "max_length": (4, math.inf), "dropout": (0, 0.9), "frozen_layers": (0, math.inf),
    "global_batch_size": (1, math.inf), "micro_batch_tokens": (1, math.inf),
    "learning_rate": (0, 1), "layer_decay": (0.1, 1), "num_train_epochs": (0, 10**4),
    "max_steps": (-1, 10**7), "warmup_steps": (0, math.inf),
    "weight_decay": (0, 1), "max_grad_norm": (0, math.inf), "label_smoothing_factor": (0, 0.9),
    "distillation_weight": (0, 1),
    "early_stopping_patience": (1, math.inf), "dataloader_num_workers": (0, 256),
    "ddp_timeout": (1, 10**7), "seed": (0, 2**32 - 1),
}
# keys of what is around a run: runs that differ in nothing else are the same
AROUND = ("output_dir", "run_name", "reports_dir", "overwrite_output_dir", "allow_changes",
          "report_to", "do_predict")
LARGEST = 2**63  # no number of a config is as large


def _key(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Config:
    """One experiment, resolved and checked. docs/configuration.md explains each key."""

    # data
    data_path: str = _key("data/arxiv.csv", "CSV of papers with Kaggle's columns.")
    text_fields: Literal["summary", "title+summary"] = _key(
        "summary", "What the model reads: the summary, or the title and the summary.")
    label_column: Literal["category_code", "category"] = _key(
        "category_code", "The column that is the label.")
    categories: list[str] | None = _key(
        None, "Use these categories only; null takes all of them.")
    min_papers: int | None = _key(
        None, "Then use categories with at least this many papers only.")
    top_k: int | None = _key(None, "Then use this many of the largest categories only.")
    other_categories: Literal["drop", "gather"] = _key(
        "drop", "Papers of all other categories: drop them, or gather them as 'Other'.")
    max_bad_rows: int = _key(
        0, "Rows that may be unreadable or incomplete, and are left out; more of them stop.")
    near_duplicate_threshold: float | None = _key(
        0.8, "Leave out papers whose summary is so similar (0.6 to 1) to that of an earlier row; "
             "null leaves out equal ones only.")
    short_summary_words: int = _key(
        20, "The check of the data warns of summaries with fewer words.")
    small_category_papers: int = _key(
        100, "The check of the data warns of categories with fewer papers.")
    validation_fraction: float = _key(
        0.1, "Share of the papers to choose on, by the hash of their id.")
    test_fraction: float = _key(
        0.1, "Share of the papers to judge on, by the hash of their id.")
    validation_from: str | None = _key(
        None, "In place of the two shares: papers published from this day on, as 2018-01-01, are "
              "for validation. Those without a date are left out.")
    test_from: str | None = _key(
        None, "With validation_from: papers published from this later day on are for the test.")
    max_train_papers: int | None = _key(
        None, "Train on this many of the training papers only; null takes all.")
    # model
    model_name_or_path: str = _key(
        "distilbert-base-uncased", "A name on the Hugging Face hub, or a folder.")
    max_length: int = _key(256, "Tokens of a paper that are read; the rest is cut off.")
    dropout: float | None = _key(
        None, "All three dropout rates of the model; null keeps the checkpoint's.")
    frozen_layers: int | None = _key(
        None, "Leave the embeddings and so many of the first layers as they are: less time and "
              "memory per step; 0 is the embeddings alone, null trains all.")
    attn_implementation: Literal["eager", "sdpa"] | None = _key(
        None, "Pad papers, and attend so; null means no padding at all on a CPU, and on a GPU that "
              "computes in bfloat16.")
    # training
    output_dir: str = _key(
        "models/base", "The model directory that the run makes; $NAME in it is taken from the "
                       "environment.")
    overwrite_output_dir: bool = _key(
        False, "Replace a finished run in output_dir, once the new one is finished.")
    global_batch_size: int = _key(
        32, "Papers per optimizer step, over all processes and devices.")
    micro_batch_tokens: int | None = _key(
        None, "Most tokens that a device takes at once, if one paper does not have more; null "
              "means 8192 on a CPU, 65536 on a GPU in bfloat16, else 16384.")
    optimizer: Literal["adamw", "muon"] = _key(
        "adamw", "'muon' trains the layers' matrices with Muon, the rest with AdamW.")
    learning_rate: float = _key(5e-5, "Peak learning rate.")
    layer_decay: float = _key(
        1.0, "A layer learns at so much of the rate of the layer above it.")
    num_train_epochs: float = _key(3.0, "Passes over the training papers.")
    max_steps: int = _key(-1, "Optimizer steps, in place of num_train_epochs if over 0.")
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial"
    ] = _key("linear", "How the learning rate falls.")
    warmup_steps: float = _key(
        0.06, "Steps of linear warm-up; under 1, a share of all steps.")
    weight_decay: float = _key(0.01, "Weight decay, decoupled.")
    max_grad_norm: float = _key(1.0, "Clip gradients to this norm; 0 turns it off.")
    label_smoothing_factor: float = _key(
        0.0, "Probability that is spread over all classes in the target.")
    distillation_weight: float = _key(
        0.0, "Share of the target that is not the label but the probabilities of TF-IDF + "
             "LinearSVC, out of fold; 0 does without them.")
    class_weights: Literal["none", "balanced"] = _key(
        "none", "'balanced' weighs a paper by the inverse frequency of its class.")
    eval_steps: float = _key(
        0.2, "Validate and save a checkpoint every so many steps; under 1, a share of all steps.")
    early_stopping_patience: int | None = _key(
        None, "Stop after so many validations without a better macro F1; null never stops.")
    logging_steps: float = _key(
        0.01, "Log every so many steps; under 1, a share of all steps.")
    bf16: bool | None = _key(
        None, "Compute in bfloat16 (weights stay float32); null does where the device has it.")
    use_cpu: bool = _key(False, "Do not use a GPU though there is one.")
    ddp_timeout: int = _key(
        1800, "Seconds that a process waits for the others before it gives up.")
    dataloader_num_workers: int | None = _key(
        None, "Worker processes that make batches; null means 4 with CUDA, else none.")
    seed: int = _key(42, "Seeds the head, dropout and the order of the papers.")
    allow_changes: bool = _key(
        False, "Go on with the unfinished run in output_dir though its settings were others.")
    # around the run
    do_predict: bool = _key(
        True, "Judge the finished model on the test papers; sweeps say false.")
    report_to: Literal["wandb", "none"] = _key("wandb", "Where to track the run.")
    run_name: str | None = _key(None, "Name in the tracker; null takes output_dir's.")
    reports_dir: str = _key("reports", "Where figures go; $NAME as in output_dir.")


def load_config(path: Path | None = None, overrides: list[str] | None = None, *,
                environment: Mapping[str, str] = os.environ) -> Config:
    """Resolve defaults, the JSON file at `path` and command-line `overrides`, in this order.

    Args:
        environment: where $NAME in a folder is looked up.

    Raises:
        InputError: no such file, not JSON, an unknown key, a wrong type, an impossible value.
    """
    values = {key: _checked_type(key, value, f"{path}") for key, value in _read(path).items()}
    values |= _parse_overrides(overrides or [])
    config = _fill_in(Config(**values), environment)
    _check_values(config)
    return config


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    text = read_settings(Path(path), option="--config")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}; correct the file"
        ) from error
    except (ValueError, RecursionError) as error:  # thousands of digits or of brackets
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: not a config: {reason}; correct the file") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: found a {type(content).__name__}; a config is one flat object")
    return content


def read_settings(path: Path, *, option: str = "") -> str:
    """Return the text of a file of settings, which `option` names.

    Raises:
        InputError: no such file, with those of its kind in configs/; or it cannot be read.
    """
    named = f"{option}: " if option else ""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        there = ", ".join(sorted(map(str, Path("configs").glob(f"*{path.suffix}")))) or "none"
        raise InputError(f"{named}no file {path}; there are: {there}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{named}cannot read {path}: {error}") from error


def _known(key: str, where: str) -> str:
    """Return `key` if it is one of Config's, else explain."""
    names = [f.name for f in dataclasses.fields(Config)]
    if key in names:
        return key
    if key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        raise InputError(f"{where}: nej derives {key!r} itself; set global_batch_size (papers per "
                         "optimizer step) and, if memory is short, micro_batch_tokens")
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.0)[0]
    raise InputError(f"{where}: unknown key {key!r}; did you mean {nearest!r}? "
                     "docs/configuration.md lists all keys")


def _checked_type(key: str, value: Any, where: str) -> Any:
    """Return a JSON value of the type that Config's field has, or raise InputError."""
    wanted = get_type_hints(Config)[_known(key, where)]
    options = get_args(wanted) if type(None) in get_args(wanted) else [wanted]
    for option in options:
        choices = get_args(option)
        if option is type(None) and value is None:
            return value
        if type(value) is int and option in (int, float) and abs(value) < LARGEST:
            return option(value)
        if option is float and type(value) is float:
            return value
        if option in (str, bool) and type(value) is option:
            return value
        if option == list[str] and isinstance(value, list) and value and (
                all(isinstance(item, str) for item in value)):
            return value
        if choices and option != list[str] and isinstance(value, str) and value in choices:
            return value
    raise InputError(f"{where}: {key} is {json.dumps(value)[:100]}; it must be "
                     f"{_describe(wanted)}")


def _describe(wanted: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text",
             type(None): "null", list[str]: "a list of texts"}
    if wanted in names:
        return names[wanted]
    parts = [names.get(o) or (_describe(o) if get_args(o) else f"'{o}'") for o in get_args(wanted)]
    return " or ".join(parts)


class _Parser(HfArgumentParser):
    """HfArgumentParser with `none` and `null` for keys that may be null, and errors of ours."""

    def __init__(self):
        super().__init__(Config, allow_abbrev=False, add_help=False)
        for action in self._actions:
            if type(None) in get_args(get_type_hints(Config)[action.dest]):
                action.type = self._or_null(action.type)
                action.choices = action.choices and [*action.choices, None]
            action.default = argparse.SUPPRESS  # only what is given overrides the file

    @staticmethod
    def _or_null(convert: Callable[[str], Any]) -> Callable[[str], Any]:
        def convert_or_null(text: str) -> Any:
            return None if text.lower() in ("none", "null") else convert(text)
        convert_or_null.__name__ = getattr(convert, "__name__", "value")  # argparse names it
        return convert_or_null

    def error(self, message: str):
        raise InputError(f"command line: {message}")


def _parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """Return the keys that `--key value`, `--key=value` or `--flag` give, with their types."""
    known, unknown = _Parser().parse_known_args(arguments)
    for argument in unknown:
        if argument.startswith("--"):
            _known(argument[2:].partition("=")[0], "command line")
        raise InputError(f"command line: found {argument!r} where a --key should be")
    values = {key: None if value == [None] else value for key, value in vars(known).items()}
    return {key: _checked_type(key, value, "command line") for key, value in values.items()}


def _fill_in(config: Config, environment: Mapping[str, str]) -> Config:
    """Fill $NAME into the places that the run writes to: trials of a sweep differ in it."""
    places: dict[str, Any] = {}
    for key in ("output_dir", "reports_dir"):
        try:
            places[key] = Template(getattr(config, key)).substitute(environment)
        except (KeyError, ValueError):
            raise InputError(f"{key} is {getattr(config, key)!r}, and the environment has no such "
                             "variable; set it, or name a folder without $") from None
    return dataclasses.replace(config, **places)


def _check_values(config: Config) -> None:
    for key in ("output_dir", "reports_dir"):
        place = getattr(config, key)
        if "\0" in place or not is_text(place):
            raise InputError(f"{key} is {place[:100]!a}, which no folder can be called; rename it")
    if Path(config.reports_dir).is_file():
        raise InputError(f"reports_dir is {config.reports_dir}, which is a file; name a folder")
    if Path(config.output_dir).name in ("", ".."):
        raise InputError(f"output_dir is {config.output_dir!r}; it must be a folder of its own, "
                         "models/x for one")
    for key in OVER_ZERO:
        if not 0 < getattr(config, key) < math.inf:
            raise InputError(f"{key} is {getattr(config, key)}; it must be over 0")
    for key, (low, high) in BOUNDS.items():
        value = getattr(config, key)
        if value is not None and not (low <= value <= high and value < math.inf):
            allowed = f"from {low} to {high}" if high < math.inf else f"at least {low}"
            raise InputError(f"{key} is {value}; it must be {allowed}")
    for key in ("eval_steps", "logging_steps", "warmup_steps"):
        value = getattr(config, key)
        if value >= 1 and value != int(value):
            raise InputError(f"{key} is {value}; it must be a whole number, or a share under 1")
    _check_dates(config)
    if config.max_steps == 0:
        raise InputError("max_steps is 0; it must be over 0, or -1 to go by num_train_epochs")


def _check_dates(config: Config) -> None:
    if (config.validation_from is None) != (config.test_from is None):
        raise InputError("validation_from and test_from belong together; give both, or neither to "
                         "split by the hash of the id")
    dates = []
    for key in ("validation_from", "test_from") if config.test_from is not None else ():
        try:
            dates.append(date.fromisoformat(getattr(config, key)))
        except ValueError:
            raise InputError(f"{key} is {getattr(config, key)!r}; it must be a day such as "
                             "2018-01-31") from None
    if dates and dates[0] >= dates[1]:
        raise InputError(f"validation_from is {dates[0]} and test_from {dates[1]}; the test papers "
                         "are the newest: test_from must be later")
