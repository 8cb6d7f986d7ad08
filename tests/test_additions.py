"""New papers get in, the newest version wins, garbage is counted, and nothing is half written."""

import csv
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_papers import paper, write_papers

from nej import InputError
from nej.data.additions import add_papers
from nej.data.difference import compare
from nej.fields import parse_id
from nej.papers import read_papers

OLD = [paper("abs-2101.00001v2"), paper("cs-9308101v1"), paper("abs-2101.00003"),
       paper("abs-2101.00004v1", category="Vision", category_code="cs.CV")]


@pytest.fixture
def target(tmp_path):
    return write_papers(tmp_path / "arxiv.csv", OLD)


def feed(path: Path, *records) -> Path:
    """Write records as JSON Lines; a text is a line as it is."""
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n"
                            for record in records), "utf-8")
    return path


def record(id: str = "2505.00001", **fields):
    return {"id": id, "title": "New", "summary": "A summary\nof two lines.",
            "categories": ["cs.LG", "cs.AI"], "authors": ["A. Né", "B"]} | fields


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_feed_is_mapped_to_kaggles_columns(target, tmp_path):
    result = add_papers(target, [feed(tmp_path / "new.jsonl", record())])
    assert (result.rows, result.added) == (1, 1)
    assert rows(target)[:-1] == OLD
    assert rows(target)[-1] == {
        "id": "abs-2505.00001", "title": "New", "category": "Machine Learning",
        "category_code": "cs.LG", "published_date": "", "updated_date": "",
        "authors": "['A. Né', 'B']", "first_author": "A. Né",
        "summary": "A summary of two lines.", "summary_word_count": "5"}
    assert b"\r\n" in target.read_bytes()


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_the_three_forms_add_the_same(target, tmp_path, form):
    new = paper("abs-2505.00007v3", summary="One more.", summary_word_count="2")
    source = tmp_path / f"new.{form}"
    if form == "csv":
        write_papers(source, [new])
    elif form == "jsonl":
        feed(source, new)
    else:
        pq.write_table(pa.Table.from_pylist([new]), source)
    assert add_papers(target, [source]).added == 1
    assert rows(target) == [*OLD, new]


def test_arxivs_own_snapshot_is_understood(target, tmp_path):
    source = tmp_path / "snapshot.parquet"
    pq.write_table(pa.Table.from_pylist([{
        "id": "math.GT/0309136", "title": "T", "abstract": " Knots. ", "categories": "cs.CV cs.LG",
        "authors": "A. B", "update_date": "2003-09-08"}]), source)
    assert add_papers(target, [source]).added == 1
    found = rows(target)[-1]
    assert (found["id"], found["category"], found["summary"], found["updated_date"]) == (
        "math.GT-0309136", "Vision", "Knots.", "2003-09-08")


@pytest.mark.parametrize("id, outcome", [
    ("2101.00001v3", "updated"), ("2101.00001v2", "already_there"),
    ("2101.00001v1", "already_there"), ("2101.00001", "already_there"),
    ("2101.00003", "already_there"), ("2101.00003v2", "updated"), ("cs/9308101v2", "updated"),
    ("cs/9308101", "already_there"), ("2101.00002", "added"),
])
def test_the_newest_version_wins(target, tmp_path, id, outcome):
    result = add_papers(target, [feed(tmp_path / "new.jsonl", record(id))])
    assert {name: getattr(result, name) for name in ("added", "updated", "already_there")} == {
        "added": 0, "updated": 0, "already_there": 0} | {outcome: 1}
    assert len(rows(target)) == len(OLD) + (outcome == "added")
    changed = [row["id"] for row, before in zip(rows(target), OLD) if row != before]
    assert len(changed) == (outcome == "updated")
    if outcome == "updated":
        assert changed[0].endswith(id.split("/")[-1])
        assert "1/1/21" in [row["published_date"] for row in rows(target)]  # kept where it was


@pytest.mark.parametrize("old, expected", [
    ("2101.00009v1", "2101.00009v2"), ("2101.00009", "2101.00009v2"),
    ("math.GT/0309136v1", "math.GT/0309136v2"), ("abs-cs-9308101v1", "abs-cs-9308101v2"),
])
def test_a_paper_that_is_updated_keeps_the_spelling_of_its_id_and_so_its_split(
        tmp_path, old, expected):
    target = write_papers(tmp_path / "arxiv.csv", [paper(old), *OLD[2:]])
    before = read_papers(target)["id"].to_pylist()
    assert add_papers(target, [feed(tmp_path / "new.jsonl", record(expected))]).updated == 1
    assert rows(target)[0]["id"] == expected and rows(target)[0]["title"] == "New"
    assert read_papers(target)["id"].to_pylist() == before


