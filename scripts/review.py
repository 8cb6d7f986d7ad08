"""Write what a change does to the data or to the model, as Markdown for a pull request.

    python scripts/review.py data origin/main
    python scripts/review.py model origin/main

data: each CSV whose .dvc file differs from the base's is checked, and compared with the base's,
if that has it.
model: configs/quickstart.json is trained with the base's code and with this one, here, and the two
are compared. Exit code 1 if the check finds an error, or the model is worse beyond noise.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from _run import Parser, run

TRAIN = ("scripts/train.py", "--config", "configs/quickstart.json", "--report_to", "none")


def main(arguments: list[str]) -> int:
    """Review, write the page; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "model"))
    parser.add_argument("base", help="the git revision to compare with")
    parser.add_argument("--output", type=Path, default=Path("reports/review.md"))
    options = parser.parse_args(arguments)
    from nej import InputError
    from nej.files import replacing
    if subprocess.run(["git", "rev-parse", "--verify", "--quiet", f"{options.base}^{{commit}}"],
                      stdout=subprocess.DEVNULL).returncode:
        raise InputError(f"base is {options.base!r}, which is no git revision here; name a commit, "
                         "a branch or a tag, after `git fetch` if it is a remote's")
    if options.output.is_dir():  # to be known before a training, not after it
        raise InputError(f"--output: cannot write {options.output}: it is a folder; name a file")
    review = _review_data if options.what == "data" else _review_model
    page, good = review(options.base, options.output)
    with replacing(options.output) as aside:
        aside.write_text(page, "utf-8")
    print(f"{page}\nwritten: {options.output}")
    return 0 if good else 1


def _review_data(base: str, _: Path) -> tuple[str, bool]:
    changed = _output("git", "diff", "--name-only", "--diff-filter=d", f"{base}...", "--",
                      "data/*.dvc").split()
    page, good = [], True
    if changed:  # the check looks at the papers as the model reads them
        _output(sys.executable, "-m", "invoke", "starter")
    for path in (name.removesuffix(".dvc") for name in changed):
        config = "quickstart" if path == "data/sample.csv" else "base"
        _python("-m", "dvc", "pull", "--quiet", f"{path}.dvc")  # if it cannot, they say so below
        found = [_python("scripts/prepare.py", "--config", f"configs/{config}.json", "--check_only",
                         "--data_path", path)]
        new = subprocess.run(["git", "cat-file", "-e", f"{base}:{path}.dvc"],
                             stderr=subprocess.DEVNULL).returncode
        if not new:
            found.insert(0, _python("scripts/data_diff.py", base, path, "--path", path))
        good = good and not any(done.returncode for done in found)
        page += [f"### `{path}`" + f", which is new: {base} has none" * bool(new), *(
            f"```\n{(done.stdout or done.stderr).strip()}\n```" for done in found)]
    return "\n\n".join(page) or f"No data changed since {base}.", good


def _review_model(base: str, output: Path) -> tuple[str, bool]:
    from nej.data.revisions import work_tree
    with tempfile.TemporaryDirectory() as folder, work_tree(base, Path(folder) / "base") as tree:
        for root in (tree, Path(".")):
            _output(sys.executable, "-m", "invoke", "sample", "starter", cwd=root)
            _output(sys.executable, *TRAIN, cwd=root)
        done = _python("scripts/compare.py", tree / "models/quickstart", "models/quickstart",
                       "--markdown", output)
    if done.returncode == 2:
        return f"```\n{done.stderr.strip()}\n```", False
    return output.read_text("utf-8").replace(str(tree), base), done.returncode != 4


def _python(*command: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True)


def _output(*command: str | Path, cwd: Path = Path(".")) -> str:
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    run(main)
