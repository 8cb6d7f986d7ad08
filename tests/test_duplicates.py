"""Near-duplicates: found as a comparison of all pairs finds them, and never in two splits."""

import multiprocessing
import random
import sys
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from nej.dataset import clean_papers, split_papers
from nej.duplicates import BANDS, _hash_shingles, jaccard, near_duplicates, shingles, sketch
from nej.papers import clean
from tests.test_papers import paper, write_papers

WORDS = [f"word{number}" for number in range(300)]


def texts_with_copies(seed: int, number: int = 150) -> list[str]:
    """Return random texts, a third of them copies of earlier ones with a few words changed."""
    rnd = random.Random(seed)
    texts = []
    for _ in range(number):
        if texts and rnd.random() < 0.33:
            words = rnd.choice(texts).split()
            for _ in range(rnd.choice([0, 1, 1, 2, 5, 12])):
                words[rnd.randrange(len(words))] = rnd.choice(WORDS)
        else:
            words = rnd.choices(WORDS, k=rnd.randint(5, 120))
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.6, 0.8, 1.0])
def test_all_pairs_compared_give_the_same(seed, threshold):
    texts = texts_with_copies(seed)
    sets = [shingles(text) for text in texts]
    expected = {}
    for later in range(len(texts)):
        close = [(jaccard(sets[later], sets[earlier]), -earlier)
                 for earlier in range(later) if earlier not in expected]
        best = max(close, default=(0, 0))
        if best[0] >= threshold:
            expected[later] = (-best[1], best[0])
    batches = [pa.array(part, pa.string())
               for part in (texts[:40], [], texts[40:41], texts[41:])]
    bands = np.concatenate([sketch(batch) for batch in batches], axis=1)
    assert near_duplicates(
        batches, bands, threshold=threshold, ranks=range(len(texts))) == expected
    assert expected


def test_shingles_of_short_texts_and_of_punctuation():
    assert shingles("One, two; three-four.") == {"one two three", "two three four"}
    assert shingles("Two words") == {"two words"}
    assert shingles("∀ ∃") == {"∀ ∃"} and shingles("") == {""}
    assert jaccard(shingles("???"), shingles("! ! !")) == 0
    assert jaccard(shingles("a b c d"), shingles("a b c e")) == pytest.approx(1 / 3)


def test_texts_share_the_hash_of_a_shingle_where_they_share_the_shingle():
    texts = ["One, two; three-four.", "(one two) THREE", "Two words", "two -- words!", "∀ ∃", "",
             "École d'été à Paris", "l'ÉCOLE d'été à Paris", "x_1 ≤ x² < 2·10³ for 3 ≠ ½", "a"]
    hashes, ends = _hash_shingles(pa.array(texts))
    wordless = {"∀ ∃", ""}
    number = {}  # of each hash, its shingle
    for index, text in enumerate(texts):
        found = set(hashes[ends[index]:ends[index + 1]].tolist())
        assert len(found) == len(shingles(text) - wordless)
        number |= dict.fromkeys(found)
    assert len(number) == len(set().union(*map(shingles, texts)) - wordless)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")
def test_a_forked_process_makes_the_same_sketches_as_its_parent_did_before():
    """It would wait for ever if they were made by threads, which it lacks."""
    texts = pa.array([f"{number} words are some {number} words" for number in range(2000)])
    here = sketch(texts)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.apply_async(sketch, (texts,)).get(timeout=60)
    assert np.array_equal(here, there) and here.shape == (BANDS, 2000)


@pytest.fixture
def copies_csv(tmp_path):
    """Return a CSV with near-duplicates, and papers in several versions that were reworded."""
    rnd = random.Random(5)
    rows = []
    for number, text in enumerate(texts_with_copies(5, 400)):
        code = f"cs.{'AB'[number % 2]}{'AB'[number % 2]}"
        rows.append(paper(f"abs-2101.{number:05}v1", summary=text, category_code=code))
        if rnd.random() < 0.2:
            rows.append(rows[-1] | {"id": f"abs-2101.{number:05}v2",
                                    "summary": f"{text} {rnd.choice(WORDS)}"})
    rnd.shuffle(rows)
    return write_papers(tmp_path / "copies.csv", rows)


def test_nothing_straddles_the_splits(copies_csv, make_config):
    config = make_config(data_path=str(copies_csv))
    with clean_papers(config) as papers:
        dataset = split_papers(papers, config)
        kinds = papers.rejects["kind"].to_pylist()
        split = {name: list(zip(part["id"], part["summary"])) for name, part in dataset.items()}
        assert len(papers) + len(kinds) == papers.rows
    assert kinds.count("near-duplicate") > 20 and kinds.count("older version") > 20
    for one, other in combinations(split.values(), 2):
        assert not {i for i, _ in one} & {i for i, _ in other}
        for _, text in one:
            assert max(jaccard(shingles(text), shingles(more)) for _, more in other) < 0.8


def test_new_papers_push_out_none_that_were_there(copies_csv, tmp_path):
    """Each start of the file keeps what the whole file keeps of it, reworded papers aside."""
    lines = copies_csv.read_text().splitlines(keepends=True)
    whole = clean(copies_csv, tmp_path).table()["id"].to_pylist()
    reworded = {line.split("v2,")[0] for line in lines if "v2," in line}
    for number in (2, 50, 200, 350):
        start = tmp_path / "start.csv"
        start.write_text("".join(lines[:number]))
        kept = {*clean(start, tmp_path).table()["id"].to_pylist()} - reworded
        there = {line.split("v")[0] for line in lines[1:number]}
        assert kept == {paper for paper in whole if paper in there} - reworded


def test_threshold_of_null_leaves_them_in(copies_csv, make_config):
    with clean_papers(make_config(data_path=str(copies_csv))) as found:
        without = len(found)
    config = make_config(data_path=str(copies_csv), near_duplicate_threshold=None)
    with clean_papers(config) as found:
        assert "near-duplicate" not in found.rejects["kind"].to_pylist()
        assert len(found) > without
