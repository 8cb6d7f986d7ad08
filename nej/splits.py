"""Which paper is train, validation or test: decided by its id, or by its date, forever."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

SPLITS = ("train", "validation", "test")


def hashes(texts: Iterable[bytes]) -> np.ndarray:
    """Return the 64-bit BLAKE2b hash of each text, uint64; the same wherever it is computed."""
    digests = b"".join([blake2b(text, digest_size=8).digest() for text in texts])
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def positions(paper_ids: Iterable[str]) -> np.ndarray:
    """Return a number in [0, 1) for each arXiv id (without its version), as float64.

    It is the id's hash over 2^64: uniform, and never another one.
    """
    return to_positions(hashes(i.encode() for i in paper_ids))


def to_positions(hashes: np.ndarray) -> np.ndarray:
    """Return `positions` of ids whose hashes are known."""
    # 53 bits fit a float64 exactly, so that 1.0 is never reached
    return (hashes >> np.uint64(11)) / 2.0**53


def assign(
    positions: np.ndarray, *, validation_fraction: float, test_fraction: float
) -> np.ndarray:
    """Return the index into SPLITS of each position: test lowest, then validation, then train.

    Papers that are added or taken away move no other paper.
    """
    return np.where(
        positions < test_fraction, SPLITS.index("test"),
        np.where(positions < test_fraction + validation_fraction,
                 SPLITS.index("validation"), SPLITS.index("train")))


def assign_by_date(
    published: np.ndarray, *, validation_from: np.datetime64, test_from: np.datetime64
) -> np.ndarray:
    """Return the index into SPLITS of each date of publication, datetime64[D].

    Older papers are train. One without a date (NaT) has no split: len(SPLITS).
    """
    split = np.where(
        published >= test_from, SPLITS.index("test"),
        np.where(published >= validation_from, SPLITS.index("validation"), SPLITS.index("train")))
    split[np.isnat(published)] = len(SPLITS)
    return split
