"""Another revision of the repository: checked out aside, with the data that it pins."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nej import InputError
from nej.data.sources import dvc, reason


@contextmanager
def work_tree(revision: str, folder: Path, *, repository: Path = Path(".")) -> Iterator[Path]:
    """Check out a revision of a git repository into `folder` for the block.

    DVC has there the repository's cache and what its config.local says, keys of remotes for one.

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
        _share_dvc(repository, folder)
        yield folder
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(folder)], capture_output=True)


def _share_dvc(repository: Path, tree: Path) -> None:
    cache = cache_folder(repository)
    if cache is None or not (tree / ".dvc").is_dir():  # it may be older than its DVC
        return
    local = repository / ".dvc" / "config.local"
    if local.exists():
        shutil.copy(local, tree / ".dvc")
    dvc("cache", "dir", "--local", cache, cwd=tree)


def cache_folder(repository: Path) -> Path | None:
    """Return the folder of a repository's DVC cache, None if it has no DVC."""
    done = dvc("cache", "dir", cwd=repository)
    return Path(done.stdout.strip()) if done.returncode == 0 else None


def pull(tree: Path, path: Path, *, repository: Path = Path(".")) -> Path:
    """Return a data file as a work tree pins it, from the repository's DVC cache or the remote.

    Args:
        path: from the repository's root on, or absolute.

    Raises:
        InputError: neither has it, or nothing pins it, or it is outside of the repository.
    """
    if path.is_absolute():  # it would be the file in place
        path = _from_root(path, repository)
    pin = tree / f"{path}.dvc"
    if not pin.exists():
        raise InputError(f"that revision gives no {path}: it has no {path}.dvc, which would pin "
                         "it; name another revision or file")
    done = dvc("pull", pin.relative_to(tree), cwd=tree)
    if done.returncode or not (tree / path).exists():
        raise InputError(
            f"that revision gives no {path}: neither DVC's cache nor a remote has the version that "
            f"it pins ({reason(done)}); name the remote that has it (docs/data.md), or another "
            "revision")
    return tree / path


def _from_root(path: Path, repository: Path) -> Path:
    """Return an absolute path as one from the repository's root on."""
    done = subprocess.run(["git", "-C", str(repository), "rev-parse", "--show-toplevel"],
                          capture_output=True, text=True)
    root = Path(done.stdout.strip())
    parent = path.parent.resolve()  # the file itself may be a link into the cache
    if done.returncode or not parent.is_relative_to(root):
        raise InputError(f"{path} is outside of the repository, whose revisions do not pin it; "
                         "name a file in it")
    return parent.relative_to(root) / path.name
