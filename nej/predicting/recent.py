"""Recent papers, from a log of predictions or from a file, as drift compares them."""

import json
import logging
import math
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from nej import InputError
from nej.data.records import open_records
from nej.files import read_manifest
from nej.predicting.backends import TORCH, load_backend
from nej.predicting.drift import Signals, signals
from nej.predicting.prediction_log import DIRECTIONS, open_parts
from nej.predicting.unknown_words import UnknownWords
from nej.predicting.windows import cut

MOST_PAPERS = 2000  # of a file, drawn with a seed; more do not tell more
FIRST_LINES = 10  # of a file, which tell whether it is a log

logger = logging.getLogger(__name__)


def recent_signals(model_dir: Path, source: Path, *, days: float | None = None) -> Signals:
    """Return the signals of a log of predictions, or of a CSV, JSON Lines or Parquet file.

    Args:
        days: of a log, only what was predicted in the last so many days.

    Raises:
        InputError: no such file, nothing in it of this model, days of a file of papers, or days
            that no calendar has.
    """
    with ExitStack() as opened:
        parts = [opened.enter_context(part) for part in open_parts(source)]
        if not parts and source.is_file():
            raise InputError(f"{source} is empty: no predictions in it yet; ask again when the "
                             "service has answered, or name another log, or papers")
        if _are_log(parts):
            return _of_log(model_dir, source, parts, days)
    if days is not None:
        raise InputError(f"--days is for a log of predictions, and {source} is none")
    return _of_papers(model_dir, source)


def _are_log(parts: list[TextIO]) -> bool:
    """Return whether the first object in the parts is a prediction, the newest part's before."""
    for part in reversed(parts):
        lines = [part.readline(1 << 20) for _ in range(FIRST_LINES)]
        part.seek(0)
        for line in lines:
            try:
                first = json.loads(line)
            except (ValueError, RecursionError):  # a process was killed as it wrote, or no log
                continue
            if isinstance(first, dict):
                return {"version", "unknown_words", "embedding"} <= set(first)
    return False


def _of_log(model_dir: Path, source: Path, parts: list[TextIO], days: float | None) -> Signals:
    version = read_manifest(model_dir)["weights_sha256"][:12]
    try:
        since = datetime.now(UTC) - timedelta(days=days) if days is not None else None
    except (OverflowError, ValueError) as error:
        raise InputError(f"--days is {days:g}, and no calendar has as many; name fewer, or leave "
                         "it out") from error
    rows: list[dict[str, Any]] = []
    left_out = {"of another model": 0, "older": 0, "not whole": 0}  # as the service is writing one
    for line in chain.from_iterable(parts):
        try:
            row = json.loads(line)
            reason = ("of another model" if row["version"] != version else
                      "older" if since and datetime.fromisoformat(row["time"]) < since else None)
            row = _whole(row)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            reason = "not whole"
        if reason:
            left_out[reason] += 1
        else:
            rows.append(row)
    logger.info("%s: %d predictions%s", source, len(rows), "".join(
        f"; left out, {reason}: {count}" for reason, count in left_out.items() if count))
    if not rows:
        raise InputError(f"{source}: no prediction of {model_dir} (version {version})"
                         f"{f' in the last {days:g} days' if since else ''}; name the model that "
                         "is served, or another log")
    rows.sort(key=lambda row: row["time"])
    tokens, unknown_words, probability, embeddings, times = (
        np.array([row[name] for row in rows])
        for name in ("tokens", "unknown_words", "probability", "embedding", "time"))
    return Signals(tokens, unknown_words, probability, [row["category"] for row in rows],
                   embeddings, times)


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """Return what drift needs of a prediction; raise TypeError or ValueError unless it is that."""
    datetime.fromisoformat(row["time"])
    numbers = [row["tokens"], row["unknown_words"], row["probability"], *row["embedding"]]
    if not (isinstance(row["category"], str) and len(row["embedding"]) == DIRECTIONS
            and all(map(math.isfinite, numbers))):
        raise ValueError("a field is of another kind")
    return {name: row[name] for name in (
        "time", "tokens", "unknown_words", "probability", "category", "embedding")}


def _of_papers(model_dir: Path, source: Path) -> Signals:
    backend = load_backend(model_dir, TORCH)  # which the reference was made with
    draw = np.random.default_rng(backend.config.seed)
    chosen: list[tuple[str, str, str]] = []
    seen = bad = 0
    with open_records(source, needed=["summary"]) as records:
        for window in cut(records):
            bad += len(window.faults)
            for paper in window.good.values():
                seen += 1
                if seen <= MOST_PAPERS:
                    chosen.append(paper)
                elif (at := draw.integers(seen)) < MOST_PAPERS:  # Vitter's algorithm R
                    chosen[at] = paper
    logger.info("%s: %d papers%s%s", source, seen,
                f", of them {MOST_PAPERS} by chance" if seen > MOST_PAPERS else "",
                f"; left out: {bad} that cannot be read" if bad else "")
    papers = backend.read([summary for *_, summary in chosen], [title for _, title, _ in chosen])
    return signals(papers, backend.run(papers), names=backend.names,
                   temperature=backend.temperature,
                   unknown_words=UnknownWords(backend.tokenizer))
