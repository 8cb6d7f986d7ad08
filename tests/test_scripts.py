"""The commands as a user gives them: exit codes, one sentence for a mistake, a stop on Ctrl-C."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.forked import run_script

ROOT = Path(__file__).resolve().parent.parent


def run(script: str, *arguments, launcher=(sys.executable,), **kwargs):
    """Run a script as a user does, from the start of Python, and return what came of it."""
    return subprocess.run([*launcher, str(ROOT / "scripts" / script), *map(str, arguments)],
                          capture_output=True, text=True, **kwargs)


def assert_mistake(done, *parts: str) -> None:
    """Assert that a command ended with exit code 2 and one sentence that has the parts."""
    assert done.returncode == 2, done.stderr[-1000:]
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last


@pytest.fixture
def config_file(make_config, tmp_path) -> Path:
    """Return a config of a short run as a file."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(asdict(make_config(num_train_epochs=1))), "utf-8")
    return path


@pytest.mark.system
def test_training_and_judging_from_another_folder(config_file, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run("train.py", "--config", config_file, "--learning_rate=2e-3", cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "TF-IDF + LinearSVC" in done.stdout and str(tmp_path / "model") in done.stdout
    assert (tmp_path / "reports" / "figures" / "training_statistics.png").exists()
    config = json.loads((tmp_path / "model" / "training_config.json").read_text())
    assert config["learning_rate"] == 2e-3
    table = done.stdout.split("trained")[0]
    judged = run_script("evaluate.py", tmp_path / "model")
    assert judged.returncode == 0 and table[table.index("On "):] in judged.stdout


@pytest.mark.parametrize("arguments, parts", [
    (["--lerning_rate", "1"], ["unknown key 'lerning_rate'", "'learning_rate'"]),
    (["--learning_rate", "fast"], ["learning_rate", "'fast'"]),
    (["--max_length", "0"], ["max_length is 0", "at least"]),
    (["--top_k", "9"], ["top_k is 9", "8 categories"]),
    (["--data_path", "nowhere.csv"], ["no file nowhere.csv", "make data"]),
    (["--model_name_or_path", "nobody/nothing"], ["cannot load 'nobody/nothing'", "make starter"]),
])
def test_a_mistake_in_training_ends_with_a_sentence(config_file, tmp_path, arguments, parts):
    before = sorted(tmp_path.rglob("*"))
    assert_mistake(run_script("train.py", "--config", config_file, *arguments), *parts)
    assert sorted(tmp_path.rglob("*")) == before


def test_mistakes_of_the_other_commands(tmp_path):
    assert_mistake(run_script("train.py", "--config", "configs/bsae.json", cwd=ROOT),
                   "no file configs/bsae.json", "configs/base.json")
    assert_mistake(run_script("evaluate.py", tmp_path), "not a finished model directory")
    assert_mistake(run_script("get_data.py", tmp_path / "no.zip"), "nothing at")
    assert_mistake(run_script("make_starter.py", "--source", tmp_path, "--output", tmp_path / "s"),
                   "has no model.safetensors")
    for option in ("--count", "--jobs"):
        assert_mistake(run_script("sweep.py", "configs/sweep.yaml", option, 0, cwd=ROOT),
                       f"{option} is 0; it must be at least 1")
    assert_mistake(run_script("add_papers.py"), "name files to add")
    assert_mistake(run_script("add_papers.py", "--from-arxiv", "cat:cs.LG"), "belong together")
    assert_mistake(run_script("add_papers.py", "--from-arxiv", "x", "--since", "1.2.2024"),
                   "--since", "'1.2.2024'", "a day such as 2026-10-01")
    assert_mistake(run_script("add_papers.py", "x.jsonl", "--to", tmp_path / "none.csv"), "no file")
    assert_mistake(run_script("review.py", "data", "nowhere"),
                   "'nowhere', which is no git revision")
    assert_mistake(run_script("data_diff.py", tmp_path / "a", tmp_path / "b", cwd=tmp_path),
                   "is no file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rejects", ["arxiv.csv", "folder/../arxiv.csv", "new.jsonl"])
def test_rejects_overwrite_nothing_that_is_read(tmp_path, papers_csv, rejects):
    target = Path(shutil.copy(papers_csv, tmp_path / "arxiv.csv"))
    (tmp_path / "new.jsonl").write_text("{}\n")
    (tmp_path / "folder").mkdir()
    before = target.read_bytes()
    assert_mistake(run_script("add_papers.py", "new.jsonl", "--to", "arxiv.csv", "--rejects",
                              rejects, cwd=tmp_path), f"--rejects: {rejects} would overwrite")
    assert target.read_bytes() == before and (tmp_path / "new.jsonl").read_text() == "{}\n"


def test_a_review_says_which_data_are_new_and_names_a_folder_in_its_place(tmp_path):
    (tmp_path / "tasks.py").write_text(
        "from invoke import task\n@task\ndef starter(c):\n    pass\n")
    for folder in ("data", "scripts"):
        (tmp_path / folder).mkdir()
    for script in ("prepare", "data_diff"):  # the check, and what would fail for a new file
        (tmp_path / "scripts" / f"{script}.py").write_text(f"print('{script} of', __import__('sys')"
                                                           ".argv[-1])")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "--quiet"], cwd=tmp_path, check=True)
    for content in ("1", "2"):
        (tmp_path / "data" / "old.csv.dvc").write_text(content)
        if content == "2":
            (tmp_path / "data" / "more.csv.dvc").write_text(content)
        subprocess.run([*git, "add", "data"], cwd=tmp_path, check=True)
        subprocess.run([*git, "commit", "-qm", content], cwd=tmp_path, check=True)
    done = run_script("review.py", "data", "HEAD~1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reports" / "review.md").read_text() == (
        "### `data/more.csv`, which is new: HEAD~1 has none\n\n```\nprepare of data/more.csv\n```"
        "\n\n### `data/old.csv`\n\n```\ndata_diff of data/old.csv\n```\n\n"
        "```\nprepare of data/old.csv\n```")
    assert_mistake(run_script("review.py", "data", "HEAD", "--output", "data", cwd=tmp_path),
                   "cannot write data: it is a folder")