def test_of_two_new_ones_the_newest_wins_in_whatever_order(target, tmp_path):
    for order in ((1, 2), (2, 1)):
        shutil.copy(write_papers(tmp_path / "again.csv", OLD), target)
        result = add_papers(target, [feed(tmp_path / "new.jsonl", *[
            record(f"2505.00001v{version}", title=f"Title {version}") for version in order])])
        assert (result.added, result.already_there) == (1, 1)
        assert rows(target)[-1]["title"] == "Title 2"


@pytest.mark.parametrize("version, expected", [
    (1, ["v1", "v2"]), (2, ["v1", "v2"]), (3, ["v1", "v3"])])
def test_of_several_versions_that_are_there_only_the_newest_is_replaced(
        tmp_path, version, expected):
    target = write_papers(tmp_path / "arxiv.csv", [paper("abs-2101.00001v1"), OLD[0], OLD[1]])
    result = add_papers(target, [feed(tmp_path / "new.jsonl", record(f"2101.00001v{version}"))])
    assert (result.updated, result.already_there) == (version == 3, version < 3)
    assert [row["id"][-2:] for row in rows(target)[:2]] == expected and len(rows(target)) == 3
    assert rows(target)[0]["title"] == "A title"


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_the_file_keeps_its_line_ends_and_without_a_new_paper_its_bytes(
        target, tmp_path, line_end):
    target.write_bytes(b"\xef\xbb\xbf" + target.read_bytes().replace(b"\r\n", line_end))
    before = target.read_bytes()
    assert add_papers(target, [feed(tmp_path / "old.jsonl", record("2101.00003"))]).added == 0
    assert target.read_bytes() == before
    assert add_papers(target, [feed(tmp_path / "new.jsonl", record())]).added == 1
    added = target.read_bytes().removeprefix(before.removeprefix(b"\xef\xbb\xbf"))
    assert added.count(b"\n") == added.count(line_end) == 1


def test_a_carriage_return_in_a_row_does_not_break_a_file_of_other_line_ends(tmp_path):
    target = write_papers(tmp_path / "arxiv.csv", [paper(title="Two\rlines")])
    target.write_bytes(target.read_bytes().replace(b"\r\n", b"\n"))
    assert add_papers(target, [feed(tmp_path / "new.jsonl", record())]).added == 1
    assert read_papers(target)["title"].to_pylist() == ["Two lines", "New"]


REJECTS = [
    ("{", "cannot be parsed"), ("[1]", "cannot be parsed"), ("\x00\x01garbage", "cannot be parsed"),
    (record(id=None), "no id"), (record(summary=" \n "), "no summary"),
    (record(categories=[]), "no category_code"), (record(title=None), "no title"),
    (record(categories=["hep-xx"]), "category 'hep-xx' is not in the data set"),
    (record("10.1000/182"), "not an arXiv id"), (record("2505.1"), "not an arXiv id"),
    (record(summary="x\0y"), "characters that are none"),
    (record(summary="broken \ufffd"), "characters that are none"),
    (record(summary="x" * (2 << 20)), "summary longer than 1,048,576"),
    (record(summary="é" * 700_000), "summary longer than 1,048,576 bytes"),
]


@pytest.mark.parametrize("garbage, reason", REJECTS, ids=[reason for _, reason in REJECTS])
def test_garbage_is_rejected_with_place_and_reason_and_the_rest_gets_in(
        target, tmp_path, garbage, reason):
    source = feed(tmp_path / "new.jsonl", record("2505.00001"), garbage, record("2505.00002"))
    result = add_papers(target, [source])
    assert (result.rows, result.added) == (3, 2)
    (place, found), = result.rejected
    assert place == f"{source}:2" and reason in found
    assert reason in result.text() and "1 rejected" in result.text()


