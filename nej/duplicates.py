"""Near-duplicates: texts that say the same in nearly the same words."""

import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm
from xxhash import xxh3_64_intdigest

from nej.rows import in_threads

logger = logging.getLogger(__name__)

SHINGLE_WORDS = 3
# of a sketch; a pair is overlooked with (1 - similarity^ROWS)^BANDS: at 0.8 one in 10^7, at 0.7 one
# in 6,000, at 0.6 one in 90
BANDS, ROWS = 32, 4
SEED = 1
MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93],
               np.uint64)  # odd numbers, to make one number of a band's four, or of three words'


def near_duplicates(
    texts: Callable[[], Iterable[pa.Array]], *, threshold: float, ranks: Sequence[int]
) -> dict[int, tuple[int, float]]:
    """Find the texts that nearly repeat an earlier one.

    Two texts are as similar as the sets of their three-word sequences (Jaccard's index). MinHash
    (Broder, 1997, On the resemblance and containment of documents) with locality-sensitive hashing
    finds the pairs to compare, and each pair is then compared exactly. A text is a near-duplicate
    of the most similar earlier text that is none itself. (Where a hash makes the choice, a pair may
    be overlooked: see BANDS.)

    Args:
        texts: a function that goes through the texts, batch by batch; it is called twice.
        threshold: the least similarity, over 0 and at most 1.
        ranks: for each text a number of its own; the one with the lower number is the earlier one.

    Returns:
        For the index of each near-duplicate, the index of the earlier text and the similarity.
    """
    start = time.perf_counter()
    buckets = _buckets(texts(), len(ranks))
    sets = {index: shingles(text.as_py())
            for index, text in enumerate(chain.from_iterable(texts())) if index in buckets}
    kept: dict[tuple[int, int], list[int]] = defaultdict(list)  # of each bucket
    found: dict[int, tuple[int, float]] = {}
    compared = 0
    for index in sorted(buckets, key=ranks.__getitem__):
        earlier = {other for bucket in buckets[index] for other in kept[bucket]}
        compared += len(earlier)
        similar = [(jaccard(sets[index], sets[other]), -ranks[other], other) for other in earlier]
        best = max(similar, default=(0.0, 0, 0))
        if best[0] >= threshold:
            found[index] = best[2], best[0]
        else:
            for bucket in buckets[index]:
                kept[bucket].append(index)
    logger.info("near-duplicates: %d, from %d pairs that were compared, in %.0f s", len(found),
                compared, time.perf_counter() - start)
    return found


def shingles(text: str) -> set[str]:
    """Return a text's sequences of three words, or what there is of a shorter one."""
    words = re.findall(r"\w+", text.lower())
    runs = zip(*(words[start:] for start in range(SHINGLE_WORDS)))
    return set(map(" ".join, runs)) or {" ".join(words)}


def jaccard(one: set[str], other: set[str]) -> float:
    """Return the share of the elements of either set that are in both."""
    return len(one & other) / len(one | other)


def _buckets(texts: Iterable[pa.Array], number: int) -> dict[int, list[tuple[int, int]]]:
    """Sketch each text; return the buckets, (band, value), of those that share one.

    The values of all bands are 256 bytes a text.
    """
    values = np.empty((number, BANDS), np.uint64)
    start = 0
    with tqdm(total=number, desc="Near-duplicates", unit=" papers", disable=None) as bar:
        for found in in_threads(_sketch, texts):
            values[start:start + len(found)] = found
            start += len(found)
            bar.update(len(found))
    shared: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for band in range(BANDS):
        value, place, count = np.unique(values[:, band], return_inverse=True, return_counts=True)
        for index in np.flatnonzero(count[place] > 1).tolist():
            shared[index].append((band, int(place[index])))
    return shared


def _sketch(texts: pa.Array) -> np.ndarray:
    """Return a number of each text for each band, uint64 (texts, BANDS)."""
    from rensa import RMinHash
    if len(texts) == 0:
        return np.empty((0, BANDS), np.uint64)
    sketches = RMinHash.digest_matrix_from_flat_token_hashes(
        *_hash_shingles(texts), num_perm=BANDS * ROWS, seed=SEED)
    return np.array(sketches.to_rows(), np.uint64).reshape(-1, BANDS, ROWS) @ MIX  # modulo 2^64


def _hash_shingles(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of each of the texts' `shingles`, and where those of each text begin and the
    last ones end, both uint64: in half the time of making them, and other threads can work.
    """
    words = pc.split_pattern_regex(pc.utf8_lower(texts), r"[^\pL\pN_]+")
    found = words.flatten().dictionary_encode()
    hashes = np.array([xxh3_64_intdigest(word) if word else 0
                       for word in found.dictionary.cast(pa.binary()).to_pylist()], np.uint64)
    hashes = hashes[found.indices.to_numpy()]
    text = np.repeat(np.arange(len(texts)), pc.list_value_length(words).to_numpy())
    text, hashes = text[hashes != 0], hashes[hashes != 0]  # before the first word there is ""
    size = np.bincount(text, minlength=len(texts))
    left = np.cumsum(size)[text] - np.arange(len(text))  # words from this one to the text's end
    runs = hashes * MIX[0]
    for place in range(1, SHINGLE_WORDS):
        runs[:-place] += hashes[place:] * MIX[place] * (left[:-place] > place)
    is_run = left >= np.minimum(size[text], SHINGLE_WORDS)
    count = np.bincount(text[is_run], minlength=len(texts))
    return runs[is_run], np.concatenate([[0], np.cumsum(count)]).astype(np.uint64)
