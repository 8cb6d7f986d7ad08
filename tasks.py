"""The commands of nej: `invoke --list` shows them, `make NAME` runs them in .venv."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from email.message import Message
from importlib.metadata import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from invoke import Exit, task

BASE = os.environ.get("BASE", "models/production")
REVISION = os.environ.get("BASE", "origin/main")  # what a review compares with
CONFIG = os.environ.get("CONFIG", "configs/base.json")  # `make train CONFIG=...` sets it
SWEEP = os.environ.get("SWEEP", "configs/sweep.yaml")
MODEL = os.environ.get("MODEL", "models/quickstart")
PAPERS = os.environ.get("PAPERS", "logs/predictions.jsonl")
OUTPUT = os.environ.get("OUTPUT", "labelled.parquet")
SOURCE = os.environ.get("SOURCE", "")
ACCEPT = os.environ.get("ACCEPT", "").lower() in ("1", "y", "yes", "true")
ARGS = os.environ.get("ARGS", "")
VERSION = os.environ.get("VERSION", "")
LAUNCHER = os.environ.get("LAUNCHER", "python")


def _run(*command: str) -> None:
    """Run a command in this environment; a failure ends the task with its exit code."""
    if command[0] == "python":
        command = (sys.executable, *command[1:])
    folder = os.path.dirname(sys.executable)
    try:
        process = subprocess.Popen(
            command, env=os.environ | {"PATH": folder + os.pathsep + os.environ.get("PATH", "")})
    except OSError as error:
        raise Exit(f"error: cannot run {command[0]!r} ({error.strerror}); correct LAUNCHER, or "
                   "install it", code=2) from None
    # `docker stop` and the like tell this process alone
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while process.poll() is None:
        try:
            process.wait()
        except KeyboardInterrupt:  # the terminal sent it to the command too, which ends in order
            continue
    if process.returncode:
        raise Exit(code=process.returncode)


def _words(text: str) -> list[str]:
    """Return the words of a variable as a shell reads them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise Exit(f"error: cannot read {text!r} of ARGS or LAUNCHER ({error}); close its quotes",
                   code=2) from None


def _pytest(*arguments: str) -> None:
    _run("python", "-m", "pytest", "--numprocesses", "auto", "--dist", "worksteal", *arguments)


@task
def help(context):
    """List all commands."""
    _run("invoke", "--list")


@task
def sample(context):
    """Pull the synthetic sample data with DVC."""
    from nej.data.sources import dvc, reason
    done = dvc("pull", "--remote", "embedded", "data/sample.csv.dvc")
    if "unsaved files" in done.stderr:
        raise Exit("error: data/sample.csv was changed, and is not replaced; pin it with `dvc add "
                   "data/sample.csv`, or move it away", code=2)
    if done.returncode:
        raise Exit(f"error: DVC cannot pull data/sample.csv from data/remote ({reason(done)}); "
                   "take that folder back from git: git checkout data/remote", code=2)


@task
def starter(context):
    """Build models/starter, unless it is there."""
    _run("python", "scripts/make_starter.py")


@task
def repro(context):
    """Run what changed of dvc.yaml: prepare, train, evaluate, visualize."""
    _run("python", "-m", "dvc", "repro")


@task(sample, starter, repro)
def quickstart(context):
    """Pull the sample, then `repro`; show the results: three minutes."""
    _run("python", "scripts/evaluate.py", "models/quickstart", "--show")
    print("data: reports/data.md\nfigures: reports/figures/")


@task
def data(context, source=SOURCE, accept=ACCEPT):
    """Get data/arxiv.csv from DVC, Kaggle or SOURCE=a zip; ACCEPT=1 pins another version."""
    _run("python", "scripts/get_data.py", *[source] * bool(source), *["--accept"] * accept)


@task
def check_data(context, config=CONFIG, args=ARGS):
    """Check the papers of CONFIG=... and write reports/data.md."""
    _run("python", "scripts/prepare.py", "--config", config, "--check_only", *_words(args))