def test_rows_of_a_csv_that_are_cut_off_or_not_utf8_are_rejected(target, tmp_path):
    source = write_papers(tmp_path / "new.csv", [
        paper("abs-2505.00001", summary="Schr\xf6dinger"), paper("abs-2505.00002")],
        encoding="latin-1")
    source.write_bytes(source.read_bytes() + b"abs-2505.00003,cut")
    result = add_papers(target, [source])
    assert result.added == 1
    assert [reason for _, reason in result.rejected] == [
        "summary has characters that are none (a wrong encoding?)", "cannot be parsed"]


def _missing(folder):
    return folder / "none.jsonl"


def _of_another_kind(folder):
    (folder / "new.xlsx").write_bytes(b"PK")
    return folder / "new.xlsx"


def _without_columns(folder):
    (folder / "new.csv").write_text("id,title\n1,2\n")
    return folder / "new.csv"


def _cut_off_parquet(folder):
    (folder / "new.parquet").write_bytes(b"PAR1 and no more")
    return folder / "new.parquet"


def _parquet_without_columns(folder):
    pq.write_table(pa.table({"id": ["1"]}), folder / "new.parquet")
    return folder / "new.parquet"


def _missing_quote(folder):
    write_papers(folder / "new.csv", [paper()])
    with open(folder / "new.csv", "a") as file:
        file.write('abs-1,"' + "x" * (17 << 20))
    return folder / "new.csv"


@pytest.mark.parametrize("make, message", [
    (_missing, "no file .*none.jsonl"), (_of_another_kind, "must end in .csv, .jsonl"),
    (_without_columns, "lacks category_code, summary"),
    (_cut_off_parquet, "not a whole Parquet"),
    (_parquet_without_columns, "lacks title, category_code, summary"),
    (_missing_quote, "is a quote missing"),
])
def test_a_file_that_cannot_be_read_changes_nothing(target, tmp_path, make, message):
    before = target.read_bytes()
    good = feed(tmp_path / "good.jsonl", record())
    with pytest.raises(InputError, match=message):
        add_papers(target, [good, make(tmp_path)])
    assert target.read_bytes() == before


def test_an_interruption_changes_nothing(target, tmp_path, monkeypatch):
    before, there = target.read_bytes(), sorted(tmp_path.iterdir())
    monkeypatch.setattr(csv.DictWriter, "writerow", _interrupt_at_the_third())
    with pytest.raises(KeyboardInterrupt):
        add_papers(target, [feed(tmp_path / "new.jsonl", record())])
    (tmp_path / "new.jsonl").unlink()
    assert target.read_bytes() == before and sorted(tmp_path.iterdir()) == there


def _interrupt_at_the_third():
    calls, write = [], csv.DictWriter.writerow

    def writerow(self, row):
        calls.append(row)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(self, row)
    return writerow


def test_no_paper_changes_its_split(target, tmp_path, papers_csv):
    old = shutil.copy(papers_csv, tmp_path / "old.csv")
    new = shutil.copy(papers_csv, tmp_path / "new.csv")
    known = rows(papers_csv)[0]["category_code"]
    add_papers(new, [feed(tmp_path / "new.jsonl", *[
        record(f"2505.{number:05}", categories=[known], summary=f"Paper {number}.")
        for number in range(300)])])
    difference = compare(read_papers(old), read_papers(new))
    assert len(difference.added) == 300
    assert not (difference.removed or difference.reworded or difference.relabelled)


@pytest.mark.parametrize("text, expected", [
    ("abs-0901.4761v1", ("0901.4761", 1)), ("2505.14843", ("2505.14843", 1)),
    ("cs-9308101v1", ("cs-9308101", 1)), ("math.GT/0309136v12", ("math.GT-0309136", 12)),
    ("cond-mat/9701001", ("cond-mat-9701001", 1)), (" 2505.14843v2 ", ("2505.14843", 2)),
    ("", None), ("2505.148", None), ("abs-", None), ("x", None), ("2505.14843v", None),
])
def test_ids(text, expected):
    assert parse_id(text) == expected


@pytest.mark.skipif("NEJ_REAL_DATA" not in os.environ,
                    reason="NEJ_REAL_DATA names no folder with new_papers.jsonl and the zip")
def test_real_feed(tmp_path):
    from nej.data.sources import fetch_csv
    folder = Path(os.environ["NEJ_REAL_DATA"])
    target = tmp_path / "arxiv.csv"
    fetch_csv(target, next(folder.glob("*.zip")))
    result = add_papers(target, [folder / "new_papers.jsonl"])
    assert (result.rows, result.added, result.already_there) == (3500, 3000, 500)
