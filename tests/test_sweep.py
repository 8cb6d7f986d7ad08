"""The yaml of a sweep: what nej takes of W&B's format, and what it says of the rest."""

import math
from pathlib import Path

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from nej import InputError
from nej.experiments.search_space import distribution_of
from nej.experiments.sweep import Hyperband, load_sweep

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def load(tmp_path):
    """Return a function that loads configs/sweep.yaml with changes, for base.json's settings."""
    content = yaml.safe_load((ROOT / "configs" / "sweep.yaml").read_text("utf-8"))
    content["command"][4] = str(ROOT / "configs" / "base.json")

    def load(overrides=(), parameters=None, **changes):
        changed = {key: value for key, value in {**content, **changes}.items()
                   if value is not None}
        changed["parameters"] = {**content["parameters"], **(parameters or {})}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(changed), "utf-8")
        return load_sweep(tmp_path / "sweep.yaml", list(overrides))
    return load


@pytest.mark.parametrize("parameter, expected", [
    ({"value": None}, None),
    ({"value": 3, "distribution": "constant"}, 3),
    ({"values": [1, "a", None, True]}, CategoricalDistribution([1, "a", None, True])),
    ({"min": 1, "max": 5}, IntDistribution(1, 5)),
    ({"min": 1, "max": 5, "distribution": "int_uniform"}, IntDistribution(1, 5)),
    ({"min": 0.0, "max": 0.5}, FloatDistribution(0.0, 0.5)),
    ({"min": 0, "max": 1, "distribution": "uniform"}, FloatDistribution(0, 1)),
    ({"min": 3, "max": 17, "q": 8, "distribution": "q_uniform"}, IntDistribution(0, 16, step=8)),
    ({"min": 1, "max": 3, "distribution": "q_uniform"}, IntDistribution(1, 3)),
    ({"min": 0.0, "max": 0.2, "q": 0.05, "distribution": "q_uniform"},
     FloatDistribution(0.0, 0.2, step=0.05)),
    ({"min": 1e-5, "max": 1e-3, "distribution": "log_uniform_values"},
     FloatDistribution(1e-5, 1e-3, log=True)),
    ({"min": 0, "max": 1, "distribution": "log_uniform"},
     FloatDistribution(1.0, 2.718281828459045, log=True)),
])
def test_wandbs_distributions_are_optunas(parameter, expected):
    assert distribution_of(parameter, "here") == expected


@pytest.mark.parametrize("parameter, part", [
    ({"distribution": "normal", "mu": 0, "sigma": 1}, "'normal' is not known here"),
    ({"distribution": ["uniform"]}, "is not known here"),
    ({"min": "1e-5", "max": 1.0, "distribution": "uniform"}, "write 1.0e-5"),
    ({"min": 0, "max": 0.5}, "both as whole numbers or both with a point"),
    ({"min": 2, "max": 1}, "nothing to draw"),
    ({"min": 0.0, "max": 1.0, "distribution": "log_uniform_values"}, "nothing to draw"),
    ({"min": 1, "max": 2, "q": 0, "distribution": "q_uniform"}, "nothing to draw"),
    ({"min": 1000, "max": 2000, "distribution": "log_uniform"}, "write log_uniform_values"),
    ({"min": -2000, "max": 0, "distribution": "log_uniform"}, "powers of e, from -700 to 700"),
    ({"min": 0.0, "max": math.inf}, "max is not from"),
    ({"min": 0, "max": 10 ** 400}, "max is not from"),
    ({"min": 1.0, "distribution": "uniform"}, "uniform has max, min, and there is min"),
    ({"values": []}, "must be a list"),
    ({"values": [[1]]}, "must be a list"),
    ({"parameters": {}}, "uniform has max, min, and there is parameters"),
    (3, "must be keys with values"),
])
def test_a_parameter_that_cannot_be_drawn_is_refused(parameter, part):
    with pytest.raises(InputError, match=part) as error:
        distribution_of(parameter, "sweep.yaml: learning_rate")
    assert "sweep.yaml: learning_rate" in str(error.value)