@task
def train(context, config=CONFIG, launcher=LAUNCHER, args=ARGS):
    """Train and judge as CONFIG=... says; ARGS="--key value"."""
    _run(*_words(launcher), "scripts/train.py", "--config", config, *_words(args))


@task
def sweep(context, sweep=SWEEP, args=ARGS):
    """Search for better settings as SWEEP=a yaml says; ARGS="--count 20 --jobs 1 --key value"."""
    _run("python", "scripts/sweep.py", sweep, *_words(args))


@task
def evaluate(context, model=MODEL, args=ARGS):
    """Judge MODEL=models/x on its test papers; ARGS="--papers FILE" or "--against MODEL"."""
    _run("python", "scripts/evaluate.py", model, *_words(args))


@task
def visualize(context, model=MODEL):
    """Draw the training, the judgement and the embeddings of MODEL=models/x."""
    _run("python", "scripts/visualize.py", model)


@task
def serve(context, model=MODEL, args=ARGS):
    """Serve MODEL=models/x: a page and an API; ARGS="--port 8080 --workers 2"."""
    _run("python", "scripts/serve.py", model, *_words(args))


@task
def compare(context, base=BASE, model=MODEL, args=ARGS):
    """Compare MODEL=models/x with BASE=models/y on the same test papers: better, or noise?"""
    _run("python", "scripts/compare.py", base, model, *_words(args))


@task
def test_model(context, model=MODEL):
    """Test how MODEL=models/x behaves: odd texts, small changes, plain papers."""
    _run("python", "scripts/test_model.py", model)


@task
def promote(context, model=MODEL, args=ARGS):
    """Let models/production be MODEL=models/x, if it is better beyond noise and behaves."""
    _run("python", "scripts/promote.py", model, *_words(args))


@task
def runs(context, args=ARGS):
    """List the finished runs in models/; ARGS="--sort macro_f1 --where top_k=5 --csv FILE"."""
    _run("python", "scripts/runs.py", *_words(args))


@task
def runs_compare(context, base=BASE, model=MODEL):
    """Show in what MODEL=models/x and BASE=models/y differ, and draw their curves."""
    _run("python", "scripts/runs.py", "--compare", base, model)


@task
def reproduce(context, model=MODEL):
    """Train MODEL=models/x again from its manifest: identical, or what differs."""
    _run("python", "scripts/reproduce.py", model)


@task
def predict(context, model=MODEL, papers=PAPERS, output=OUTPUT, args=ARGS):
    """Label the papers of PAPERS=file with MODEL=models/x into OUTPUT=file."""
    _run("python", "scripts/predict.py", model, papers, "--output", output, *_words(args))


@task
def export(context, model=MODEL):
    """Export MODEL=models/x for CPUs, 8 bits; refused if it answers otherwise."""
    _run("python", "scripts/export.py", model)


@task
def drift(context, model=MODEL, papers=PAPERS, args=ARGS):
    """Tell whether PAPERS=a log of predictions or a file are like MODEL's test papers."""
    _run("python", "scripts/drift.py", model, papers, *_words(args))


@task
def review_data(context, base=REVISION):
    """Write reports/review.md: are the data that differ from BASE=origin/main good?"""
    _run("python", "scripts/review.py", "data", base)


@task
def review_model(context, base=REVISION):
    """Write reports/review.md: is the quickstart better than with the code of BASE=origin/main?"""
    _run("python", "scripts/review.py", "model", base)


@task
def lock(context, args=ARGS):
    """Pin what requirements*.in ask for; ARGS="--upgrade" takes the newest versions."""
    os.environ["CUSTOM_COMPILE_COMMAND"] = "make lock"
    for name in ("requirements", "requirements_api", "requirements_dev"):
        _run("pip-compile", "--quiet", "--output-file", f"{name}.txt", *_words(args), f"{name}.in")
        path = Path(f"{name}.txt")
        lines = path.read_text("utf-8").replace("+cpu", "").splitlines(keepends=True)
        # torch itself pins CUDA's packages, where there are any
        path.write_text("".join(line for line in lines if not re.match("nvidia-|triton", line)),
                        "utf-8")


