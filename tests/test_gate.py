"""The gate: what it tells of a file, and that every row is accounted for."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from nej import InputError
from nej.data.gate import check_papers, write_report
from nej.dataset import clean_papers, split_papers
from nej.model import load_tokenizer
from tests.forked import run_script
from tests.test_papers import paper, write_papers
from tests.test_scripts import ROOT, assert_mistake

TEXT = "We study {} in the {} setting and show that {} holds for all {} of them, whatever {} is."


def many(count: int = 60) -> list[dict[str, str]]:
    """Return papers of two classes with summaries that have little in common."""
    return [paper(f"abs-2101.{number:05}v1", title=f"On {number}",
                  published_date=f"3/7/{10 + number % 5}",
                  category_code=("cs.LG", "cs.CV")[number % 2],
                  category=("Machine Learning", "Vision")[number % 2],
                  summary=TEXT.format(*(f"thing{number}x{part}" for part in range(5))))
            for number in range(count)]


@pytest.fixture
def report(make_config, tiny_model, tmp_path):
    """Return a function that checks rows and returns the report, after writing it."""
    def check(*rows: dict[str, str], **keys):
        path = write_papers(tmp_path / "own.csv", [*many(), *rows])
        config = make_config(data_path=str(path), **keys)
        with clean_papers(config) as papers:
            found = check_papers(papers, config, load_tokenizer(tiny_model))
            write_report(found, papers, tmp_path / "reports", max_length=config.max_length)
        return found
    return check


def warnings_with(report, word: str) -> list[str]:
    return [warning for warning in report.warnings if word in warning]


def test_every_row_is_kept_or_rejected_with_number_and_reason(report, tmp_path):
    first = many()[0]
    found = report(
        first | {"id": "abs-2101.00000v3"}, first, first | {"id": "abs-2101.00099v1"},
        many()[1] | {"id": "abs-2101.00098v1", "summary": many()[1]["summary"] + " Really."},
        paper("abs-2101.00097v1", summary="This paper has been withdrawn by the authors."))
    assert (found.rows, found.papers) == (65, 60)
    with open(tmp_path / "reports" / "rejects.csv", newline="") as file:
        rejects = {int(row["row"]): row for row in csv.DictReader(file)}
    assert {number: row["kind"] for number, row in rejects.items()} == {
        2: "older version", 63: "older version", 64: "repeated summary", 65: "near-duplicate",
        66: "withdrawn"}
    assert rejects[2]["reason"] == "has the newer version in row 62"
    assert rejects[64]["reason"] == "has the summary of row 62"
    assert rejects[65]["of"] == "abs-2101.00001" and "that of row 3" in rejects[65]["reason"]
    assert sum(found.rejected.values()) == 5


def test_the_page_has_what_a_newcomer_wants_to_see(report, tmp_path):
    found = report()
    page = (tmp_path / "reports" / "data.md").read_text()
    assert "| in the file | 60 |\n| **papers** | **60** |" in page and "lines end with CRLF" in page
    for picture in ("data_categories.png", "data_lengths.png", "data_years.png"):
        assert f"(figures/{picture})" in page
        assert (tmp_path / "reports" / "figures" / picture).stat().st_size > 5000
    assert sum(sum(classes.values()) for classes in found.splits.values()) == 60
    assert {year: sum(classes.values()) for year, classes in found.years.items()} == dict.fromkeys(
        range(2010, 2015), 12)
    assert 0 <= found.truncated[32] <= 1 and "| 32 |" in page
    assert "60 rows = 60 papers + 0 left out" in found.text()


def test_a_category_with_a_bar_in_its_name_does_not_break_the_tables(report, tmp_path):
    bars = [row | {"id": row["id"].replace("2101", "2102"), "category_code": "cs.A|B",
                   "summary": row["summary"].replace("thing", "other")} for row in many()]
    report(*bars, categories=["cs.LG", "cs.A|B"])
    row, = [line for line in (tmp_path / "reports" / "data.md").read_text().splitlines()
            if "cs.A" in line and line.startswith("|")]
    assert row.startswith("| cs.A\\|B | ")


@pytest.mark.parametrize("row, word", [
    (paper("survey1"), "ids that are not arXiv's: 1, survey1"),
    (paper("abs-2102.00001v1", title=""), "papers without a title: 1"),
    (paper("abs-2102.00001v1", summary="Too short."), "summaries of fewer than 20 words: 1"),
    (paper("abs-2102.00001v1", published_date="yesterday"), "2021-03-07: 1 (1.6%)"),
    (paper("abs-2102.00001v1", category_code="alchemy.AU"), "of no archive of arXiv: 1, alchemy"),
    (paper("abs-2102.00001v1", category="Learning"),
     "codes with several names: 1, cs.LG (Learning, Machine Learning)"),
    (paper("abs-2102.00001v1", category_code="stat.ML"),
     "names of several codes: 1, Machine Learning (cs.LG, stat.ML)"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_warnings(report, row, word):
    assert not warnings_with(report(categories=["cs.LG", "cs.CV"]), word)
    assert warnings_with(report(row, categories=["cs.LG", "cs.CV"]), word)


def test_small_categories_are_told(report):
    assert warnings_with(report(), "categories of fewer than 100 papers: 2, cs.CV, cs.LG")


@pytest.mark.parametrize("date", ["3/7/12", "03/07/2012", "2012-03-07", "2012-03-07T10:00:00Z"])
def test_dates_in_the_forms_that_are_known(report, date):
    rows = [row | {"published_date": date, "id": f"abs-2109.{number:05}v1",
                   "summary": f"{number} {number} {row['summary'].replace('thing', 'other')}"}
            for number, row in enumerate(many(2))]
    assert sum(report(*rows).years[2012].values()) == 14


def test_the_command_writes_the_report_and_what_is_in_the_data_set(make_config, tmp_path):
    config = make_config(data_path=str(write_papers(tmp_path / "own.csv", many())))
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    done = run_script("prepare.py", "--config", tmp_path / "config.json")
    assert done.returncode == 0, done.stderr
    assert "60 rows = 60 papers" in done.stdout and "warning: categories of fewer" in done.stdout
    prepared = json.loads((tmp_path / "reports" / "prepared.json").read_text())
    assert sum(part["papers"] for part in prepared.values()) == 60
    assert sum(prepared["train"]["classes"].values()) == prepared["train"]["papers"]
    assert len(prepared["test"]["sha256"]["input_ids"]) == 64
    again = run_script("prepare.py", "--config", tmp_path / "config.json", "--max_length", "16")
    assert again.returncode == 0
    other = json.loads((tmp_path / "reports" / "prepared.json").read_text())
    same = {name: other["test"]["sha256"][name] == prepared["test"]["sha256"][name]
            for name in ("id", "label", "length", "input_ids")}
    assert same == {"id": True, "label": True, "length": False, "input_ids": False}


def test_too_many_bad_rows_stop_and_some_may_be_allowed(make_config, tmp_path):
    path = tmp_path / "own.csv"
    write_papers(path, [*many(), paper("abs-2102.00001v1", summary="")])
    with open(path, "ab") as file:
        file.write(b"abs-2102.00002v1,too,few\r\n")
    (tmp_path / "config.json").write_text(json.dumps(asdict(make_config(data_path=str(path)))))
    command = ("prepare.py", "--config", tmp_path / "config.json", "--check_only")
    assert_mistake(run_script(*command), "own.csv: row 62 (id 'abs-2102.00001v1') has an empty "
                   "summary", "2 bad rows", "--max_bad_rows 2")
    assert not (tmp_path / "reports").exists()
    done = run_script(*command, "--max_bad_rows", "2")
    assert done.returncode == 0 and "left out (bad row: 2)" in done.stdout
    with open(tmp_path / "reports" / "rejects.csv", newline="") as file:
        rows = [(row["row"], row["id"], row["reason"]) for row in csv.DictReader(file)]
    assert rows == [("62", "abs-2102.00001v1", "has an empty summary"),
                    ("63", "abs-2102.00002v1", "has 3 fields and not 10")]


def test_a_disk_that_is_full_leaves_nothing(make_config, tmp_path):
    """The file size limit of the shell makes every write of more than 64 KiB fail."""
    config = make_config(data_path=str(write_papers(tmp_path / "own.csv", many(1500))))
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    cache = tmp_path / "cache"
    command = [sys.executable, str(ROOT / "scripts" / "prepare.py"), "--config",
               str(tmp_path / "config.json")]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *command], capture_output=True,
        text=True, env=os.environ | {"HF_DATASETS_CACHE": str(cache)})
    assert_mistake(done, "cannot write", "free some space")
    assert not [path for path in cache.rglob("*") if path.is_file()]
    assert not (tmp_path / "reports" / "prepared.json").exists()


def test_a_split_by_date(make_config, tmp_path):
    rows = many() + [paper("abs-2102.00001v1", published_date="", category_code="cs.LG")]
    config = make_config(data_path=str(write_papers(tmp_path / "own.csv", rows)),
                         validation_from="20130101", test_from="2014-W01-3")
    with clean_papers(config) as papers:
        dataset = split_papers(papers, config)
        sizes = {name: len(part) for name, part in dataset.items()}
        years = {row["id"]: 2010 + number % 5 for number, row in enumerate(many())}
        for name, allowed in (("train", {2010, 2011, 2012}), ("validation", {2013}),
                              ("test", {2014})):
            assert {years[f"{paper}v1"] for paper in dataset[name]["id"]} == allowed
    with pytest.raises(InputError, match="no paper of .* has a published_date"):
        undated = write_papers(tmp_path / "undated.csv", [r | {"published_date": ""} for r in rows])
        undated_config = replace(config, data_path=str(undated))
        with clean_papers(undated_config) as papers:
            split_papers(papers, undated_config)
    assert sizes == {"train": 36, "validation": 12, "test": 12}  # without a date: left out


def test_lines_without_carriage_returns_are_read_the_same(make_config, tmp_path):
    crlf = write_papers(tmp_path / "crlf.csv", many())
    line_feeds = tmp_path / "lf.csv"
    line_feeds.write_bytes(crlf.read_bytes().replace(b"\r\n", b"\n"))
    found = []
    for path in (crlf, line_feeds):
        with clean_papers(make_config(data_path=str(path))) as papers:
            found.append(papers.table().to_pylist())
    assert found[0] == found[1] and len(found[0]) == 60
