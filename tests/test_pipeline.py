"""The pipeline in dvc.yaml: it knows what it depends on, and runs what changed and no more."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
QUICKSTART = json.loads((ROOT / "configs" / "quickstart.json").read_text("utf-8"))


def imported(file: Path, seen: set[Path]) -> set[Path]:
    """Return the files of nej and scripts that a file imports, and those that they import."""
    if file in seen:
        return seen
    seen.add(file)
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                for path in (ROOT / name.replace(".", "/"), ROOT / "scripts" / name):
                    path = path.with_name(path.name + ".py")
                    if path.exists():
                        imported(path, seen)
    return seen


@pytest.mark.parametrize("stage", PIPELINE["stages"])
def test_a_stage_depends_on_all_the_code_that_it_runs(stage):
    # train.py can judge and draw, but does not as a stage
    passed_over = {ROOT / "nej" / "judging" / name for name in ("evaluation.py", "figures.py")
                   if stage == "train"}
    needed = {str(path.relative_to(ROOT)) for path in imported(
        ROOT / "scripts" / f"{stage}.py", set(passed_over)) - passed_over}
    listed = {dep for dep in PIPELINE["stages"][stage]["deps"] if dep.endswith(".py")}
    assert listed == needed


def test_the_image_of_the_service_has_the_packages_that_it_imports_and_no_more():
    packages = set()
    for file in imported(ROOT / "scripts" / "serve.py", set()):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                     [node.module] if isinstance(node, ast.ImportFrom) else [])
            packages |= {name.partition(".")[0] for name in names}
    packages -= {*sys.stdlib_module_names, "nej", "_run", "starlette"}  # which is FastAPI's
    asked = (ROOT / "requirements_api.in").read_text("utf-8").splitlines()
    assert packages == {line for line in asked if not line.startswith(("#", "-"))}


def test_each_key_of_the_data_is_a_parameter_of_prepare():
    from nej.dataset import SETTINGS
    listed = PIPELINE["stages"]["prepare"]["params"][0]["configs/quickstart.json"]
    assert {*SETTINGS, "data_path", "model_name_or_path", "reports_dir", "short_summary_words",
            "small_category_papers"} == set(listed)
    assert set(listed) <= set(QUICKSTART)  # DVC finds only what stands in the file


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_model, papers_csv) -> Path:
    """Return a checkout of its own, with a tiny model and a few papers in the usual places."""
    folder = tmp_path_factory.mktemp("project")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True,
                           capture_output=True, check=True).stdout.split()
    for name in files:
        if not name.startswith(("data/", "tests/", "docs/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(tiny_model, folder / "models" / "starter")
    (folder / "data").mkdir()
    shutil.copy(papers_csv, folder / "data" / "sample.csv")
    config = QUICKSTART | {"max_length": 32, "max_steps": 8, "eval_steps": 0.5, "bf16": False,
                           "frozen_layers": None, "report_to": "none", "learning_rate": 1e-3}
    (folder / "configs" / "quickstart.json").write_text(json.dumps(config))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "All")
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments], cwd=folder,
                   check=True, capture_output=True)


def dvc(folder: Path, *arguments: str) -> str:
    """Run DVC as it runs in an environment that is activated; return what it says."""
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, text=True,
                          capture_output=True, env=os.environ | {
                              "PATH": path, "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b",
                              "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@b"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.system
def test_the_pipeline_runs_what_changed_and_nothing_else(project):
    said = dvc(project, "repro")
    for stage in PIPELINE["stages"]:
        assert f"Running stage '{stage}'" in said
    for stage in PIPELINE["stages"].values():
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            name, = out
            for key in ("output_dir", "reports_dir"):
                name = name.replace(f"${{{key}}}", QUICKSTART[key])
            assert (project / name).exists(), name
    assert "Running stage" not in dvc(project, "repro")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "The first results")

    said = dvc(project, "exp", "run", "-S", "configs/quickstart.json:learning_rate=0.01")
    assert "Stage 'prepare' didn't change" in said and "Running stage 'train'" in said
    changed = json.loads(dvc(project, "params", "diff", "--json"))
    assert changed == {"configs/quickstart.json": {
        "learning_rate": {"old": 1e-3, "new": 0.01, "diff": 0.009000000000000001}}}
    metrics = json.loads(dvc(project, "metrics", "diff", "--json"))
    old, new = (metrics["models/quickstart/headline.json"]["test.log_loss"][which]
                for which in ("old", "new"))
    assert old != new
    assert "accuracy" in dvc(project, "metrics", "show", "--json")
    dvc(project, "plots", "show")
    page = (project / "dvc_plots" / "index.html").read_text()
    for word in ('"grad_norm"', '"macro_f1"', '"actual"'):
        assert word in page

    # back: DVC has the old results, and training again would give the same ones
    git(project, "checkout", "-q", "--", ".")
    weights = project / "models" / "quickstart" / "model.safetensors"
    dvc(project, "checkout")
    before = weights.read_bytes()
    dvc(project, "repro", "--force", "--single-item", "train")
    assert weights.read_bytes() == before
    locks = [yaml.safe_load(text)["stages"]["train"]["outs"] for text in (
        (project / "dvc.lock").read_text(),
        subprocess.run(["git", "show", "HEAD:dvc.lock"], cwd=project, capture_output=True,
                       text=True, check=True).stdout)]
    different = {one["path"] for one, other in zip(*locks) if one["md5"] != other["md5"]}
    assert different == {"models/quickstart/manifest.json"}  # it has times in it


@pytest.mark.system
def test_a_model_is_made_again_from_its_manifest(project):
    """The pipeline's model first as it is, then as if its learning rate had been another."""
    model = project / "models" / "quickstart"
    if not model.exists():
        dvc(project, "repro")
    command = [sys.executable, "scripts/reproduce.py", "models/quickstart"]
    manifest = json.loads((model / "manifest.json").read_text())
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"identical: weights {manifest['weights_sha256']}\n"
    config = json.loads((model / "training_config.json").read_text())
    (model / "training_config.json").write_text(json.dumps(config | {"learning_rate": 0.002}))
    manifest["packages"]["torch"] = "2.0.0"
    (model / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[1].startswith("  packages.torch: 2.0.0 then, 2.13.0")
    assert lines[2].startswith("  first differing step: 3 ")  # the warm-up begins at 0
    assert "% interval" in lines[-1]
    assert subprocess.run(["git", "worktree", "list"], cwd=project, capture_output=True,
                          text=True).stdout.count("\n") == 1


@pytest.mark.system
def test_what_cannot_be_made_again_is_explained(project, tmp_path):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project, capture_output=True,
                            text=True, check=True).stdout.strip()
    manifest = {"git": {"commit": commit, "dirty": False}, "data": {"md5": "1" * 32}}
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "training_config.json").write_text('{"data_path": "data/sample.csv"}')
    for change, parts in (({"git": None}, "names no commit"),
                          ({"git": {"commit": "0" * 40, "dirty": False}}, "cannot be checked out"),
                          ({}, "no file with md5 111")):
        (copy / "manifest.json").write_text(json.dumps(manifest | change))
        done = subprocess.run([sys.executable, "scripts/reproduce.py", str(copy)], cwd=project,
                              capture_output=True, text=True)
        assert done.returncode == 2 and parts in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