@task
def mutants(context, args=ARGS):
    """Change code bit by bit: do the tests notice? ARGS="nej.splits*"; what, says setup.cfg."""
    _run("mutmut", "run", *_words(args))
    _run("mutmut", "results")


@task
def notebook(context):
    """Run notebooks/explore.ipynb, which looks at the sample and at the quickstart's model."""
    _run("jupyter", "execute", "notebooks/explore.ipynb")


@task
def wheel(context):
    """Build dist/ and import every module of the wheel in a clean environment: two minutes."""
    shutil.rmtree("dist", ignore_errors=True)
    _run("python", "-m", "build")
    with TemporaryDirectory() as folder:
        _run("python", "-m", "venv", folder)
        python = str(Path(folder, "Scripts" if os.name == "nt" else "bin", "python"))
        _run(python, "-m", "pip", "install", "--quiet", "--constraint", "requirements.txt",
             str(next(Path("dist").glob("*.whl"))))
        _run(python, "-Ic", "import importlib, pkgutil, nej; print(len([importlib.import_module("
             "found.name) for found in pkgutil.walk_packages(nej.__path__, 'nej.')]), 'modules')")


@task
def changes(context, version=VERSION):
    """Write dist/changes.md: what CHANGELOG.md says of VERSION=v1.2.3."""
    number = version.removeprefix("v")
    if f'\nversion = "{number}"\n' not in Path("pyproject.toml").read_text("utf-8"):
        raise Exit(f"error: VERSION={version} is not the version in pyproject.toml", code=2)
    found = re.search(rf"^## {re.escape(number)}\b.*\n((?:(?!## ).*\n)+)",
                      Path("CHANGELOG.md").read_text("utf-8"), re.M)
    if not found:
        raise Exit(f"error: CHANGELOG.md has no section '## {number}'; write it", code=2)
    Path("dist").mkdir(exist_ok=True)
    Path("dist/changes.md").write_text(found[1].strip() + "\n", "utf-8")


@task
def licences(context):
    """Write docs/licences.md: the licence of each package in requirements.txt."""
    names = re.findall(r"^([\w.-]+)==", Path("requirements.txt").read_text("utf-8"), re.M)
    rows = [f"| {name} | {_licence(metadata(name))} |" for name in names]
    Path("docs/licences.md").write_text("\n".join([
        "# Licences", "",
        "What the packages in `requirements.txt` say of themselves (`make licences`).", "",
        "| package | licence |", "|---|---|", *rows, ""]), "utf-8")


def _licence(about: Message) -> str:
    classified = [line.split(" :: ")[-1] for line in about.get_all("Classifier", [])
                  if line.startswith("License :: ") and not line.endswith("OSI Approved")]
    return (about.get("License-Expression") or ", ".join(classified)
            or about.get("License", "not named").strip().partition("\n")[0])


@task
def docs(context):
    """Build the documentation into site/, strictly."""
    _run("python", "scripts/draw_architecture.py")
    os.environ["NO_MKDOCS_2_WARNING"] = "1"
    _run("mkdocs", "build", "--strict")


@task
def docs_commands(context, args=ARGS):
    """Run the marked commands of README.md and docs/ in a fresh clone: ten minutes."""
    _run("python", "scripts/docs_commands.py", *_words(args))


@task
def lint(context):
    """Check style, imports, workflows, the Dockerfile, secrets: .pre-commit-config.yaml."""
    _run("pre-commit", "run", "--all-files")


@task
def types(context):
    """Check the types of nej/ with mypy."""
    _run("mypy")


@task
def test(context, args=ARGS):
    """Run the tests of the library, on all cores; ARGS chooses others."""
    _pytest(*(_words(args) or ("-m", "not system")))


@task
def test_system(context):
    """Run the tests of whole commands: kills, hosts, agents, DVC, servers."""
    _pytest("-m", "system")
