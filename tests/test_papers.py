"""Reading the CSV: what is kept, and what bad files are told."""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time

import psutil
import pyarrow as pa
import pytest

from nej import InputError
from nej.fields import KAGGLE_COLUMNS, parse_date, split_versions
from nej.papers import clean, read_papers

HEADER = ",".join(KAGGLE_COLUMNS)
WORDS = ["plain", "two\nlines", 'with "quotes"', "a, comma", '"', "\n"]
GOOD = "abs-21{:02d}.00001v1,T,Learning,cs.LG,1/1/21,1/1/21,['A'],'A',Summary {},2"


def paper(id: str = "abs-2101.00001v1", **columns: str) -> dict[str, str]:
    return {
        "id": id, "title": "A title", "category": "Machine Learning", "category_code": "cs.LG",
        "published_date": "1/1/21", "updated_date": "1/1/21", "authors": "['A B']",
        "first_author": "'A B'", "summary": f"Summary of {id}.", "summary_word_count": "3",
        **columns}


def write_papers(path, papers, *, encoding="utf-8"):
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, KAGGLE_COLUMNS)
        writer.writeheader()
        writer.writerows(papers)
    return path


def write_lines(path, *lines: str | bytes):
    """Write a CSV from raw lines; the header comes first."""
    lines = [line if isinstance(line, bytes) else line.encode() for line in (HEADER, *lines)]
    path.write_bytes(b"\r\n".join(lines) + b"\r\n")
    return path


@pytest.fixture
def read(tmp_path):
    """Return a function that writes rows to a CSV and reads it: a list of dicts."""
    return lambda *papers: read_papers(write_papers(tmp_path / "own.csv", papers)).to_pylist()


# reading good files

