"""Check the form, the faults and the hardness of the synthetic sample."""

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.svm import LinearSVC

from scripts.make_sample import generate, write_csv

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "make_sample.py"
HEADER = (b"id,title,category,category_code,published_date,updated_date,authors,first_author,"
          b"summary,summary_word_count\r\n")
PAPERS = 4000


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(generate(PAPERS, 1))


@pytest.fixture(scope="module")
def distinct(rows: list[dict]) -> list[dict]:
    """Keep the last version of each paper and one paper of each text."""
    by_id = {_number(row): row for row in rows}
    return list({row["summary"]: row for row in by_id.values()}.values())


def _number(row: dict) -> str:
    return row["id"].rpartition("v")[0]


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True,
                          encoding="utf-8", env={**os.environ, **environment}, timeout=60)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """Run one of the two in another process, with another hash seed."""
    write_csv(tmp_path / "a.csv", 300, 7)
    done = _run("--papers", "300", "--seed", "7", "--version", "1",
                "--output", str(tmp_path / "b.csv"), PYTHONHASHSEED="5")
    assert done.returncode == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv"]


def test_other_seed_other_rows() -> None:
    assert list(generate(50, 1)) != list(generate(50, 2))


def test_rows_do_not_depend_on_their_number(rows: list[dict]) -> None:
    assert list(islice(generate(3_000_000, 1), 500)) == rows[:500]
    assert len(list(generate(1, 1))) == 1


def test_file_form(tmp_path: Path, rows: list[dict]) -> None:
    path = tmp_path / "sample.csv"
    write_csv(path, PAPERS, 1)
    data = path.read_bytes()
    assert data.startswith(HEADER) and data.endswith(b"\r\n")
    assert data.count(b"\r\n") == PAPERS + 1 and data.count(b"\r") == PAPERS + 1
    assert len(data) < 3_500_000
    with open(path, encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{key: str(value) for key, value in row.items()} for row in rows]


def test_fields(rows: list[dict]) -> None:
    for row in rows:
        assert all(str(value).strip() for value in row.values())
        assert re.fullmatch(r"abs-\d{4}\.\d{5}v\d|cs-\d{7}v\d", row["id"])
        assert re.fullmatch(r"\d{1,2}/\d{1,2}/\d\d", row["published_date"])
        assert re.fullmatch(r"\d{1,2}/\d{1,2}/\d\d", row["updated_date"])
        assert row["authors"].startswith(f"[{row['first_author']}")
        assert row["summary_word_count"] == len(row["summary"].split())
        assert 5 <= len(row["title"].split()) <= 12
        assert not re.search(r"[{}]", re.sub(r"\$[^$]*\$|\\emph\{[^}]*\}", "", row["summary"]))
    assert 90 < np.mean([row["summary_word_count"] for row in rows]) < 100


def test_categories(rows: list[dict]) -> None:
    names = {(row["category_code"], row["category"]) for row in rows}
    shares = sorted(count / PAPERS for count in
                    Counter(row["category_code"] for row in rows).values())
    assert len(names) == len(shares) == 8
    assert 0.04 < shares[0] < 0.07 and 0.18 < shares[-1] < 0.25


def test_duplicates(rows: list[dict]) -> None:
    full = Counter(tuple(row.values()) for row in rows)
    assert 8 <= sum(count - 1 for count in full.values()) <= 40
    versions = Counter(number for number, _ in {(_number(row), row["id"]) for row in rows})
    assert 20 <= sum(count == 2 for count in versions.values()) <= 70
    texts = Counter(text for text, _ in {(row["summary"], _number(row)) for row in rows})
    assert 3 <= sum(count == 2 for count in texts.values()) <= 30
    by_id = {row["id"]: row for row in rows}
    assert all(by_id[row["id"]] == row for row in rows)


@pytest.mark.parametrize("pattern, column, low, high", [
    (r"\n", "summary", 0.03, 0.07),
    (r"  ", "summary", 0.01, 0.05),
    (r'"', "summary", 0.02, 0.4),
    (r"\$.*\$", "summary", 0.05, 0.6),
    (r"\\emph", "summary", 0.02, 0.4),
    (r"[^\x00-\x7f]", "summary", 0.005, 0.3),
    (r"[^\x00-\x7f]", "authors", 0.2, 0.9),
    (r'"', "authors", 0.01, 0.3),
    (r"^cs-", "id", 0.001, 0.01),
])
def test_dirt(rows: list[dict], pattern: str, column: str, low: float, high: float) -> None:
    share = np.mean([bool(re.search(pattern, row[column])) for row in rows])
    assert low < share < high


def test_articles(rows: list[dict]) -> None:
    """Look for a wrong article; the sound of "uni" and "one" begins with a consonant."""
    wrong = re.compile(r"\b[Aa] (?!uni|use|one)[aeiou]|\b[Aa]n (?![aeiou])")
    assert not [row["summary"] for row in rows if wrong.search(row["summary"])]


def test_hardness(distinct: list[dict]) -> None:
    """Keep words alone from solving the task, and from failing at it."""
    order = np.random.default_rng(0).permutation(len(distinct))
    texts = np.array([row["summary"] for row in distinct])[order]
    codes = np.array([row["category_code"] for row in distinct])[order]
    tenth = len(codes) // 10
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    model = LinearSVC(C=0.3).fit(vectorizer.fit_transform(texts[2 * tenth:]), codes[2 * tenth:])
    found = model.predict(vectorizer.transform(texts[:2 * tenth]))
    accuracy = np.mean(found == codes[:2 * tenth])
    assert 0.75 <= accuracy <= 0.92
    assert f1_score(codes[:2 * tenth], found, average="macro") > accuracy - 0.08


@pytest.mark.parametrize("option, value", [
    ("--papers", "0"), ("--papers", "-3"), ("--papers", "many"), ("--papers", "5000001"),
    ("--seed", "-1"), ("--version", "2"), ("--output", "missing/sample.csv"), ("--output", "."),
])
def test_wrong_input(tmp_path: Path, option: str, value: str) -> None:
    options = {"--papers": "5", "--seed": "1", "--output": "sample.csv", option: value}
    output = options["--output"] = str(tmp_path / options["--output"])
    done = _run(*(part for pair in options.items() for part in pair))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and option in done.stderr
    assert repr(output if option == "--output" else value) in done.stderr
    assert not list(tmp_path.iterdir())
