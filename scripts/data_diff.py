"""Say what changed between two versions of the papers.

    python scripts/data_diff.py HEAD~1 HEAD
    python scripts/data_diff.py v1 data/sample.csv --path data/sample.csv --json difference.json

Each version is a file, or a git revision whose version of --path is taken from DVC's cache or
remote.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Compare and print; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="a file or a git revision")
    parser.add_argument("new", help="a file or a git revision")
    parser.add_argument("--path", type=Path, default=Path("data/arxiv.csv"),
                        help="the file in the git revisions (data/arxiv.csv)")
    parser.add_argument("--json", type=Path, help="write everything there too")
    parser.add_argument("--label_column", choices=("category_code", "category"),
                        default="category_code")
    options = parser.parse_args(arguments)
    from nej.data.difference import compare
    from nej.files import write_json
    from nej.papers import read_papers
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        tables = [read_papers(_version(name, options.path, Path(folder) / str(index), stack))
                  for index, name in enumerate((options.old, options.new))]
        difference = compare(*tables, label_column=options.label_column)
    if options.json:
        write_json(options.json, difference.as_json())
    print(difference.text())
    return 0


def _version(name: str, path: Path, folder: Path, stack: ExitStack) -> Path:
    """Return the file `name`, or `path` as the git revision `name` pins it."""
    from nej import InputError
    from nej.data.revisions import pull, work_tree
    if Path(name).is_file():
        return Path(name)
    try:
        return pull(stack.enter_context(work_tree(name, folder)), path)
    except InputError as error:
        raise InputError(f"{name!r} is no file, and as a git revision: {error}") from None


if __name__ == "__main__":
    run(main)
