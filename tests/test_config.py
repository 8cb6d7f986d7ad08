"""The order of the settings, the forms of the command line, and what a wrong one is told."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest

from nej import InputError
from nej.config import BOUNDS, OVER_ZERO, Config, load_config

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(ROOT.glob("configs/*.json"))
IMPOSSIBLE = [
    ("max_bad_rows", -1), ("short_summary_words", -1), ("small_category_papers", -1),
    ("near_duplicate_threshold", 0.4), ("near_duplicate_threshold", 1.1),
    ("min_papers", 0), ("top_k", 0), ("top_k", -3), ("max_train_papers", 0),
    ("validation_fraction", 0.0), ("validation_fraction", 0.41), ("test_fraction", 0.0),
    ("test_fraction", 0.5), ("test_fraction", math.nan), ("max_length", 0), ("max_length", 3),
    ("frozen_layers", -1), ("distillation_weight", -0.1), ("distillation_weight", 1.1),
    ("dropout", -0.1), ("dropout", 0.95), ("dropout", math.nan), ("global_batch_size", 0),
    ("micro_batch_tokens", 0), ("ddp_timeout", 0), ("learning_rate", 0.0), ("learning_rate", -1e-5),
    ("learning_rate", 1.5), ("learning_rate", math.nan), ("learning_rate", math.inf),
    ("layer_decay", 0.05), ("layer_decay", 1.1),
    ("num_train_epochs", 0.0), ("num_train_epochs", -1.0), ("num_train_epochs", math.inf),
    ("num_train_epochs", 1e5), ("max_steps", 10**7 + 1), ("ddp_timeout", 10**7 + 1),
    ("max_steps", 0), ("max_steps", -2), ("warmup_steps", -1.0), ("warmup_steps", 1.5),
    ("warmup_steps", math.inf), ("weight_decay", -0.1), ("weight_decay", 2.0),
    ("max_grad_norm", -1.0), ("max_grad_norm", math.nan), ("label_smoothing_factor", -0.1),
    ("label_smoothing_factor", 1.0), ("eval_steps", 0.0), ("eval_steps", -1.0),
    ("eval_steps", 2.5), ("eval_steps", math.nan), ("logging_steps", 0.0), ("logging_steps", 1.5),
    ("early_stopping_patience", 0), ("dataloader_num_workers", -1),
    ("dataloader_num_workers", 257), ("seed", -1), ("seed", 2**32),
]
JUST_POSSIBLE = [
    ("min_papers", 1), ("validation_fraction", 0.4), ("test_fraction", 0.001), ("max_length", 4),
    ("frozen_layers", 0), ("distillation_weight", 0.0), ("distillation_weight", 1.0),
    ("dropout", 0.0), ("dropout", 0.9), ("learning_rate", 1.0), ("num_train_epochs", 0.5),
    ("max_steps", -1), ("max_steps", 1), ("warmup_steps", 0.0), ("warmup_steps", 100.0),
    ("max_grad_norm", 0.0), ("eval_steps", 1.0), ("eval_steps", 250.0), ("logging_steps", 0.001),
    ("seed", 0), ("seed", 2**32 - 1),
]


@pytest.fixture
def from_file(tmp_path):
    """Return a function that loads the config that the given text or object makes."""
    def load(content, overrides=None) -> Config:
        path = tmp_path / "own.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return load_config(path, overrides)
    return load


def test_defaults_then_file_then_command_line(from_file):
    config = from_file({"max_length": 128, "seed": 1}, ["--seed", "2"])
    assert (config.global_batch_size, config.max_length, config.seed) == (32, 128, 2)
    assert config == dataclasses.replace(Config(), max_length=128, seed=2)


def test_command_line_that_repeats_a_default_still_overrides_the_file(from_file):
    assert from_file({"max_length": 128}, ["--max_length", "256"]).max_length == 256
    assert from_file({"do_predict": False}, ["--do_predict"]).do_predict is True
    assert from_file({"top_k": 5}, ["--top_k", "null"]).top_k is None


def test_no_config_gives_the_defaults():
    assert load_config() == load_config(None, []) == Config()


@pytest.mark.parametrize("arguments", [
    ["--learning_rate", "1e-4", "--max_length", "64"],
    ["--learning_rate=1e-4", "--max_length=64"],
    ["--learning-rate", "1e-4", "--max-length", "64"],
    ["--learning-rate=1e-4", "--max-length=64"],
    ["--max_length", "8", "--learning-rate=1e-4", "--max_length=64"],
])
def test_all_forms_of_a_key_are_the_same(arguments):
    expected = dataclasses.replace(Config(), learning_rate=1e-4, max_length=64)
    assert load_config(None, arguments) == expected


@pytest.mark.parametrize("arguments, key, value", [
    (["--no_do_predict"], "do_predict", False),
    (["--no-do-predict"], "do_predict", False),
    (["--do_predict", "false"], "do_predict", False),
    (["--do_predict=false"], "do_predict", False),
    (["--use_cpu"], "use_cpu", True),
    (["--frozen-layers=2"], "frozen_layers", 2),
    (["--bf16", "true"], "bf16", True),
    (["--bf16", "false"], "bf16", False),
    (["--max_steps", "-1"], "max_steps", -1),
    (["--warmup_steps", "100"], "warmup_steps", 100.0),
    (["--categories", "cs.LG"], "categories", ["cs.LG"]),
    (["--categories", "cs.LG", "cs.CV"], "categories", ["cs.LG", "cs.CV"]),
    (["--categories", "cs.LG", "Machine Learning", "--seed", "3"], "categories",
     ["cs.LG", "Machine Learning"]),
    (["--run_name=a=b"], "run_name", "a=b"),
    (["--attn_implementation", "sdpa"], "attn_implementation", "sdpa"),
    (["--text_fields", "title+summary"], "text_fields", "title+summary"),
])
def test_command_line_values_get_their_types(arguments, key, value):
    found = getattr(load_config(None, arguments), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("word", ["none", "null", "None"])
@pytest.mark.parametrize("key, value", [
    ("categories", ["cs.LG"]), ("min_papers", 5), ("top_k", 5), ("max_train_papers", 5),
    ("dropout", 0.2), ("attn_implementation", "eager"), ("micro_batch_tokens", 4),
    ("early_stopping_patience", 2), ("bf16", True), ("run_name", "one"),
])
def test_none_takes_an_optional_key_back(from_file, key, value, word):
    assert getattr(from_file({key: value}), key) == value
    assert getattr(from_file({key: value}, [f"--{key}", word]), key) is None
    assert getattr(from_file({key: value}, [f"--{key}={word}"]), key) is None


@pytest.mark.parametrize("key", ["max_length", "learning_rate", "use_cpu", "lr_scheduler_type"])
def test_none_is_no_value_of_other_keys(key):
    with pytest.raises(InputError, match=key):
        load_config(None, [f"--{key}", "none"])


@pytest.mark.parametrize("wrong, nearest", [
    ("learning_rat", "learning_rate"), ("epochs", "num_train_epochs"), ("topk", "top_k"),
    ("maxlength", "max_length"), ("weight_decays", "weight_decay"),
])
def test_unknown_key_names_the_nearest(from_file, wrong, nearest):
    with pytest.raises(InputError, match=f"own.json: unknown key '{wrong}'.*'{nearest}'"):
        from_file({"seed": 1, wrong: 3})
    for arguments in ([f"--{wrong}", "3"], [f"--{wrong}=3"], ["--seed", "1", f"--{wrong}"]):
        with pytest.raises(InputError, match=f"command line: unknown key '{wrong}'.*'{nearest}'"):
            load_config(None, arguments)


def test_shortened_key_is_unknown():
    with pytest.raises(InputError, match="unknown key 'learning'.*'learning_rate'"):
        load_config(None, ["--learning", "1e-4"])


@pytest.mark.parametrize("key", ["per_device_train_batch_size", "gradient_accumulation_steps"])
def test_batch_size_of_transformers_points_to_global_batch_size(from_file, key):
    with pytest.raises(InputError, match=f"{key}.*global_batch_size"):
        from_file({key: 8})
    with pytest.raises(InputError, match=f"{key}.*global_batch_size"):
        load_config(None, [f"--{key}", "8"])


@pytest.mark.parametrize("key, value", [
    ("max_length", "256"), ("max_length", True), ("max_length", 256.0), ("max_length", None),
    ("max_length", {}), ("learning_rate", "5e-5"), ("learning_rate", True), ("use_cpu", 1),
    ("use_cpu", "true"), ("use_cpu", None), ("bf16", "true"), ("bf16", 0), ("data_path", 3),
    ("data_path", None), ("run_name", 7), ("categories", "cs.LG"), ("categories", []),
    ("categories", ["cs.LG", 1]), ("label_column", "id"), ("report_to", "tensorboard"),
    ("lr_scheduler_type", None), ("attn_implementation", "flash"), ("top_k", False),
])
def test_wrong_type_in_the_file(from_file, key, value):
    found = re.escape(json.dumps(value))
    with pytest.raises(InputError, match=f"own.json: {key} is {found}; it must be "):
        from_file({key: value})


def test_wrong_choice_lists_all_choices(from_file):
    with pytest.raises(InputError, match="'eager' or 'sdpa' or null"):
        from_file({"attn_implementation": "flash"})


def test_whole_number_in_the_file_will_do_for_a_number(from_file):
    config = from_file({"num_train_epochs": 3, "eval_steps": 100})
    assert (config.num_train_epochs, config.eval_steps) == (3.0, 100.0)
    assert type(config.num_train_epochs) is float


@pytest.mark.parametrize("arguments, named", [
    (["--max_length", "abc"], "max.length"), (["--max_length", "1.5"], "max.length"),
    (["--max_length"], "max.length"), (["--learning_rate=fast"], "learning.rate"),
    (["--use_cpu", "maybe"], "use.cpu"), (["--lr_scheduler_type", "step"], "lr.scheduler.type"),
    (["--attn-implementation", "flash"], "attn.implementation"), (["--bf16", "maybe"], "bf16"),
    (["--top_k", "many"], "top.k"), (["--categories"], "categories"),
    (["models/x"], "'models/x'"), (["--seed", "1", "2"], "'2'"),
])
def test_wrong_command_line_names_what_is_wrong(arguments, named):
    with pytest.raises(InputError, match=f"^command line: .*{named}"):
        load_config(None, arguments)


@pytest.mark.parametrize("key, value", IMPOSSIBLE)
def test_impossible_value(from_file, key, value):
    with pytest.raises(InputError, match=f"^{key} is .*; it must be "):
        from_file({key: value})
    with pytest.raises(InputError, match=f"^{key} is .*; it must be "):
        load_config(None, [f"--{key}={value}"])


@pytest.mark.parametrize("key", ["seed", "max_length", "learning_rate"])
def test_number_of_400_digits(from_file, key):
    """It fits no float, so that even to print it takes care; max_length has no upper bound."""
    for load in (lambda: from_file(f'{{"{key}": -{"1" * 400}}}'),
                 lambda: load_config(None, [f"--{key}=-{'1' * 400}"])):
        with pytest.raises(InputError, match=key):
            load()


def test_bound_of_the_seed_is_written_in_full():
    with pytest.raises(InputError, match="seed is 4294967296; it must be from 0 to 4294967295"):
        load_config(None, ["--seed", "4294967296"])


def test_every_bound_is_tried():
    assert {key for key, _ in IMPOSSIBLE} == {*BOUNDS, *OVER_ZERO}


@pytest.mark.parametrize("key, value", JUST_POSSIBLE)
def test_value_at_the_bound_is_fine(from_file, key, value):
    assert getattr(from_file({key: value}), key) == value
    assert getattr(load_config(None, [f"--{key}={value}"]), key) == value


def test_missing_file_lists_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no file configs/bsae.json.*none"):
        load_config(Path("configs/bsae.json"))
    (tmp_path / "configs").mkdir()
    for name in ("base.json", "all.json"):
        (tmp_path / "configs" / name).write_text("{}")
    with pytest.raises(InputError, match="configs/all.json, configs/base.json"):
        load_config(Path("configs/bsae.json"))


def test_folder_or_bytes_in_place_of_the_file(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        load_config(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b'{"run_name": "\xff"}')
    with pytest.raises(InputError, match="cannot read .*bytes.json"):
        load_config(tmp_path / "bytes.json")


@pytest.mark.parametrize("text, place", [
    ('{"seed": 1,\n "max_length" 3}', "2:15"), ('{"seed": 1', "1:11"), ("", "1:1"),
    ("{\n\n  'seed': 1}", "3:3"),
])
def test_broken_json_gives_line_and_column(from_file, text, place):
    with pytest.raises(InputError, match=f"own.json:{place}: not JSON"):
        from_file(text)


@pytest.mark.parametrize("text, kind", [("[]", "list"), ("3", "int"), ("null", "NoneType")])
def test_json_that_is_no_object(from_file, text, kind):
    with pytest.raises(InputError, match=f"own.json: found a {kind}"):
        from_file(text)


@pytest.mark.parametrize("text, said", [
    ('{"seed": ' + "1" * 5000 + "}", "Exceeds the limit"), ("[" * 100_000, "nested too deep")],
    ids=["digits", "brackets"])
def test_json_without_measure(from_file, text, said):
    with pytest.raises(InputError, match=f"own.json: not a config: {said}.*; correct the file"):
        from_file(text)


@pytest.mark.parametrize("place", [".", "/", "", "..", "models/.."])
def test_a_model_needs_a_folder_of_its_own(place):
    with pytest.raises(InputError, match="^output_dir is .*; it must be a folder of its own"):
        load_config(None, [f"--output_dir={place}"])


@pytest.mark.parametrize("key, value, sentence", [
    ("output_dir", "models/a\0b", r"output_dir is 'models/a\\x00b', which no folder can be called"),
    ("reports_dir", "a\ud800", "reports_dir is .*, which no folder can be called"),
    ("reports_dir", __file__, "reports_dir is .*test_config.py, which is a file; name a folder"),
    ("validation_from", "", "validation_from is ''; it must be a day such as"),
    ("seed", "x" * 100_000, "^.{,250}$"),
])
def test_what_can_be_no_place_or_day_is_told_in_short(tmp_path, key, value, sentence):
    settings = {"validation_from": "2018-01-01", "test_from": "2019-01-01"} | {key: value}
    file = tmp_path / "c.json"
    file.write_text(json.dumps(settings))
    with pytest.raises(InputError, match=sentence):
        load_config(file)
    if key == "validation_from":
        file.write_text(json.dumps(settings | {"validation_from": "2018-01-01", "test_from": ""}))
        with pytest.raises(InputError, match="test_from is ''; it must be a day such as"):
            load_config(file)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_of_the_repository_load(path):
    content = json.loads(path.read_text("utf-8"))
    config = load_config(path)
    assert content and {key: getattr(config, key) for key in content} == content


def test_repository_has_the_base_config():
    assert "base.json" in [path.name for path in CONFIGS]


@pytest.mark.parametrize("overrides", [
    [], ["--categories", "cs.LG", "cs.CV", "--dropout", "0", "--bf16", "false", "--top_k", "2"],
    ["--no_do_predict", "--attn_implementation", "eager", "--run_name", "Grüße \"x\""],
])
def test_saved_config_loads_back_equal(from_file, overrides):
    config = load_config(None, overrides)
    again = from_file(dataclasses.asdict(config))
    assert again == config
    for f in dataclasses.fields(Config):
        assert type(getattr(again, f.name)) is type(getattr(config, f.name)), f.name


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Config)])
def test_every_key_has_a_help_text(name):
    help = {f.name: f for f in dataclasses.fields(Config)}[name].metadata["help"]
    assert len(help) > 10 and help.endswith(".")


def test_a_folder_is_filled_in_from_the_environment():
    arguments = ["--output_dir", "models/$TRIAL", "--reports_dir=out/${TRIAL}x"]
    config = load_config(overrides=arguments, environment={"TRIAL": "7"})
    assert (config.output_dir, config.reports_dir) == ("models/7", "out/7x")
    with pytest.raises(InputError, match=r"output_dir is 'models/\$TRIAL'.*no such variable"):
        load_config(overrides=arguments, environment={})
