"""Run the marked commands of the documents in a fresh clone, in order.

    python scripts/docs_commands.py
    python scripts/docs_commands.py README.md docs/evaluation.md

A block of code after a line `<!-- run -->` is run by bash and must end with 0; after
`<!-- run: exit 0, 3 or 4 -->` one of these codes will do. Unless some are named, the documents are
docs/index.md, whose quickstart makes what the others need, README.md and all others. Documents and
code are those of the last commit. An environment in .venv and models/starter are taken from here;
variables that choose what make does (ARGS, MODEL, ...) are not.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from _run import Parser, run

BLOCK = re.compile(r"^<!-- run(?:: exit ([\d, or]+))? -->\n\n?"
                   r"((?:    .*\n|\n)+|```\w*\n(?:.*\n)*?```\n)", re.M)
FIRST = [Path("docs/index.md"), Path("README.md")]
MAKE = {"ACCEPT", "ARGS", "BASE", "CONFIG", "LAUNCHER", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES",
        "MFLAGS", "MODEL", "OUTPUT", "PAPERS", "SOURCE", "SWEEP", "VERSION"}
PINS = ("requirements.txt", "requirements_dev.txt")


def main(arguments: list[str]) -> int:
    """Clone, run, tell; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="*")
    named = parser.parse_args(arguments).documents
    from nej import InputError
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "nej"
        subprocess.run(["git", "clone", "--quiet", ".", clone], check=True)
        if (environment := Path(sys.prefix)).name == ".venv":  # do not install everything again
            pins = environment / "pins.txt"  # make would wipe the environment through the link
            if not pins.exists() or pins.read_text("utf-8") != "".join(
                    (clone / name).read_text("utf-8") for name in PINS):
                raise InputError(f"{environment} was not made from the last commit's pins; make "
                                 "would wipe it: commit the pins, or run `make help`")
            (clone / ".venv").symlink_to(environment.resolve())
        if Path("models/starter").exists():  # do not fetch it again
            shutil.copytree("models/starter", clone / "models/starter")
        documents = named or FIRST + sorted(
            {page.relative_to(clone) for page in clone.glob("docs/*.md")} - {*FIRST})
        count = 0
        for document in documents:
            if not (clone / document).is_file():
                raise InputError(f"{document} is no file of the last commit; name one that is")
            for commands, allowed in marked((clone / document).read_text("utf-8")):
                print(f"-- {document}\n{commands}", flush=True)
                start = time.monotonic()
                code = subprocess.run(["bash", "-euc", commands], cwd=clone,
                                      env=activated(os.environ)).returncode
                print(f"-- exit code {code}, {time.monotonic() - start:.0f} s", flush=True)
                if code not in allowed:
                    return 1
                count += 1
    print(f"{count} blocks did what they should")
    return 0


def activated(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables as after `source .venv/bin/activate`, without those that make reads."""
    kept = {name: value for name, value in variables.items() if name not in MAKE}
    folder = os.path.dirname(sys.executable)
    return kept | {"PATH": folder + os.pathsep + kept.get("PATH", "")}


def marked(text: str) -> list[tuple[str, list[int]]]:
    """Return the commands of each marked block and the exit codes that it may have."""
    return [(re.sub(r"^(    |```.*\n?)", "", block, flags=re.M).strip(),
             [int(code) for code in re.findall(r"\d+", codes or "0")])
            for codes, block in BLOCK.findall(text)]


if __name__ == "__main__":
    run(main)
