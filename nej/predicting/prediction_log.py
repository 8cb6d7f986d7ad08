"""A log of what was predicted, bounded on disk: JSON Lines that tell whether papers change."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock

from nej import InputError

FILES = 10  # with the newest; the oldest is deleted when another begins
MOST_PENDING = 1000  # requests whose lines wait for a slow disk; more are left out
DIRECTIONS = 8

logger = logging.getLogger(__name__)


@cache
def _directions(width: int) -> np.ndarray:
    """Return random directions, always the same, float64 (width, 8)."""
    draw = np.random.default_rng(0).standard_normal((width, DIRECTIONS))
    return draw / np.sqrt(width)


def summarize(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings seen from 8 fixed random directions, float64 (papers, 8).

    Enough to see that papers of another kind come, too little to tell one paper from its summary.
    """
    return embeddings.astype(float) @ _directions(embeddings.shape[1])


def open_parts(path: Path) -> list[TextIO]:
    """Open the files of a log that are not empty, the oldest first; of any other file that one.

    A service that writes the log moves none in between.

    Raises:
        InputError: one may not be read.
    """
    lock = f"{path}.lock"  # who may only read the folder does without
    with FileLock(lock) if os.access(lock, os.W_OK) else nullcontext():
        older = [part for part in path.parent.glob(f"{escape(path.name)}.*")
                 if part.suffix[1:].isdigit()]
        files = [*sorted(older, key=lambda part: -int(part.suffix[1:])), path]
        try:
            return [open(part, encoding="utf-8", errors="replace") for part in files
                    if part.is_file() and part.stat().st_size]
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}; change its "
                             "permissions, or name another file") from error


class PredictionLog:
    """Appends lines to `path`, which moves on to `path`.1 and so on; processes may share it.

    It never holds up an answer: a thread of its own writes, and of what cannot be written the
    papers are counted.
    """

    def __init__(self, path: Path, *, size_bytes: int,
                 lost: Callable[[int], None] = lambda papers: None):
        """Open it; all files together stay below about `size_bytes`.

        Args:
            lost: called with the papers that could not be written.

        Raises:
            InputError: it cannot be written.
        """
        self.path, self.file_bytes, self.lost = path, size_bytes // FILES, lost
        self._failing = False
        self._lock = FileLock(f"{path}.lock")
        self._pending = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append(b"")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}; name another file "
                             "with --log") from error
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="prediction log")

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append a line for each row, soon."""
        if self._pending >= MOST_PENDING:
            self.lost(len(rows))
            return
        self._pending += 1
        self._writer.submit(self._write, rows)

    def close(self) -> None:
        """Write what waits."""
        self._writer.shutdown()

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        try:
            self._append("".join(
                json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
            self._failing = False
        except OSError as error:
            if not self._failing:
                logger.warning("cannot write %s: %s; predictions go on without it", self.path,
                               error.strerror or error)
            self._failing = True
            self.lost(len(rows))
        finally:
            self._pending -= 1

    def _append(self, lines: bytes) -> None:
        with self._lock:
            if self.path.exists() and self.path.stat().st_size + len(lines) > self.file_bytes:
                for number in range(FILES - 1, 0, -1):
                    older = self._numbered(number - 1)
                    if older.exists():
                        os.replace(older, self._numbered(number))
            with open(self.path, "a+b", buffering=0) as file:
                size_bytes = file.tell()
                file.seek(max(0, size_bytes - 1))
                if size_bytes and file.read() != b"\n":  # a process was killed as it wrote
                    lines = b"\n" + lines
                try:
                    while lines:
                        lines = lines[file.write(lines):]
                except OSError:  # a disk may have taken a part before it was full
                    file.truncate(size_bytes)
                    raise

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path