def test_sample_is_read_whole(papers_csv):
    """The generator's rows, cleaned here in plain Python, are what is read."""
    newest = {}
    with open(papers_csv, encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            name, _, version = row["id"].rpartition("v")
            if name not in newest or int(version) > newest[name][0]:
                newest[name] = (int(version), number, " ".join(row["summary"].split()))
    expected, seen = [], set()
    for name, (_, _, summary) in sorted(newest.items(), key=lambda item: item[1][1]):
        if summary.lower() not in seen:
            expected.append((name, summary))
        seen.add(summary.lower())
    table = read_papers(papers_csv)
    assert list(zip(table["id"].to_pylist(), table["summary"].to_pylist())) == expected
    assert table.column_names == ["id", "title", "summary", "category_code", "category"]
    assert 500 < len(table) < 600


def test_white_space_is_collapsed(read):
    found, = read(paper(title="  A\ttitle ", summary=" One\r\ntwo\n\n three  four. ",
                        category="Machine  Learning", category_code=" cs.LG "))
    assert found == {"id": "abs-2101.00001", "title": "A title", "category": "Machine Learning",
                     "category_code": "cs.LG", "summary": "One two three four."}


def test_line_breaks_commas_and_quotes_inside_quotes(read):
    first, second = read(
        paper("abs-1v1", summary='A "quoted" word,\r\na comma,\nthe end.', authors="['A',\n 'B']"),
        paper("abs-2v1"))
    assert first["summary"] == 'A "quoted" word, a comma, the end.'
    assert second["summary"] == "Summary of abs-2v1."


def test_characters_of_other_languages_stay(read):
    text = "Für Erdős–Rényi: α ≤ β, 深度学习, 🙂 and na\u0131ve I."
    found, = read(paper(summary=text, title="Schrödinger"))
    assert (found["summary"], found["title"]) == (text, "Schrödinger")


def test_words_that_look_like_nothing_stay(read):
    found = read(paper("abs-1", title="NA", summary="null"),
                 paper("abs-2", title="", summary="NaN"))
    assert [(row["title"], row["summary"]) for row in found] == [("NA", "null"), ("", "NaN")]


def test_byte_order_mark_is_passed_over(tmp_path):
    path = write_papers(tmp_path / "own.csv", [paper()], encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbfid,")
    assert read_papers(path)["id"].to_pylist() == ["abs-2101.00001"]


def test_columns_in_another_order_and_more_of_them(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("summary,extra,category_code,id,title,category\n"
                    "S.,x,cs.LG,abs-1v1,T,Learning\n")
    assert read_papers(path).to_pylist() == [{
        "id": "abs-1", "title": "T", "category": "Learning", "category_code": "cs.LG",
        "summary": "S."}]


@pytest.mark.parametrize("seed", range(5))
def test_newest_version_wins_whatever_the_order(read, seed):
    rows = [paper(f"abs-{number}v{version}", title=str(version))
            for number in (1, 2, 3) for version in (1, 2, 9, 10)]
    random.Random(seed).shuffle(rows)
    found = read(*rows)
    assert {row["id"]: row["title"] for row in found} == {f"abs-{i}": "10" for i in (1, 2, 3)}
    newest = [row["id"][:-3] for row in rows if row["title"] == "10"]
    assert [row["id"] for row in found] == newest


def test_id_without_version_is_older_than_any_version(read):
    found = read(paper("abs-1v1", title="with"), paper("abs-1", title="without"),
                 paper("abs-2", title="alone"), paper("cs-9308101v2"), paper("survey1"))
    assert [(row["id"], row["title"]) for row in found] == [
        ("abs-1", "with"), ("abs-2", "alone"), ("cs-9308101", "A title"), ("survey1", "A title")]


def test_of_the_same_row_twice_one_is_kept(read):
    found = read(paper("abs-1v1", title="first"), paper("abs-1v1", title="second"))
    assert [row["title"] for row in found] == ["first"]


def test_repeated_summary_under_another_id_is_dropped(read):
    found = read(paper("abs-9v1", summary="The same  text."), paper("abs-5v1"),
                 paper("abs-1v1", summary="The same\ntext."),
                 paper("abs-3v1", summary="THE SAME TEXT."), paper("abs-2v1", summary="Same text."))
    assert [row["id"] for row in found] == ["abs-9", "abs-5", "abs-2"]


def test_only_the_newest_summary_counts_as_repeated(read):
    """An older version's text does not push out another paper."""
    found = read(paper("abs-1v1", summary="Draft."), paper("abs-1v2", summary="Final."),
                 paper("abs-2v1", summary="Draft."))
    assert [(row["id"], row["summary"]) for row in found] == [
        ("abs-1", "Final."), ("abs-2", "Draft.")]


@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_file_is_kept(read, seed):
    numbers = random.Random(seed).sample(range(10_000), 200)
    found = read(*(paper(f"abs-{number}v1") for number in numbers))
    assert [row["id"] for row in found] == [f"abs-{number}" for number in numbers]


# reading bad files

@pytest.mark.parametrize("bad", [
    "abs-2103.00001v1,T,Learning,cs.LG,Summary", "one field",
    "abs-2103.00001v1,T,Learning,cs.LG,1/1/21,1/1/21,['A'],'A',Summary, with a comma,2",
], ids=["too few", "one", "too many"])
@pytest.mark.parametrize("before", [1, 3])
def test_row_with_too_few_or_too_many_fields(tmp_path, bad, before):
    good = [GOOD.format(number, number) for number in range(1, 6)]
    path = write_lines(tmp_path / "own.csv", *good[:before], bad, *good[before:])
    with pytest.raises(InputError, match=rf"own.csv: .*[Rr]ow #?{before + 2}\b"):
        read_papers(path)


@pytest.mark.parametrize("column", ["id", "summary", "category", "category_code"])
@pytest.mark.parametrize("empty", ["", " \n "])
@pytest.mark.parametrize("before", [0, 4])
def test_empty_field_gives_its_row(tmp_path, column, empty, before):
    """The header is row 1; a line break inside quotes does not count."""
    rows = [paper(f"abs-{number}v1", summary=f"Two\nlines {number}.") for number in range(before)]
    rows += [paper("abs-8v1", **{column: empty})] if column != "id" else [paper(empty)]
    path = write_papers(tmp_path / "own.csv", [*rows, paper("abs-9v1")])
    with pytest.raises(InputError, match=rf"own.csv: row {before + 2} \(.*empty {column}"):
        read_papers(path)


def test_rows_are_counted_on_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("nej.rows.BLOCK_BYTES", 2000)
    rows = [paper(f"abs-{number}v1", summary=f"Two\nlines {number}.") for number in range(100)]
    assert len(read_papers(write_papers(tmp_path / "good.csv", rows))) == 100
    rows[83]["summary"] = ""
    with pytest.raises(InputError, match="row 85 .*'abs-83v1'.*empty summary"):
        read_papers(write_papers(tmp_path / "own.csv", rows))
    good = [GOOD.format(number, number) for number in range(100)]
    path = write_lines(tmp_path / "short.csv", *good[:83], "too,few", *good[83:])
    with pytest.raises(InputError, match=r"[Rr]ow #?85\b"):
        read_papers(path)


@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_file_read_in_parts_is_read_the_same(tmp_path, monkeypatch, seed, cut_off):
    rnd = random.Random(seed)
    rows = [paper(f"abs-{number}v{rnd.randint(1, 3)}", category_code=rnd.choice(["cs.LG", "q-bio"]),
                  summary=f"{rnd.choice(WORDS)} {number}" * rnd.choice([0, 1, 1, 2, 3, 5, 8, 9]))
            for number in map(rnd.randrange, [90] * 120)]
    path = write_papers(tmp_path / "own.csv", [*rows, paper("abs-99v1")])
    lines = path.read_bytes().split(b"\r\n")
    lines.insert(rnd.randrange(1, 60), b"too,few")
    lines.insert(rnd.randrange(60, 120), b"")
    path.write_bytes(b"\r\n".join(lines)[:-9 if cut_off else None])
    monkeypatch.setattr("nej.rows.BLOCK_BYTES", 1500)
    found = []
    for most_parts in (1, 3):
        monkeypatch.setattr("nej.rows._how_many_parts", lambda _: most_parts)
        papers = clean(path, tmp_path, max_bad_rows=60)
        assert len(papers.files) == most_parts
        found.append((papers.table(), papers.rejects, papers.rows, papers.published.tolist(),
                      papers.positions.tolist()))
    assert found[0] == found[1]
    assert "bad row" in found[0][1]["kind"].to_pylist()


def test_a_file_is_not_cut_inside_a_field(tmp_path, monkeypatch):
    """After 5" the ends of lines with an even number of quotes before them are those in fields."""
    monkeypatch.setattr("nej.rows.BLOCK_BYTES", 300)
    monkeypatch.setattr("nej.rows._how_many_parts", lambda _: 4)
    summaries = [f"lines {number}" + " more" * (number % 12) for number in range(30, 90)]
    rows = [GOOD.format(number, "").replace("Summary ", f'"two\r\n{summary}"')
            for number, summary in enumerate(summaries, 30)]
    stray = [GOOD.format(number, f'5" of {number}') for number in (10, 11)]
    path = write_lines(tmp_path / "own.csv", stray[0], *rows, stray[1])
    assert read_papers(path)["summary"].to_pylist() == [
        'Summary 5" of 10', *(f"two {summary}" for summary in summaries), 'Summary 5" of 11']
    assert len(clean(write_lines(tmp_path / "clean.csv", *rows), tmp_path).files) > 1


def test_a_quoted_header_after_a_byte_order_mark_lets_a_file_be_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("nej.rows.BLOCK_BYTES", 300)
    monkeypatch.setattr("nej.rows._how_many_parts", lambda _: 4)
    path = write_lines(tmp_path / "own.csv", *(GOOD.format(n, n) for n in range(10, 90)))
    header, rest = path.read_bytes().split(b"\n", 1)
    quoted = ",".join(f'"{name}"' for name in KAGGLE_COLUMNS)
    path.write_bytes(f"\ufeff{quoted}\r\n".encode() + rest)
    papers = clean(path, tmp_path)
    assert len(papers) == 80 and len(papers.files) == 4


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="one process reads elsewhere")
def test_a_reader_that_is_killed_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("nej.rows.BLOCK_BYTES", 300)
    monkeypatch.setattr("nej.rows._how_many_parts", lambda _: 2)
    monkeypatch.setattr("nej.rows._read_part", killed)
    path = write_lines(tmp_path / "own.csv", *(GOOD.format(n, n) for n in range(10, 90)))
    with pytest.raises(InputError, match="own.csv: a process that read it was killed"):
        read_papers(path)


@pytest.mark.skipif(sys.platform != "linux", reason="one process reads elsewhere")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_readers_end_with_the_process_that_started_them(tmp_path, number):
    path = write_lines(tmp_path / "own.csv", *(GOOD.format(n, n) for n in range(10, 90)))
    parent = subprocess.Popen([sys.executable, "-c", f"""
import time, nej.rows
from pathlib import Path
def wait(*_):
    time.sleep(60)
nej.rows.BLOCK_BYTES, nej.rows._how_many_parts, nej.rows._read_part = 300, lambda _: 2, wait
nej.rows.read_rows(Path({str(path)!r}), Path({str(tmp_path)!r}))"""])
    deadline = time.monotonic() + 60
    while len(readers := psutil.Process(parent.pid).children()) < 2 or not all(
            signal.SIGINT in _ignored(reader.pid) for reader in readers):  # they have begun
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(number)
    parent.wait(10)
    _, alive = psutil.wait_procs(readers, timeout=10)
    for reader in alive:
        reader.kill()
    assert alive == []


def _ignored(pid: int) -> set[int]:
    """Return the signals that a process ignores."""
    with open(f"/proc/{pid}/status") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn"))
    return {number for number in range(1, 65) if mask >> number - 1 & 1}


@pytest.mark.parametrize("words", [1, 5000], ids=["near the header", "far down"])
def test_not_utf8_gives_its_line(tmp_path, words):
    broken = GOOD.format(2, "f\xfcr").encode("latin-1")
    two_lines = GOOD.format(1, "x").replace("Summary x", f'"two\r\n{"lines " * words}"')
    path = write_lines(tmp_path / "own.csv", two_lines, broken, GOOD.format(3, "three"))
    with pytest.raises(InputError, match=r"own.csv: line 4 is not UTF-8 \(byte 0xfc"):
        read_papers(path)


def test_header_that_is_not_utf8(tmp_path):
    (tmp_path / "own.csv").write_bytes(f"{HEADER},f\xfcr\r\n".encode("latin-1"))
    with pytest.raises(InputError, match="own.csv: row 1 is not UTF-8"):
        read_papers(tmp_path / "own.csv")


def test_only_a_header(tmp_path):
    with pytest.raises(InputError, match="own.csv: no papers, only a header"):
        read_papers(write_lines(tmp_path / "own.csv"))


def test_empty_file(tmp_path):
    (tmp_path / "own.csv").touch()
    with pytest.raises(InputError, match="own.csv: .*lacks id, .*found: nothing; needed: id"):
        read_papers(tmp_path / "own.csv")


@pytest.mark.parametrize("column", ["id", "title", "category", "category_code", "summary"])
def test_missing_column_is_named(tmp_path, column):
    path = write_papers(tmp_path / "own.csv", [paper()])
    path.write_bytes(path.read_bytes().replace(f"{column},".encode(), b"other,", 1))
    with pytest.raises(InputError, match=f"own.csv: .* lacks {column}; found: .*other"):
        read_papers(path)


@pytest.mark.parametrize("name", ["not there.csv", "."])
def test_missing_file_says_how_to_get_it(tmp_path, name):
    with pytest.raises(InputError, match="no file .*make data.*make sample"):
        read_papers(tmp_path / name)


@pytest.mark.parametrize("bad, reason", [
    (GOOD.format(2, "a\0b"), "has a NUL character in summary"),
    (GOOD.format(2, "x" * (2 << 20)), "has a summary of over 1 MiB; is a quote missing"),
    (HEADER, "is a second header"),
    ("abs-2102.00001v1,cut o", "has 2 fields and not 10"),
], ids=["NUL", "2 MiB", "second header", "cut off"])
def test_bad_rows_stop_with_their_number_or_are_left_out_and_counted(tmp_path, bad, reason):
    lines = [GOOD.format(number, number) for number in range(1, 10)]
    path = write_lines(tmp_path / "own.csv", *lines[:4], bad, *lines[4:])
    with pytest.raises(InputError, match=rf"own.csv: row 6 \(id '.*'\) {reason}.*max_bad_rows 1"):
        read_papers(path)
    papers = clean(path, tmp_path, max_bad_rows=1)
    reject, = papers.rejects.to_pylist()
    assert (papers.rows, len(papers), reject["row"], reject["kind"]) == (10, 9, 6, "bad row")


def test_cut_off_last_line(tmp_path):
    lines = [GOOD.format(number, number) for number in range(1, 5)]
    path = write_lines(tmp_path / "own.csv", *lines)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"row 5 \(id 'abs-2104.00001v1'\) has 6 fields"):
        read_papers(path)


@pytest.mark.parametrize("line", [0, 2, 4], ids=["first", "middle", "last"])
@pytest.mark.parametrize("quote", ["open", "close"])
def test_missing_quote(tmp_path, line, quote):
    """Rows would run into each other, so that no row of the file can be trusted."""
    lines = [GOOD.format(number, f'"{number}, quoted\r\nand more"') for number in range(1, 6)]
    lines = [text.replace("Summary ", "") for text in lines]
    lines[line] = lines[line].replace(*('"', "", 1) if quote == "open" else ('e"', "e"))
    path = write_lines(tmp_path / "own.csv", *lines)
    with pytest.raises(InputError, match="own.csv: has an odd number of quotes"):
        clean(path, tmp_path, max_bad_rows=100)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_named(tmp_path, separator):
    path = write_papers(tmp_path / "own.csv", [paper()])
    path.write_text(path.read_text().replace(",", separator))
    with pytest.raises(InputError, match="own.csv: its columns are separated by .*; save it with "
                                         "commas"):
        read_papers(path)


def test_only_bad_rows(tmp_path):
    path = write_lines(tmp_path / "own.csv", "a", "b")
    with pytest.raises(InputError, match="own.csv: no papers are left of its 2 rows"):
        clean(path, tmp_path, max_bad_rows=2)


@pytest.mark.parametrize("notice, withdrawn", [
    ("This paper has been withdrawn by the author due to an error.", True),
    ("Withdrawn. See 1234.5678.", True), ("The submission is retracted.", True),
    ("Because of changes to the model proposed, it has been withdrawn from the archive.", True),
    ("We note that every such complex can be retracted onto its core.", False),
    ("In this paper we classify groups retracted onto free subgroups.", False),
    ("We report that heat is withdrawn from the reservoir at constant rate.", False),
    ("In this work we study liquidity withdrawn by banks during crises.", False),
    ("This article (and its sequel) has been temporarily withdrawn.", True),
    ("We study how participants withdrawn from trials differ.", False),
    ("This paper studies withdrawals." + " More words." * 80, False),
    ("This paper has been withdrawn." + " More words." * 80, False),
])
def test_notices_of_withdrawal_are_left_out(tmp_path, notice, withdrawn):
    path = write_papers(tmp_path / "own.csv", [paper("abs-1v1"), paper("abs-2v1", summary=notice)])
    assert len(read_papers(path)) == (1 if withdrawn else 2)


@pytest.mark.parametrize("spaces", ["\u00a0", "\u2003", "\u3000", "\u2028", "\x0b", "\x85", "  "])
def test_white_space_of_every_kind_is_found(read, spaces):
    texts = [f"One{spaces}two.", f"{spaces}One two.", f"One two.{spaces}", "One two"]
    found = read(*(paper(f"abs-{number}v1", title=text) for number, text in enumerate(texts)))
    assert [row["title"] for row in found] == ["One two.", "One two.", "One two.", "One two"]


@pytest.mark.parametrize("change, sentence", [
    (lambda text: text.decode().encode("utf-16-le"), r"not UTF-8 \(it has NUL bytes, as UTF-16"),
    (lambda text: text.replace(b"authors", b'"au\nthors"'), "or has a line break in a name"),
    (lambda text: text.replace(b"authors", b"authors," + b"x," * 40_000), "over 65,536 bytes long"),
    (lambda text: text.replace(b"authors", b"summary"), "has 'summary' 2 times; rename or delete"),
])
def test_a_header_that_is_none_is_explained(tmp_path, change, sentence):
    path = write_papers(tmp_path / "own.csv", [paper()])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=f"own.csv: .*{sentence}"):
        read_papers(path)


