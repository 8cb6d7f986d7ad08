"""The log of predictions stays within its bounds and never stands in the way."""

import json
import logging
import resource
import threading

import numpy as np
import pytest

from nej import InputError
from nej.predicting.prediction_log import FILES, PredictionLog, open_parts, summarize


def lines(folder) -> list[dict]:
    """Return all lines of all files; each must be whole."""
    return [json.loads(line) for file in folder.glob("log.jsonl*") if file.suffix != ".lock"
            for line in file.read_text("utf-8").splitlines()]


def size(folder) -> int:
    """Return the bytes that the log takes."""
    return sum(file.stat().st_size for file in folder.iterdir())


def test_what_is_written_is_there(tmp_path):
    log = PredictionLog(tmp_path / "new" / "log.jsonl", size_bytes=1 << 20)
    log.write([{"n": 1}, {"n": "Gödel"}])
    log.close()
    again = PredictionLog(tmp_path / "new" / "log.jsonl", size_bytes=1 << 20)
    again.write([{"n": 3}])
    again.close()
    assert [line["n"] for line in lines(tmp_path / "new")] == [1, "Gödel", 3]


def test_it_keeps_the_newest_and_stays_within_its_bounds(tmp_path):
    log = PredictionLog(tmp_path / "log.jsonl", size_bytes=10_000)
    for number in range(900):
        log.write([{"n": number, "text": "x" * 30}])
    log.close()
    assert size(tmp_path) <= 10_000
    kept = sorted(line["n"] for line in lines(tmp_path))
    assert kept == list(range(900 - len(kept), 900)) and len(kept) > 150
    assert len(list(tmp_path.glob("log.jsonl*"))) == FILES + 1  # and the lock


def test_several_processes_share_it(tmp_path):
    logs = [PredictionLog(tmp_path / "log.jsonl", size_bytes=40_000) for _ in range(3)]

    def write(log, name):
        for number in range(100):
            log.write([{"n": f"{name}-{number}"}])
        log.close()
    threads = [threading.Thread(target=write, args=pair) for pair in zip(logs, "abc")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({line["n"] for line in lines(tmp_path)}) == 300


def test_a_full_disk_is_counted_and_told_once(tmp_path, monkeypatch, caplog):
    lost = []
    log = PredictionLog(tmp_path / "log.jsonl", size_bytes=1 << 20, lost=lost.append)

    def full(lines):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(log, "_append", full)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            log.write([{"n": 1}, {"n": 2}])
        log.close()
    assert lost == [2] * 5
    assert caplog.text.count("No space left on device") == 1


def test_a_line_that_was_torn_swallows_no_other(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"n": 1}\n{"n": 2, "te')
    for number in (3, 4):
        log = PredictionLog(path, size_bytes=1 << 20)
        log.write([{"n": number}])
        log.close()
    assert path.read_text() == '{"n": 1}\n{"n": 2, "te\n{"n": 3}\n{"n": 4}\n'


def test_a_disk_that_is_full_in_the_middle_of_a_line_keeps_no_part_of_it(tmp_path):
    lost, (soft, hard) = [], resource.getrlimit(resource.RLIMIT_FSIZE)
    log = PredictionLog(tmp_path / "log.jsonl", size_bytes=1 << 20, lost=lost.append)
    log._append(b'{"n": 1}\n')
    resource.setrlimit(resource.RLIMIT_FSIZE, (15, hard))
    try:
        log._write([{"n": 2}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "log.jsonl").read_text() == '{"n": 1}\n' and lost == [1]
    log.write([{"n": 3}])
    log.close()
    assert [line["n"] for line in lines(tmp_path)] == [1, 3]


def test_a_disk_that_hangs_holds_nobody_up(tmp_path, monkeypatch):
    monkeypatch.setattr("nej.predicting.prediction_log.MOST_PENDING", 3)
    lost, go = [], threading.Event()
    log = PredictionLog(tmp_path / "log.jsonl", size_bytes=1 << 20, lost=lost.append)
    monkeypatch.setattr(log, "_append", lambda lines: go.wait(10))
    for _ in range(5):
        log.write([{"n": 1}])
    assert lost == [1, 1]
    go.set()
    log.close()


def test_a_place_that_cannot_be_written_is_a_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*--log"):
        PredictionLog(tmp_path / "file" / "log.jsonl", size_bytes=1 << 20)


def test_the_older_parts_of_a_log_are_found_whatever_its_name(tmp_path):
    for name in ("log[1]*?.jsonl.1", "log[1]*?.jsonl", "log1.jsonl.1"):
        (tmp_path / name).write_text(f"{name}\n")
    parts = open_parts(tmp_path / "log[1]*?.jsonl")
    assert [part.read() for part in parts] == ["log[1]*?.jsonl.1\n", "log[1]*?.jsonl\n"]
    for part in parts:
        part.close()


def test_a_log_that_may_not_be_read_is_a_mistake(tmp_path, monkeypatch):
    (tmp_path / "log.jsonl").write_text("{}\n")

    def refuse(path, **_):  # who tests may be root, who may read everything
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setattr("nej.predicting.prediction_log.open", refuse, raising=False)
    with pytest.raises(InputError, match="log.jsonl cannot be read: Permission denied; change"):
        open_parts(tmp_path / "log.jsonl")


def test_embeddings_of_another_kind_look_another_way():
    draw = np.random.default_rng(1)
    same, other = draw.normal(size=(2, 500, 32)).astype(np.float32)
    other[:, :8] += 2
    first, second, moved = (summarize(part).mean(0) for part in (same[:250], same[250:], other))
    assert summarize(same).shape == (500, 8)
    assert np.abs(first - moved).max() > 3 * np.abs(first - second).max()
    np.testing.assert_array_equal(summarize(same[:2]), summarize(same)[:2])