@pytest.mark.parametrize("changes, parts", [
    ({"metod": "grid"}, ["'metod' is not known here", "'method'"]),
    ({"method": "custom"}, ["method is 'custom'", "bayes, random or grid"]),
    ({"metric": {"name": "macro_f1"}}, ["'eval/macro_f1'"]),
    ({"metric": {"name": "eval/macro_f1"}}, ["'minimize'", "the worst eval/macro_f1"]),
    ({"metric": None}, ["metric is None"]),
    ({"early_terminate": {"type": "median"}}, ["'median'", "hyperband"]),
    ({"early_terminate": {"type": "hyperband", "eta": 3}}, ["min_iter", "whole number"]),
    ({"early_terminate": {"type": "hyperband", "max_iter": "27", "s": 2}}, ["max_iter is '27'"]),
    ({"early_terminate": {"type": "hyperband", "max_iter": 27, "s": 2, "eta": 0}}, ["eta is 0"]),
    ({"early_terminate": {"type": "hyperband", "max_iter": 27, "s": 0.5}}, ["s is 0.5"]),
    ({"early_terminate": {"type": "hyperband", "min_iter": True}}, ["min_iter is True"]),
    ({"early_terminate": {"type": "hyperband", "min_iter": 3, "max_iter": 2}}, ["under min_iter"]),
    ({"early_terminate": {"type": "hyperband", "min_iter": 3, "strict": True}}, ["'strict'"]),
    ({"command": None}, ["command is None", "${args}"]),
    ({"command": ["python", "scripts/train.py", "${args_json}"]}, ["${args}"]),
    ({"command": ["python", "scripts/evaluate.py", "${args}"]}, ["no scripts/train.py"]),
    ({"project": 3}, ["project is 3"]),
    ({"run_cap": "many"}, ["run_cap is 'many'"]),
    ({"parameters": {"lerning_rate": {"values": [1]}}}, ["'lerning_rate'", "'learning_rate'"]),
    ({"parameters": {"layer_decay": {"min": 0.5, "max": 1.5}}}, ["layer_decay is 1.5", "0.1 to 1"]),
    ({"parameters": {"text_fields": {"values": ["summary", "body"]}}}, ["text_fields", "'body'"]),
    ({"parameters": {"output_dir": {"value": "models/x"}}}, ["models/x", "$WANDB_RUN_ID"]),
    ({"parameters": {"data_path": {"values": ["a", "b"]}}}, ["nothing to search"]),
    ({"overrides": ["--learning_rate", "1e-4"]}, ["the sweep searches learning_rate"]),
    ({"overrides": ["--top_l", "3"]}, ["'top_l'", "'top_k'"]),
])
def test_a_mistake_shows_before_the_first_trial(load, changes, parts):
    with pytest.raises(InputError) as error:
        load(**changes)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("text", ["a: 2020-13-45", "a: [", "[" * 10_000])
def test_what_is_no_yaml_is_explained(tmp_path, text):
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(InputError, match="sweep.yaml: not YAML: .*; correct the file"):
        load_sweep(tmp_path / "sweep.yaml", [])


def test_hyperband_counts_validations_in_either_of_wandbs_ways(load):
    assert load().hyperband == Hyperband(2, None, 3)
    by_end = {"type": "hyperband", "max_iter": 27, "s": 2}
    assert load(early_terminate=by_end).hyperband == Hyperband(3, 27, 3)
    assert load(early_terminate=None).hyperband is None


def test_a_trials_command_is_the_agents_with_what_the_command_line_says_last(load):
    sweep = load(["--config", "configs/starter.json", "--top_k", "3"],
                 program="scripts/train.py",
                 command=["${env}", "${interpreter}", "${program}", "${args}"])
    line = sweep.command_line({"learning_rate": 1e-4})
    assert line[:3] == ["/usr/bin/env", "python", "scripts/train.py"]
    assert line[-5:] == ["--learning_rate=0.0001", "--config", "configs/starter.json", "--top_k",
                         "3"]
    config = sweep.config_of({"learning_rate": 1e-4}, environment={"WANDB_RUN_ID": "abc"})
    assert (config.optimizer, config.top_k, config.learning_rate) == ("muon", 3, 1e-4)
    assert config.output_dir == "models/sweep/abc"


def test_a_grid_has_an_end(load):
    with pytest.raises(InputError, match="layer_decay has none"):
        load(method="grid").grid()
    many = {f"{key}": {"min": 1, "max": 200} for key in ("global_batch_size", "eval_steps")}
    few = {key: {"value": value} for key, value in (
        ("learning_rate", 1e-4), ("warmup_steps", 0.1), ("weight_decay", 0.1),
        ("layer_decay", 1.0))}
    with pytest.raises(InputError, match="400,000 trials"):
        load(method="grid", parameters=many | few).grid()
    sweep = load(method="grid", parameters=few)
    assert len(sweep.grid()) == 3 * 5 * 2
