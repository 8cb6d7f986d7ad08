"""Near-duplicates: texts that say the same in nearly the same words."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

logger = logging.getLogger(__name__)

SHINGLE_WORDS = 3
# of a sketch; a pair is overlooked with (1 - similarity^ROWS)^BANDS: at 0.8 one in 10^7, at 0.7 one
# in 6,000, at 0.6 one in 90
BANDS, ROWS = 32, 4
SEED = 1
# from 256 texts on rensa has a pool of threads, which a forked process does not inherit: it would
# wait for ever
TEXTS_AT_ONCE = 128
MIX = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93],
               np.uint64)  # odd numbers, to make one number of a band's four, or of three words'


def near_duplicates(
    texts: Iterable[pa.Array], bands: Iterable[np.ndarray], *, threshold: float,
    ranks: Sequence[int],
) -> dict[int, tuple[int, float]]:
    """Find the texts that nearly repeat an earlier one.

    Two texts are as similar as the sets of their three-word sequences (Jaccard's index). MinHash
    (Broder, 1997, On the resemblance and containment of documents) with locality-sensitive hashing
    finds the pairs to compare, and each pair is then compared exactly. A text is a near-duplicate
    of the most similar earlier text that is none itself. (Where a hash makes the choice, a pair may
    be overlooked: see BANDS.)

    Args:
        texts: batches of them.
        bands: their `sketch`, a row at a time.
        threshold: the least similarity, over 0 and at most 1.
        ranks: for each text a number of its own; the one with the lower number is the earlier one.

    Returns:
        For the index of each near-duplicate, the index of the earlier text and the similarity.
    """
    buckets = _buckets(bands)
    sets = {index: shingles(text.as_py())
            for index, text in enumerate(chain.from_iterable(texts)) if index in buckets}
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
    logger.info("near-duplicates: %d, from %d pairs that were compared", len(found), compared)
    return found


def shingles(text: str) -> set[str]:
    """Return a text's sequences of three words, or what there is of a shorter one.

    One without any word is only like itself.
    """
    words = re.findall(r"\w+", text.lower())
    runs = zip(*(words[start:] for start in range(SHINGLE_WORDS)))
    return set(map(" ".join, runs)) or {" ".join(words) or text}


def jaccard(one: set[str], other: set[str]) -> float:
    """Return the share of the elements of either set that are in both."""
    return len(one & other) / len(one | other)


def sketch(texts: pa.Array) -> np.ndarray:
    """Return for each band a number of each text, uint64 (BANDS, texts): the more similar two texts
    are, the likelier one of their numbers is the same.
    """
    from rensa import RMinHash
    hashes, ends = _hash_shingles(texts)
    found = [np.empty((0, BANDS), np.uint64)]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = ends[start:start + TEXTS_AT_ONCE + 1]
        sketches = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes[some[0]:some[-1]], some - some[0], num_perm=BANDS * ROWS, seed=SEED)
        numbers = np.array(sketches.to_rows(), np.uint64).reshape(-1, BANDS, ROWS)
        found.append(numbers @ MIX)  # modulo 2^64
    return np.concatenate(found).T


def _buckets(bands: Iterable[np.ndarray]) -> dict[int, list[tuple[int, int]]]:
    """Return the buckets, (band, number), of each text that shares one with another."""
    shared: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for band, numbers in enumerate(bands):
        ordered = np.sort(numbers)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        index = np.flatnonzero(np.isin(numbers, repeated))
        for text, number in zip(index.tolist(), numbers[index].tolist()):
            shared[text].append((band, number))
    return shared


def _hash_shingles(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of each of the texts' `shingles`, and where those of each text begin and the
    last ones end, both uint64: in half the time of making them.

    A sequence's hash is the sum of its words' hashes, times a number of MIX for each place, modulo
    2^64.
    """
    words = pc.split_pattern_regex(pc.utf8_lower(texts), r"[^\pL\pN_]+")
    found = words.flatten().dictionary_encode()
    hashes = np.array([xxh3_64_intdigest(word) if word else 0
                       for word in found.dictionary.cast(pa.binary()).to_pylist()], np.uint64)
    hashes = hashes[found.indices.to_numpy()]
    text = np.repeat(np.arange(len(texts)), pc.list_value_length(words).to_numpy())
    text, hashes = text[hashes != 0], hashes[hashes != 0]  # before the first word there is ""
    size = np.bincount(text, minlength=len(texts))
    # words from this one to the text's end, so that no sequence reaches into the next text
    left = np.cumsum(size)[text] - np.arange(len(text))
    runs = hashes * MIX[0]
    for place in range(1, SHINGLE_WORDS):
        runs[:-place] += hashes[place:] * MIX[place] * (left[:-place] > place)
    is_run = left >= np.minimum(size[text], SHINGLE_WORDS)
    count = np.bincount(text[is_run], minlength=len(texts))
    return runs[is_run], np.concatenate([[0], np.cumsum(count)]).astype(np.uint64)
