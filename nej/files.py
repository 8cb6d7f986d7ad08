"""Files that are whole or absent: written aside, flushed, renamed."""

import csv
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from nej import InputError

CONFIG_FILE = "training_config.json"  # in a model directory
TRACE = "steps.csv"  # there, and in each checkpoint
# what a disk says that is full, over its quota, read-only, broken or somebody else's
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES,
                errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG}


def require(path: Path) -> Path:
    """Return `path` if it is a file, else raise InputError with the way to get it."""
    if not path.is_file():
        raise InputError(f"data_path: no file {path}; `make data` gets Kaggle's file as "
                         "data/arxiv.csv, `make sample` the sample")
    if not os.access(path, os.R_OK):
        raise InputError(f"data_path: {path} may not be read; change its permissions")
    return path


def require_model(model_dir: Path, *, file: str = "manifest.json") -> None:
    """Raise InputError unless a finished model is there, which has `file`."""
    if not (model_dir / file).exists():
        raise InputError(f"{model_dir} is not a finished model directory: no {file} in it; train "
                         "one with scripts/train.py, or name another")


def read_manifest(model_dir: Path) -> dict[str, Any]:
    """Return what made a model; raise InputError unless it is there and finished."""
    require_model(model_dir)
    return json.loads((model_dir / "manifest.json").read_text("utf-8"))


@contextmanager
def explained_writes(target: Path) -> Iterator[None]:
    """Turn a disk's errors inside the block, also those that torch wraps, into an InputError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        text = str(error)
        wrapped = any(of in text for of in ("PytorchStreamWriter", "inline_container", "I/O error"))
        if not wrapped and getattr(error, "errno", None) not in _DISK_ERRORS:
            raise
        reason = getattr(error, "strerror", None) or text.splitlines()[0][:160]
        raise InputError(f"cannot write {target}: {reason}; free some space or name another "
                         "place, and give the same command again") from error


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; when the block ends, put it in `target`'s place.

    Works for files and for folders. If the block raises, `target` is as it was before.

    Raises:
        InputError: the disk cannot be written (read-only, full, no permission), or a file was to
            take a folder's place.
    """
    target = Path(target)
    aside = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield aside / target.name
        flush(aside / target.name)
        if target.is_dir() and not (aside / target.name).is_dir():
            raise InputError(f"cannot write {target}: it is a folder; name a file")
        if target.is_dir():  # a folder cannot be renamed onto a full one
            os.rename(target, aside / "old")
        try:
            os.replace(aside / target.name, target)
        except OSError:
            if (aside / "old").exists():
                os.rename(aside / "old", target)
            raise
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; "
            "free some space or name another place"
        ) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def run_lock(model_dir: Path) -> FileLock:
    """Return the lock, not to be waited for, that a run holds while it works on `model_dir`."""
    return FileLock(model_dir.with_name(model_dir.name + ".lock"), timeout=0)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(found, key=lambda path: -int(path.name[11:]))


def never_began(record: Path, folder: Path) -> bool:
    """Return whether a folder has only what a kill leaves there before its `record` is written."""
    return folder.is_dir() and all(
        path == record.parent or path.name.startswith(f".{record.name}.")  # see `replacing`
        for path in (*folder.iterdir(), *record.parent.glob("*")))


def flush(path: Path) -> None:
    """Force a file, or a folder and every file in it, to the disk."""
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if os.name == "nt" and file.is_dir():  # which Windows cannot open
            continue
        handle = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with replacing(path) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a CSV in UTF-8, whole or not at all; numbers with all their digits."""
    with replacing(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file of JSON holds, {} if there is none."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Return the hex digest of a file (`algorithm` as in hashlib), read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()
