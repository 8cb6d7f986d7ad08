"""The commands of tasks.py: what a variable says, and one sentence where a command cannot run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def invoke(*arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """Run a task with these variables in the environment."""
    return subprocess.run([sys.executable, "-m", "invoke", *arguments], cwd=cwd, text=True,
                          capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)} | variables)


@pytest.fixture
def repository(tmp_path):
    """Return a folder with the tasks, and a script that says what it was given."""
    shutil.copy(ROOT / "tasks.py", tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "get_data.py").write_text("import sys\nprint(sys.argv[1:])\n")
    return tmp_path


@pytest.mark.parametrize("value, accepts", [
    ("1", True), ("yes", True), ("True", True), ("", False), ("0", False), ("no", False),
    ("false", False)])
def test_only_a_yes_accepts_another_version_of_the_data(repository, value, accepts):
    done = invoke("data", cwd=repository, SOURCE="x.csv", ACCEPT=value)
    assert done.stdout == f"{['x.csv'] + ['--accept'] * accepts}\n", done.stderr


@pytest.mark.parametrize("mistake, said", [
    ("changed", "data/sample.csv was changed, and is not replaced; pin it with `dvc add"),
    ("no remote", "take that folder back from git: git checkout data/remote")])
def test_a_sample_that_cannot_be_pulled_is_explained(repository, mistake, said):
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=repository, check=True)
    shutil.copy(ROOT / ".dvc" / "config", repository / ".dvc")
    (repository / "data").mkdir()
    shutil.copy(ROOT / "data" / "sample.csv.dvc", repository / "data")
    if mistake == "changed":
        shutil.copytree(ROOT / "data" / "remote", repository / "data" / "remote")
        (repository / "data" / "sample.csv").write_text("my own")
    done = invoke("sample", cwd=repository)
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("task, variables, said", [
    ("runs", {"ARGS": "--where 'x"}, 'cannot read "--where \'x" of ARGS or LAUNCHER'),
    ("train", {"LAUNCHER": "python '"}, "cannot read"),
    ("train", {"LAUNCHER": "nonexistent"}, "cannot run 'nonexistent'")])
def test_a_command_that_cannot_be_started_is_explained(repository, task, variables, said):
    done = invoke(task, cwd=repository, **variables)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {said}"), done.stderr
    assert len(done.stderr.splitlines()) == 1
