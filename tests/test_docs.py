"""What the documents say about keys and packages is so."""

import dataclasses
import json
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from nej.config import Config

ROOT = Path(__file__).resolve().parent.parent
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


def test_each_direct_dependency_is_explained_and_pinned():
    pins = (ROOT / "requirements.txt").read_text("utf-8")
    direct = pins.split("# what those need")[0]
    names = re.findall(r"^([\w-]+)==", direct, re.M)
    explained = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    assert len(names) > 10
    for name in names:
        assert f"| {name} |" in explained
    lines = [line for line in pins.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+", line) for line in lines)


def test_each_make_target_that_the_readme_names_is_a_task():
    readme = (ROOT / "README.md").read_text("utf-8")
    tasks = re.findall(r"@task.*\ndef (\w+)", (ROOT / "tasks.py").read_text("utf-8"))
    named = set(re.findall(r"\bmake (\w+)", " ".join(re.findall(r"`[^`]+`", readme))))
    assert len(named) > 4 and named <= set(tasks)


def test_each_file_that_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in set(re.findall(r"\b(?:scripts|configs|docs|tests|nej)/[\w/.-]*\w", readme)):
        assert (ROOT / name).exists(), name
