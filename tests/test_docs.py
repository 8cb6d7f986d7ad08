"""What the documents say about keys and packages is so."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from nej.config import Config

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ROOT / "scripts" / "docs_commands.py"
KINDS = {int: "whole number", float: "number", bool: "true, false", str: "text",
         list[str]: "list of texts", type(None): "null"}


def row(field: dataclasses.Field) -> str:
    """Return the line of docs/configuration.md that explains a key."""
    hint = get_type_hints(Config)[field.name]
    parts = get_args(hint) if type(None) in get_args(hint) else [hint]
    kinds = ", ".join(KINDS.get(part) or ", ".join(f"`{choice}`" for choice in get_args(part))
                      for part in parts)
    return (f"| `{field.name}` | {kinds} | `{json.dumps(field.default)}` | "
            f"{field.metadata['help']} |")


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_each_key_stands_in_the_table_as_it_is_in_the_code(field):
    assert row(field) in (ROOT / "docs" / "configuration.md").read_text("utf-8").splitlines()


def pinned(name: str) -> set[str]:
    """Return what a file of requirements pins to one version."""
    lines = [line for line in (ROOT / name).read_text("utf-8").splitlines()
             if line and not line.startswith(("#", "-c"))]
    found = [re.match(r"([a-z0-9-]+)==[\w.]+( ; [^#]+)?( +# via .+)?$", line) for line in lines]
    assert lines and all(found)
    return {match[0].split(" ")[0] for match in found}


def test_each_direct_dependency_is_explained_and_pinned():
    asked = (ROOT / "requirements.in").read_text("utf-8")
    names = re.findall(r"^([\w-]+)", asked, re.M)
    explained = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    pins = {pin.split("==")[0] for pin in pinned("requirements.txt")}
    assert len(names) > 10
    for name in names:
        assert f"| {name} |" in explained
        assert name.lower().replace("_", "-") in pins


def test_the_service_and_the_tools_have_the_same_versions():
    versions = dict(pin.split("==") for pin in pinned("requirements.txt"))
    for name in ("requirements_api.txt", "requirements_dev.txt"):
        for package, version in (pin.split("==") for pin in pinned(name)):
            assert versions.get(package, version) == version, package


def test_each_make_target_in_code_of_the_documents_and_in_the_workflows_is_a_task():
    tasks = re.findall(r"^@task.*\ndef (\w+)", (ROOT / "tasks.py").read_text("utf-8"), re.M)
    named: set[str] = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        code = re.findall(r"^```[^`]*^```|^ {4}.*|`[^`]+`", page.read_text("utf-8"), re.M)
        named.update(re.findall(r"\bmake\s+([a-z][a-z-]*)", " ; ".join(code)))
    assert len(named) > 20
    for page in (*(ROOT / ".github" / "workflows").iterdir(), *(ROOT / ".ci").iterdir()):
        for line in re.findall(r"^(?: *- run: )?make ([a-z -]+)", page.read_text("utf-8"), re.M):
            named.update(line.split())
    assert "review-data" in named
    assert {name.replace("-", "_") for name in named} <= set(tasks)


def test_each_file_that_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in set(re.findall(r"\b(?:scripts|configs|docs|tests|nej)/[\w/.-]*\w", readme)):
        assert (ROOT / name).exists(), name


def test_each_document_is_in_the_site_and_each_module_in_its_reference():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in navigation
    reference = (ROOT / "docs" / "reference.md").read_text("utf-8").splitlines()
    for module in (ROOT / "nej").rglob("[a-z]*.py"):
        name = ".".join(module.relative_to(ROOT).with_suffix("").parts)
        assert f"::: {name}" in reference


def test_the_way_from_papers_to_a_model_knows_nothing_of_the_packages_beside_it():
    for module in (ROOT / "nej").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nej."):
                assert (ROOT / (node.module.replace(".", "/") + ".py")).parent == ROOT / "nej"


def test_the_site_is_built_without_a_warning_and_asks_no_other_server(tmp_path):
    built = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict",
                            "--site-dir", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        fetched = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=.(?:https?:)?//[^>]*",
                             page.read_text("utf-8"))
        assert not fetched, page


def test_the_picture_of_the_modules_is_the_one_that_the_code_gives(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "nej").symlink_to(ROOT / "nej")
    subprocess.run([sys.executable, ROOT / "scripts" / "draw_architecture.py"], cwd=tmp_path,
                   check=True)
    drawn, kept = (folder / "docs" / "architecture.svg" for folder in (tmp_path, ROOT))
    assert drawn.read_text("utf-8") == kept.read_text("utf-8")


def test_marked_commands_run_in_a_clone_and_must_end_as_it_says(tmp_path):
    (tmp_path / "README.md").write_text(
        "    exit 9\n\n<!-- run -->\n\n    ls README.md models/starter\n    touch new  # why\n"
        "    test -z \"${ARGS:-}\"; python -c 'import numpy'\n\nand\n\n"
        "<!-- run: exit 0, 3 or 4 -->\n\n```bash\nls new\nexit 4\n```\n\nend\n", "utf-8")
    (tmp_path / "wrong.md").write_text("<!-- run -->\n\n    false\n    true\n", "utf-8")
    environment = Path(sys.prefix, "pins.txt")
    (tmp_path / "requirements.txt").write_text(
        environment.read_text("utf-8") if environment.exists() else "", "utf-8")
    (tmp_path / "requirements_dev.txt").touch()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Two"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / "models" / "starter").mkdir(parents=True)
    (tmp_path / "wrong.md").write_text("not committed", "utf-8")
    for document, code, said in (("README.md", 0, "2 blocks"), ("wrong.md", 1, "exit code 1"),
                                 ("none.md", 2, "none.md is no file of the last commit")):
        done = subprocess.run([sys.executable, COMMANDS, document], cwd=tmp_path,
                              env=os.environ | {"ARGS": "--of make"},
                              capture_output=True, text=True)
        assert done.returncode == code and said in done.stdout + done.stderr, done.stderr
    assert not (tmp_path / "new").exists()


def test_marked_commands_take_no_environment_that_make_would_make_anew(tmp_path):
    venv.create(tmp_path / ".venv", with_pip=False)
    (tmp_path / ".venv" / "pins.txt").write_text("torch==1.0\n", "utf-8")
    python = tmp_path / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    done = subprocess.run([python, COMMANDS, "README.md"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "was not made from" in done.stderr


def test_marked_commands_see_no_variable_that_is_meant_for_a_task():
    variables = re.findall(r'^\w+ = os\.environ\.get\("(\w+)"',
                           (ROOT / "tasks.py").read_text("utf-8"), re.M)
    assert len(variables) > 8
    assert all(f'"{name}"' in COMMANDS.read_text("utf-8") for name in variables)
