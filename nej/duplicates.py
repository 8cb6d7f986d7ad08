"""Near-duplicates: texts that say the same in nearly the same words."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from tqdm import tqdm

logger = logging.getLogger(__name__)

SHINGLE_WORDS = 3
BANDS, ROWS = 32, 4  # at a similarity of 0.8 one pair in 10^7 is overlooked, at 0.6 one in 90
SEED = 1


def near_duplicates(
    texts: Callable[[], Iterable[list[str]]], *, threshold: float, ranks: Sequence[int]
) -> dict[int, tuple[int, float]]:
    """Find the texts that nearly repeat an earlier one.

    Two texts are as similar as the sets of their three-word sequences (Jaccard's index). MinHash
    (Broder, 1997, On the resemblance and containment of documents) with locality-sensitive hashing
    finds the pairs to compare, and each pair is then compared exactly. A text is a near-duplicate
    of the most similar earlier text that is none itself.

    Args:
        texts: a function that goes through the texts, batch by batch; it is called twice.
        threshold: the least similarity, over 0 and at most 1.
        ranks: for each text a number of its own; the one with the lower number is the earlier one.

    Returns:
        For the index of each near-duplicate, the index of the earlier text and the similarity.
    """
    start = time.perf_counter()
    pairs = _candidates(texts(), len(ranks))
    wanted = {index for pair in pairs for index in pair}
    sets = {index: shingles(text)
            for index, text in enumerate(chain.from_iterable(texts())) if index in wanted}
    found: dict[int, tuple[int, float]] = {}
    ordered = (sorted(pair, key=ranks.__getitem__, reverse=True) for pair in pairs)
    for later, earlier in sorted(ordered, key=lambda pair: [ranks[index] for index in pair]):
        similarity = jaccard(sets[later], sets[earlier])
        if similarity >= threshold and earlier not in found and (
                later not in found or similarity > found[later][1]):
            found[later] = earlier, similarity
    logger.info("near-duplicates: %d, from %d pairs that were compared, in %.0f s", len(found),
                len(pairs), time.perf_counter() - start)
    return found


def shingles(text: str) -> set[str]:
    """Return a text's sequences of three words, or what there is of a shorter one."""
    words = re.findall(r"\w+", text.lower())
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return {" ".join(words[start:start + SHINGLE_WORDS]) for start in range(last)}


def jaccard(one: set[str], other: set[str]) -> float:
    """Return the share of the elements of either set that are in both."""
    return len(one & other) / len(one | other)


def _candidates(texts: Iterable[list[str]], number: int) -> set[tuple[int, int]]:
    """Return the pairs of texts whose sketches agree in one of the bands."""
    from rensa import RMinHash, RMinHashLSH
    index = RMinHashLSH(threshold=0.5, num_perm=BANDS * ROWS, num_bands=BANDS)
    pairs, count = set(), 0
    bar = tqdm(total=number, desc="Near-duplicates", unit=" papers", disable=None)
    for batch in texts:
        sketches = RMinHash.from_token_sets(
            [list(shingles(text)) for text in batch], num_perm=BANDS * ROWS, seed=SEED)
        for sketch in sketches:
            pairs.update((count, earlier) for earlier in index.query(sketch))
            index.insert(count, sketch)
            count += 1
        bar.update(len(batch))
    bar.close()
    return pairs
