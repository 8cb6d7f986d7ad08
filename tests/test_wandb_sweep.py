"""configs/sweep.yaml with the real `wandb sweep` and `wandb agent`, against a server of our own."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import jsonschema
import pytest
import yaml

from nej.config import load_config
from tests.wandb_server import WandbServer

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.system
SWEEP = ROOT / "configs" / "sweep.yaml"
SCHEMA_WHEEL = "sweeps==0.3.0"  # W&B's, with the schema; it cannot be installed beside numpy 2
# the agent itself, but it looks after its trial ten times as often
AGENT = ("from wandb import wandb_agent; wandb_agent.Agent.POLL_INTERVAL = 0.5; "
         "from wandb.cli.cli import cli; cli()")


@pytest.fixture(scope="session")
def sweep_schema(tmp_path_factory) -> dict:
    """Return W&B's schema of a sweep: NEJ_SWEEPS_WHEEL's, or fetched with pip if it can be."""
    wheel = os.environ.get("NEJ_SWEEPS_WHEEL")
    if wheel is None:
        folder = tmp_path_factory.mktemp("wheel")
        done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                               "--dest", folder, SCHEMA_WHEEL], capture_output=True)
        if done.returncode != 0:
            pytest.skip("no way to a package index, and NEJ_SWEEPS_WHEEL names no wheel")
        wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as files:
        return json.loads(files.read("sweeps/config/schema.json"))


def test_the_sweep_is_one_by_wandbs_own_schema(sweep_schema):
    sweep = yaml.safe_load(SWEEP.read_text("utf-8"))
    jsonschema.validate(sweep, sweep_schema)
    sweep["parameters"]["learning_rate"]["min"] = "1e-5"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(sweep, sweep_schema)


def test_the_command_is_the_one_of_a_run(monkeypatch):
    sweep = yaml.safe_load(SWEEP.read_text("utf-8"))
    assert sweep["command"] == ["accelerate", "launch", "scripts/train.py", "--config",
                                "configs/base.json", "${args}"]
    monkeypatch.setenv("WANDB_RUN_ID", "abcd")
    ends = [{key: found.get("value", found.get("values", [found.get("min")])[0])
             for key, found in sweep["parameters"].items()},
            {key: found.get("value", found.get("values", [found.get("max")])[-1])
             for key, found in sweep["parameters"].items()}]
    for settings in ends:
        config = load_config(ROOT / "configs" / "base.json",
                             [f"--{key}={value}" for key, value in settings.items()])
        assert config.output_dir == "models/sweep/abcd" and not config.do_predict


@pytest.fixture
def client(tmp_path, make_config):
    """Return a server, and a function that gives commands of the wandb client in tmp_path."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(asdict(make_config(report_to="wandb", max_steps=4))), "utf-8")
    sweep = yaml.safe_load(SWEEP.read_text("utf-8"))
    sweep["command"][2:5] = [str(ROOT / "scripts" / "train.py"), "--config", str(config)]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep), "utf-8")
    launcher = tmp_path / "accelerate"  # as accelerate's, without the seconds that it takes
    launcher.write_text(f'#!/bin/sh\n[ "$1" = launch ] && shift && exec {sys.executable} "$@"\n')
    launcher.chmod(0o755)
    with WandbServer() as server:
        environment = {key: value for key, value in os.environ.items() if "WANDB" not in key}
        environment |= server.environment() | {
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "NETRC": str(tmp_path / "none"), "WANDB_CONFIG_DIR": str(tmp_path / "settings"),
            "WANDB_CACHE_DIR": str(tmp_path / "cache"),
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "0.5"}  # seconds; the default is 15

        def wandb(*arguments: str) -> str:
            with open(tmp_path / "output.txt", "w+", encoding="utf-8") as output:
                subprocess.run([sys.executable, "-c", AGENT, *arguments], cwd=tmp_path, check=True,
                               env=environment, stdin=subprocess.DEVNULL, stdout=output,
                               stderr=output, timeout=300)
                output.seek(0)
                return output.read()
        yield server, wandb


def test_an_agent_tries_what_the_server_says_and_outlives_a_failing_trial(client, tmp_path):
    server, wandb = client
    server.trials = [
        {"learning_rate": 2e-3, "global_batch_size": 16, "warmup_steps": 0.1, "weight_decay": 0.02,
         "label_smoothing_factor": 0.05, "layer_decay": 0.9, "text_fields": "title+summary"},
        {"learning_rate": 3.0},
        {"learning_rate": 1e-3, "max_steps": 999, "eval_steps": 4}]
    server.stop = {"sweep1-3": 2}
    assert "wandb agent tester/nej/sweep1" in wandb("sweep", "sweep.yaml")
    told = wandb("agent", "tester/nej/sweep1")
    assert "error: learning_rate is 3.0; it must be from 0 to 1" in told
    first, failing, stopped = server.sweeps["sweep1"].started
    folder = tmp_path / "models" / "sweep"
    for name, settings in (first, server.trials[0]), (stopped, server.trials[2]):
        run = server.runs[name]
        assert run.fields["sweep"] == "sweep1" and run.fields["project"] == "nej"
        assert all(run.config[key]["value"] == value for key, value in settings.items())
    resolved = json.loads((folder / first / "training_config.json").read_text())
    assert resolved.items() >= server.trials[0].items()
    assert resolved["output_dir"] == f"models/sweep/{first}"
    state = json.loads((folder / first / "trainer_state.json").read_text())
    scores = [log["eval_macro_f1"] for log in state["log_history"] if "eval_macro_f1" in log]
    run = server.runs[first]
    assert [row["eval/macro_f1"] for row in run.history if "eval/macro_f1" in row] == scores
    assert run.summary["eval/macro_f1"] == scores[-1] and run.exit_code == 0
    assert failing not in server.runs and not (folder / failing).exists()
    # what Hyperband has ended lies there unfinished, under its id in the sweep
    record = json.loads((folder / f"{stopped}.partial" / "checkpoints" / "run.json").read_text())
    assert record["id"] == stopped and not (folder / stopped).exists()
    assert "stopping after this step" in told