def test_lines_that_end_with_cr_alone(tmp_path):
    path = write_papers(tmp_path / "own.csv", [paper()])
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\r"))
    with pytest.raises(InputError, match="own.csv: its lines end with CR alone"):
        read_papers(path)


def test_bytes_that_are_not_utf8_in_a_column_that_is_not_read(tmp_path):
    path = write_papers(tmp_path / "own.csv", [paper(authors="['G\u00fcnther']")])
    path.write_bytes(path.read_bytes().replace("\u00fc".encode(), b"\xfc"))
    with pytest.raises(InputError, match="own.csv: line 2 is not UTF-8"):
        read_papers(path)


def test_utf8_characters_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("nej.rows.BLOCK_BYTES", 1001)
    rows = [paper(f"abs-{number}v1", summary=f"{number} Erd\u0151s, \u6df1\u5ea6 \U0001f642")
            for number in range(60)]
    path = write_papers(tmp_path / "own.csv", rows)
    assert read_papers(path)["summary"].to_pylist() == [row["summary"] for row in rows]
    path.write_bytes(path.read_bytes().rstrip() + b',"\xf0\x9f"')
    with pytest.raises(InputError, match="not UTF-8|cut off"):
        read_papers(path)


@pytest.mark.parametrize("text, found", [
    ("3/7/21", "2021-03-07"), ("12/31/93", "1993-12-31"), ("1/1/90", "2090-01-01"),
    ("3/7/2021", "2021-03-07"), ("2021-03-07", "2021-03-07"),
    ("2021-03-07T01:02:03Z", "2021-03-07"), ("", "None"), ("7.3.21", "None"),
    ("13/1/21", "None"), ("1/1/99999999999", "None"),
    ("2/30/21", "None"), ("a/b/c", "None"), ("1/2", "None")])
def test_dates(text, found):
    assert str(parse_date(text)) == found


def test_versions_are_split_off_as_a_regular_expression_would():
    rnd = random.Random(0)
    ids = ["v1", "vv1", "v", "", "1", "abs-1v", "abs-1v12345", "abs-1v0012", "survey1", "xv1v2",
           "naïv3", "v12345v9"]
    ids += ["".join(rnd.choices("vv0129-ab", k=rnd.randint(1, 9))) for _ in range(2000)]
    expected = [re.fullmatch(r"(.+?)(?:v([0-9]{1,4}))?", i or "-").groups() for i in ids]
    array = pa.array(["left out", *ids])[1:]  # with an offset
    found, version = split_versions(array)
    assert [i or "-" for i in found.to_pylist()] == [i for i, _ in expected]
    assert version.tolist() == [int(v or 0) for _, v in expected]
    nothing, none = split_versions(pa.array([], pa.string()))
    assert len(nothing) == len(none) == 0