def test_the_help_of_each_script_is_its_docstring():
    for script in ("train.py", "evaluate.py", "get_data.py", "make_starter.py", "make_sample.py",
                   "add_papers.py", "data_diff.py", "prepare.py", "visualize.py", "reproduce.py",
                   "predict.py", "export.py", "drift.py", "sweep.py", "serve.py",
                   "review.py"):
        done = run(script, "--help")
        assert done.returncode == 0 and f"python scripts/{script}" in done.stdout.replace(
            "accelerate launch", "python")


@pytest.mark.system
def test_ctrl_c_leaves_a_run_that_the_same_command_ends(config_file, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(config_file),
               "--num_train_epochs", "10", "--logging_steps", "1", "--do_predict", "false"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONUNBUFFERED": "1"})
    for line in process.stdout:  # the first log line: training is under way
        if "loss" in line:
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors[-2000:]
    assert "the same command goes on" in errors and "Traceback" not in errors
    assert not (tmp_path / "model").exists()
    again = run_script("train.py", *command[2:])
    assert again.returncode == 0 and "going on from" in again.stderr
    state = json.loads((tmp_path / "model" / "trainer_state.json").read_text())
    assert state["global_step"] == state["max_steps"] == 150


@pytest.mark.system
def test_accelerate_launch_trains(config_file, tmp_path):
    launch = (sys.executable, "-m", "accelerate.commands.launch")
    done = run("train.py", "--config", config_file, "--do_predict", "false", "--max_steps", "2",
               launcher=(*launch, "--config_file", str(ROOT / "accelerate_config.yaml")))
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    alone = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.get_num_threads())"], text=True,
        capture_output=True, env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"})
    assert manifest["threads"] == int(alone.stdout), "the launcher's one thread"


@pytest.mark.parametrize("env, threads", [
    ({"ACCELERATE_DYNAMO_BACKEND": "NO", "OMP_NUM_THREADS": "1"}, None),
    ({"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1"}, None),
    ({"ACCELERATE_DYNAMO_BACKEND": "NO", "OMP_NUM_THREADS": "4"}, "4"),
    ({"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}, "1"),
    ({"OMP_NUM_THREADS": "1"}, "1")])
def test_one_thread_that_nobody_asked_for_is_not_kept(env, threads, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(os, "environ", dict(env))
    runpy.run_path(str(ROOT / "scripts" / "_run.py"))["_take_cores"]()
    assert os.environ.get("OMP_NUM_THREADS") == threads


@pytest.mark.system
def test_the_run_ends_in_order_when_accelerate_launch_is_ended(config_file, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "scripts" / "train.py"),
         "--config", str(config_file), "--max_steps", "9999", "--logging_steps", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"})
    for line in process.stdout:
        if "loss" in line:
            break
    process.terminate()  # it does not reach the process that trains
    assert "stopped after step" in process.stdout.read()  # which lives on, and writes until it ends
    assert process.wait() == -signal.SIGTERM
    assert list((tmp_path / "model.partial" / "checkpoints").glob("checkpoint-*"))


@pytest.mark.system
def test_accelerate_launch_that_starts_too_few_processes_is_stopped(config_file, tmp_path):
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    done = run("train.py", "--config", config_file, launcher=launch)
    assert done.returncode != 0 and "was asked for more than one process" in done.stderr
    assert not (tmp_path / "model").exists()


def test_the_sample_is_what_its_generator_makes(tmp_path):
    path = tmp_path / "sample.csv"
    run("make_sample.py", "--papers", 4300, "--seed", 1, "--output", path)
    from nej.files import checksum
    pin = (ROOT / "data" / "sample.csv.dvc").read_text()
    assert f"md5: {checksum(path, 'md5')}" in pin


@pytest.mark.skipif(os.name == "nt", reason="make is not of Windows")
@pytest.mark.system
def test_make_renews_an_environment_that_is_activated_and_wipes_none_through_a_link(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "work").touch()
    (tmp_path / ".venv").symlink_to(elsewhere)
    for pins in ("# one\n", "# another\n"):
        for name in ("requirements.txt", "requirements_dev.txt"):
            (tmp_path / name).write_text(pins, "utf-8")
        subprocess.run(["make", "environment"], cwd=tmp_path, check=True, env=os.environ | {
            "PATH": f"{tmp_path}/.venv/bin{os.pathsep}{os.environ['PATH']}"})
        assert (tmp_path / ".venv" / "pins.txt").read_text("utf-8") == 2 * pins
    assert (elsewhere / "work").exists()


@pytest.mark.parametrize("handler, said, code", [
    ("default_int_handler", "imported\n", 130), ("SIG_IGN", "imported\ngoes on\n", 0)])
def test_ctrl_c_while_libraries_are_imported_waits_for_them(handler, said, code):
    program = ("import signal, sys; sys.path[0] = 'scripts'\n"
               f"signal.signal(signal.SIGINT, signal.{handler})\n"
               "from _run import importing, run\n"
               "def main(arguments):\n"
               "    with importing():\n"
               "        signal.raise_signal(signal.SIGINT)\n"
               "        print('imported')\n"
               "    print('goes on')\n"
               "run(main)\n")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (said, code), done.stderr
