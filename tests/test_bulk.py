"""A file of papers is labelled: as the model does it, in order, whole, also after a kill."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState

from nej import InputError
from nej.data.records import PIPE
from nej.judging.promotion import _point
from nej.predicting import bulk, windows
from nej.predicting.bulk import label_file
from nej.prediction import Classifier
from scripts.make_sample import generate
from tests.forked import run_script

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Cut 90 papers into five windows."""
    monkeypatch.setattr(windows, "WINDOW_PAPERS", 20)


@pytest.fixture(scope="module")
def papers() -> list[dict]:
    """Return papers of very different lengths, one with a line break and quotes."""
    found = [{name: row[name] for name in ("id", "title", "summary")} for row in generate(90, 3)]
    for number, paper in enumerate(found):
        paper["summary"] = " ".join(paper["summary"].split()[:3 + number * 7 % 60])
    found[4]["summary"] = 'An "image",\r\na robot.'
    return found


@pytest.fixture(scope="module")
def expected(papers, served_model) -> list[tuple[str, str, float]]:
    """Return id, category and probability of each paper, by the model alone."""
    model = Classifier.load(served_model)
    found = model.probabilities([paper["summary"] for paper in papers],
                                [paper["title"] for paper in papers])
    return [(paper["id"], model.names[row.argmax()], pytest.approx(row.max(), abs=1e-5))
            for paper, row in zip(papers, found)]


def write(path: Path, papers: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(papers), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(paper) + "\n" for paper in papers))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "title", "summary"])
            writer.writeheader()
            writer.writerows(papers)
    return path


def labels(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [row | {"row": int(row["row"]), "probability": float(row["probability"])}
            for row in rows]


def assert_labelled(path: Path, expected: list) -> None:
    rows = labels(path)
    assert [row["row"] for row in rows] == list(range(1, len(expected) + 1))
    assert [(row["id"], row["category"], row["probability"]) for row in rows] == expected


@pytest.mark.parametrize("source, target", [
    ("a.csv", "b.parquet"), ("a.jsonl", "b.csv"), ("a.parquet", "b.jsonl")])
def test_each_paper_has_the_label_that_the_model_gives_it(
        papers, expected, served_model, tmp_path, source, target):
    summary = label_file(served_model, write(tmp_path / source, papers), tmp_path / target,
                         top_k=2)
    assert_labelled(tmp_path / target, expected)
    assert summary.papers == 90 and not summary.bad and summary.truncated > 0
    rows = labels(tmp_path / target)
    assert all(row["category_2"] not in (row["category"], None) for row in rows)
    assert {row["name"] for row in rows if row["category"] == "cs.RO"} <= {"Robotics"}
    assert summary.abstained == sum(row["probability"] < 0.26 for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source, target])


