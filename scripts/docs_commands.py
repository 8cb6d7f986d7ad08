"""Run the marked commands of the documents in a fresh clone, in order.

    python scripts/docs_commands.py
    python scripts/docs_commands.py README.md docs/evaluation.md

A block of code after a line `<!-- run -->` is run by bash and must end with 0; after
`<!-- run: exit 0, 3 or 4 -->` one of these codes will do. Unless some are named, the documents are
docs/index.md, whose quickstart makes what the others need, README.md and all others.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _run import Parser, run

BLOCK = re.compile(r"^<!-- run(?:: exit ([\d, or]+))? -->\n\n?"
                   r"((?:    .*\n|\n)+|```\w*\n(?:.*\n)*?```\n)", re.M)
FIRST = [Path("docs/index.md"), Path("README.md")]


def main(arguments: list[str]) -> int:
    """Clone, run, tell; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path, nargs="*")
    documents = parser.parse_args(arguments).documents
    documents = documents or FIRST + sorted({*Path("docs").glob("*.md")} - {*FIRST})
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "nej"
        subprocess.run(["git", "clone", "--quiet", ".", clone], check=True)
        if (environment := Path(sys.prefix)).name == ".venv":  # do not install everything again
            (clone / ".venv").symlink_to(environment.resolve())
        count = 0
        for document in documents:
            for commands, allowed in marked(document.read_text("utf-8")):
                print(f"-- {document}\n{commands}", flush=True)
                start = time.monotonic()
                code = subprocess.run(["bash", "-euc", commands], cwd=clone).returncode
                print(f"-- exit code {code}, {time.monotonic() - start:.0f} s", flush=True)
                if code not in allowed:
                    return 1
                count += 1
    print(f"{count} blocks did what they should")
    return 0


def marked(text: str) -> list[tuple[str, list[int]]]:
    """Return the commands of each marked block and the exit codes that it may have."""
    return [(re.sub(r"^(    |```.*\n?)", "", block, flags=re.M).strip(),
             [int(code) for code in re.findall(r"\d+", codes or "0")])
            for codes, block in BLOCK.findall(text)]


if __name__ == "__main__":
    run(main)
