"""Which paper is train, validation or test: decided by its id alone, forever."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

SPLITS = ("train", "validation", "test")


def positions(paper_ids: Iterable[str]) -> np.ndarray:
    """Return a number in [0, 1) for each arXiv id (without its version), as float64.

    It is the id's 64-bit BLAKE2b hash over 2^64: uniform, and the same wherever and whenever it
    is computed.
    """
    digests = b"".join(blake2b(i.encode(), digest_size=8).digest() for i in paper_ids)
    # 53 bits fit a float64 exactly, so that 1.0 is never reached
    return (np.frombuffer(digests, ">u8") >> np.uint64(11)) / 2.0**53


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
