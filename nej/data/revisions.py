"""Another revision of the repository: checked out aside, with the data that it pins."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nej import InputError
from nej.data.sources import dvc


@contextmanager
def work_tree(revision: str, folder: Path, *, repository: Path = Path(".")) -> Iterator[Path]:
    """Check out a revision of a git repository into `folder` for the block.

    Raises:
        InputError: it is not there.
    """
    git = ["git", "-C", str(repository)]
    done = subprocess.run([*git, "worktree", "add", "--detach", "--quiet", str(folder), revision],
                          capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"commit {revision} cannot be checked out "
                         f"({(done.stderr.strip().splitlines() or ['no reason given'])[-1]}); "
                         "fetch it: git fetch --unshallow, or git fetch origin COMMIT")
    try:
        yield folder
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(folder)], capture_output=True)


def pull(tree: Path, path: Path) -> Path:
    """Return a data file as a work tree pins it, from this repository's DVC cache or the remote.

    Raises:
        InputError: neither has it, or nothing pins it.
    """
    if (cache := Path(".dvc/cache")).is_dir():
        dvc("cache", "dir", "--local", cache.resolve(), cwd=tree)
    done = dvc("pull", "--quiet", f"{path}.dvc", cwd=tree)
    if done.returncode or not (tree / path).exists():
        said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines()
                if line.startswith("ERROR: ")] or ["no reason given"]
        raise InputError(f"that revision gives no {path}: {said[0][:200]}")
    return tree / path