def test_what_cannot_be_labelled_is_carried_through_with_a_reason(served_model, tmp_path, caplog):
    good = {"id": 7, "summary": "A robot."}
    bad = [("{", "cannot be parsed (line 2)"), ({"id": "a"}, "has no summary"),
           ({"id": "b", "summary": " \n"}, "has no summary"),
           ({"id": "c", "summary": 5}, "its summary is no text"),
           ({"id": "d", "summary": "x", "title": ["y"]}, "its title is no text"),
           ({"id": "e", "summary": "x\0"}, "has a NUL character in its summary"),
           ({"id": "f", "summary": "\ud800"}, "its summary is not UTF-8"),
           ({"id": "g", "summary": "x" * (2 << 20)}, "has a summary of over 1,048,576 characters")]
    lines = [good, *(record for record, _ in bad), good | {"title": None}]
    (tmp_path / "a.jsonl").write_text("".join(
        (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    summary = label_file(served_model, tmp_path / "a.jsonl", tmp_path / "b.parquet")
    first, *rest, last = labels(tmp_path / "b.parquet")
    assert first["id"] == last["id"] == "7" and first["category"] == last["category"] is not None
    assert [row["reason"] for row in rest] == [reason for _, reason in bad]
    assert [row["id"] for row in rest] == ["", *"abcdefg"]
    assert {row["category"] for row in rest} == {row["abstained"] for row in rest} == {None}
    assert summary.bad.total() == 8 and "has no summary (first: row 3)" in summary.text()


def test_a_link_that_is_moved_meanwhile_changes_nothing(
        papers, expected, served_model, make_served, tmp_path, monkeypatch):
    other, link = make_served(tmp_path / "other", seed=1), tmp_path / "production"
    link.symlink_to(served_model)
    source, target = write(tmp_path / "a.csv", papers), tmp_path / "b.csv"
    load_backend = bulk.load_backend

    def move_and_load(*arguments):
        _point(link, other)
        return load_backend(*arguments)
    monkeypatch.setattr(bulk, "load_backend", move_and_load)
    label_file(link, source, target)
    assert_labelled(target, expected)


def test_an_abstract_stands_in_for_a_summary_that_is_empty(served_model, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(paper) + "\n" for paper in (
        {"summary": "A robot."}, {"abstract": "A robot."}, {"summary": "A robot.", "abstract": "x"},
        {"summary": None, "abstract": "A robot."}, {"summary": " ", "abstract": "A robot."},
        {"summary": None, "abstract": ""})))
    label_file(served_model, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    *rows, last = labels(tmp_path / "b.jsonl")
    assert len({(row["category"], row["probability"], row["reason"]) for row in rows}) == 1
    assert last["reason"] == "has no summary"


def test_a_missing_title_column_is_told(served_model, tmp_path, caplog):
    (tmp_path / "a.csv").write_text("summary\nA robot.\n")
    label_file(served_model, tmp_path / "a.csv", tmp_path / "b.csv")
    assert "no column title" in caplog.text
    assert labels(tmp_path / "b.csv")[0]["id"] == ""


@contextmanager
def killed_at(moment: str):
    """Kill this process, a forked one: before its third part, within that, or at the end."""
    replacing, calls = bulk.replacing, []

    @contextmanager
    def watched(target):
        calls.append(target)
        with replacing(target) as aside:
            if moment == "before" and len(calls) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield aside
            if (moment, len(calls)) in (("within", 3), ("joining", 6)):
                aside.write_bytes(aside.read_bytes()[:-5])
                os.kill(os.getpid(), signal.SIGKILL)
    bulk.replacing = watched
    if moment == "joined":
        bulk.shutil = SimpleNamespace(
            rmtree=lambda *_, **__: calls and os.kill(os.getpid(), signal.SIGKILL))
    yield


def in_child(work) -> int:
    """Return the exit code of a forked process that does the work, -9 after SIGKILL."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("moment", ["before", "within", "joining", "joined"])
def test_after_a_kill_no_row_is_lost_or_doubled_and_no_part_made_again(
        papers, expected, served_model, tmp_path, monkeypatch, moment):
    source, target = write(tmp_path / "a.csv", papers), tmp_path / "b.parquet"

    def work():
        with killed_at(moment):
            label_file(served_model, source, target)
    assert in_child(work) == -signal.SIGKILL
    assert target.exists() == (moment == "joined")
    made, label = [], bulk.label
    monkeypatch.setattr(bulk, "label", lambda window, *rest: (
        made.append(window.number), label(window, *rest))[1])
    summary = label_file(served_model, source, target)
    assert made == ([2, 3, 4] if moment in ("before", "within") else [])
    assert_labelled(target, expected)
    assert summary.papers == 90
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.parquet"]


def test_two_processes_make_one_ordered_file(papers, expected, served_model, tmp_path):
    source, target = write(tmp_path / "a.csv", papers), tmp_path / "b.csv"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int):
        PartialState._reset_state()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                       "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        label, made = bulk.label, []
        bulk.label = lambda window, *rest: (made.append(window.number), label(window, *rest))[1]
        label_file(served_model, source, target)
        (tmp_path / f"{rank}.json").write_text(json.dumps(made))
    second = os.fork()
    if second == 0:
        try:
            work(1)
        finally:
            os._exit(0)
    assert in_child(lambda: work(0)) == 0
    os.waitpid(second, 0)
    assert_labelled(target, expected)
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [
        [0, 2, 4], [1, 3]]


def test_no_more_is_read_than_a_few_windows(papers, served_model, tmp_path, monkeypatch):
    read, label, ahead = [0], bulk.label, []
    as_paper = windows.as_paper
    monkeypatch.setattr(windows, "as_paper", lambda *arguments: (
        read.__setitem__(0, read[0] + 1), as_paper(*arguments))[1])
    monkeypatch.setattr(bulk, "label", lambda window, *rest: (
        ahead.append(read[0] - window.first_row + 1), label(window, *rest))[1])
    label_file(served_model, write(tmp_path / "a.jsonl", papers * 4), tmp_path / "b.csv")
    assert len(ahead) == 18 and max(ahead) <= 2 * 20
    monkeypatch.setattr(windows, "WINDOW_CHARACTERS", 1000)
    label_file(served_model, write(tmp_path / "a.jsonl", papers), tmp_path / "b.csv")
    assert len(ahead) > 18 + 5 and len(labels(tmp_path / "b.csv")) == 90


def test_an_unfinished_run_of_something_else_is_not_gone_on_with(
        papers, served_model, make_served, tmp_path):
    source, target = write(tmp_path / "a.csv", papers), tmp_path / "b.parquet"

    def work():
        with killed_at("before"):
            label_file(served_model, source, target)
    assert in_child(work) == -signal.SIGKILL
    with pytest.raises(InputError, match="another model, or of what it was then; delete it"):
        label_file(make_served(tmp_path / "other", seed=1), source, target)
    with pytest.raises(InputError, match=r"another top_k \(1, and now 2\)"):
        label_file(served_model, source, target, top_k=2)
    os.utime(source, (1, 1))
    with pytest.raises(InputError, match="b.parquet.partial holds an unfinished .* another file"):
        label_file(served_model, source, target)
    assert not target.exists()


def test_a_kill_before_there_is_a_record_stops_nobody(papers, expected, served_model, tmp_path):
    source = write(tmp_path / "a.jsonl", papers)
    left = tmp_path / "b.parquet.partial" / ".run.json.a1b2"
    left.mkdir(parents=True)
    label_file(served_model, source, tmp_path / "b.parquet")
    assert_labelled(tmp_path / "b.parquet", expected)
    assert not left.parent.exists()


def test_a_pipe_deletes_no_work_but_another_pipes(papers, expected, served_model, tmp_path,
                                                  monkeypatch):
    source, target = write(tmp_path / "a.jsonl", papers), tmp_path / "b.parquet"
    partial = tmp_path / "b.parquet.partial"

    def label_pipe():
        with open(source) as file:
            monkeypatch.setattr("sys.stdin", file)
            label_file(served_model, PIPE, target)

    def killed(work):
        with killed_at("before"):
            work()
    assert in_child(lambda: killed(lambda: label_file(served_model, source, target))) < 0
    parts = sorted(partial.iterdir())
    with pytest.raises(InputError, match="b.parquet.partial holds an unfinished .* another file"):
        label_pipe()
    assert sorted(partial.iterdir()) == parts
    (partial / "run.json").unlink()
    for label in (label_pipe, lambda: label_file(served_model, source, target)):
        with pytest.raises(InputError, match="no unfinished run: it has no run.json; delete it"):
            label()
    assert sorted([*partial.iterdir(), partial / "run.json"]) == parts
    partial.rename(tmp_path / "away")
    assert in_child(lambda: killed(label_pipe)) < 0 and partial.exists()
    label_pipe()
    assert_labelled(target, expected)
    assert not partial.exists()


@pytest.mark.parametrize("target, arguments, message", [
    ("b.xlsx", {}, "--output is .*b.xlsx; its name must end in .csv"),
    ("b.csv", {"top_k": 9}, "--top_k is 9; .* knows 4"),
    *(("b.csv", {"wanted_accuracy": wrong}, r"--wanted_accuracy is .*; it must be from 0 to 1 \(0")
      for wrong in (float("nan"), -1.0, 7.0)),
    ("b.csv", {"backend": "openvino"}, "it has no export; `make export"),
])
def test_a_mistake_leaves_nothing_behind(served_model, papers, tmp_path, target, arguments,
                                         message):
    source = write(tmp_path / "a.csv", papers)
    with pytest.raises(InputError, match=message):
        label_file(served_model, source, tmp_path / target, **arguments)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("source", ["a.csv", "a.jsonl"])
def test_standard_output_on_a_full_disk_is_explained(served_model, papers, tmp_path, monkeypatch,
                                                     source):
    source = write(tmp_path / source, papers)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(InputError, match="cannot write standard output: No space left"):
            label_file(served_model, source, PIPE)


def test_a_file_that_was_refused_is_labelled_once_it_is_correct(
        papers, expected, served_model, tmp_path, monkeypatch):
    source, target = tmp_path / "a.csv", tmp_path / "b.csv"
    source.write_text(f'summary\n"{"x" * (17 << 20)}"\n')
    with pytest.raises(InputError, match="is a quote missing"):
        label_file(served_model, source, target)
    assert list(tmp_path.iterdir()) == [source]
    with monkeypatch.context() as patched:  # or stopped before its first part
        patched.setattr(bulk, "shutil", SimpleNamespace(rmtree=lambda *_, **__: None))
        with pytest.raises(InputError, match="is a quote missing"):
            label_file(served_model, source, target)
    assert (tmp_path / "b.csv.partial" / "run.json").exists()
    label_file(served_model, write(source, papers), target)
    assert_labelled(target, expected)


@pytest.mark.parametrize("target", ["a.csv", "link.csv"])
def test_the_file_that_is_read_is_not_replaced(served_model, papers, tmp_path, target):
    source = write(tmp_path / "a.csv", papers)
    (tmp_path / "link.csv").symlink_to(source)
    before = source.read_bytes()
    with pytest.raises(InputError, match=f"{target}, which is the file that is read; name another"):
        label_file(served_model, source, tmp_path / target)
    assert source.read_bytes() == before and (tmp_path / "link.csv").is_symlink()


@pytest.mark.system
def test_a_pipe_in_and_out(papers, expected, served_model, tmp_path):
    source = write(tmp_path / "a.jsonl", papers)
    command = [sys.executable, ROOT / "scripts" / "predict.py", served_model, "-", "-o", "-"]
    with open(source) as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    (tmp_path / "b.jsonl").write_text(done.stdout)
    assert_labelled(tmp_path / "b.jsonl", expected)
    assert "90 papers: 90 labelled" in done.stderr
    done = run_script("predict.py", tmp_path, source, "-o", tmp_path / "c.csv")
    assert done.returncode == 2 and "not a finished model directory" in done.stderr
