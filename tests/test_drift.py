"""Drift: the same kind of papers raise no alarm, another kind does, and it is said in words."""

import json
import runpy
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from nej import InputError
from nej.judging.promotion import _point
from nej.predicting.drift import NUMBERS, Signals, compare, read_reference, signals, write_reference
from nej.predicting.prediction_log import PredictionLog
from nej.predicting.recent import recent_signals
from nej.predicting.unknown_words import UnknownWords
from nej.prediction import Classifier
from scripts.make_sample import generate
from tests.forked import run_script

ROOT = Path(__file__).resolve().parent.parent


def draw(papers: int, seed: int, *, tokens=0.0, unknown_words=0.0, probability=0.0,
         shares=(0.5, 0.3, 0.2), direction=0.0) -> Signals:
    """Return papers like no others; the arguments shift them, in standard deviations."""
    random = np.random.default_rng(seed)
    directions = random.standard_normal((papers, 8)) * np.arange(1, 9)
    directions[:, 3] += direction * 4
    return Signals(
        np.clip(250 + 70 * (random.standard_normal(papers) + tokens), 3, 320).astype(int),
        np.clip(0.2 + 0.05 * (random.standard_normal(papers) + unknown_words), 0, 1),
        1 / (1 + np.exp(-1.5 - random.standard_normal(papers) - probability)),
        random.choice(["cs.AI", "cs.CV", "cs.LG"], papers, p=shares).tolist(), directions)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict:
    """Return the reference of 3,000 papers."""
    folder = tmp_path_factory.mktemp("model")
    write_reference(folder, draw(3000, 0))
    assert (folder / "reference.json").stat().st_size < 32_000
    return read_reference(folder)


@pytest.mark.parametrize("papers", [100, 300, 3000])
def test_papers_of_the_same_kind_raise_no_alarm(reference, papers):
    for seed in range(1, 101):
        drift = compare(draw(papers, seed), reference)
        assert drift.alarms == []
        assert "No alarm" in drift.text()


def test_ever_so_many_papers_make_no_alarm_of_a_trifle(tmp_path):
    write_reference(tmp_path, draw(100_000, 0))
    drift = compare(draw(100_000, 1, tokens=0.05, unknown_words=0.05, probability=-0.05,
                         shares=(0.48, 0.31, 0.21), direction=0.1), read_reference(tmp_path))
    assert max(change.p_value for change in drift.changes) < 1e-6 and drift.alarms == []


@pytest.mark.parametrize("shift, name, words", [
    ({"tokens": -0.6}, "tokens", "tokens of a paper: 243 on average then, 20"),
    ({"unknown_words": 0.6}, "unknown_words", "share of unknown words: 0.201 on average then, 0.2"),
    ({"probability": -0.8}, "probability", "confidence: 0.779 on average then, 0.6"),
    ({"shares": (0.2, 0.3, 0.5)}, "categories", "cs.AI 49% then, 18% now, cs.LG 19% then, 49%"),
    ({"direction": 0.7}, "embeddings", "standard deviations away"),
])
def test_what_moved_is_named(reference, shift, name, words):
    drift = compare(draw(400, 1, **shift), reference)
    assert [change.name for change in drift.alarms] == [name]
    alarm, = [line for line in drift.text().splitlines() if line.startswith("ALARM")]
    assert words in alarm
    assert drift.text().endswith(f"differ from the test papers: {NUMBERS.get(name, name)}.")


def log_of(*parts: Signals, at_once: int = 1) -> Signals:
    """Return the signals of a log in which the parts follow each other, so many papers a second."""
    papers = sum(map(len, parts))
    return Signals(*(np.concatenate([getattr(part, name) for part in parts]) for name in NUMBERS),
                   sum((part.categories for part in parts), []),
                   np.concatenate([part.directions for part in parts]),
                   np.array([f"2026-11-01T00:00:{row // at_once:05}.5" for row in range(papers)]))


@pytest.mark.parametrize("shift, name", [
    ({"tokens": -0.8}, "tokens"), ({"unknown_words": 0.8}, "unknown_words"),
    ({"shares": (0.2, 0.3, 0.5)}, "categories"), ({"direction": 1.0}, "embeddings")])
def test_few_new_papers_of_another_kind_are_found_among_many(reference, shift, name):
    old, new = draw(3000, 1), draw(300, 2, **shift)
    drift = compare(log_of(old, new), reference)
    change, = drift.alarms
    # it is seen within 200 papers, and what is compared came after that
    assert change.name == name and 100 <= change.papers < 300
    assert f"(now: from 2026-11-01T00:00:0{3300 - change.papers}"[:24] in drift.text()
    assert "on, by when it had changed); distance" in drift.text()
    assert [other.papers for other in drift.changes if other is not change] == [3300] * 4
    # the same papers in no order of time
    assert compare(replace(log_of(old, new), times=None), reference).alarms == []


def test_what_has_gone_back_to_what_it_was_is_no_alarm(reference):
    new = draw(800, 2, tokens=-0.8)
    change, = compare(log_of(draw(400, 1), new), reference).alarms
    assert change.name == "tokens"
    back = compare(log_of(draw(400, 1), new, draw(800, 3)), reference)
    assert back.alarms == [] and back.changes[0].papers < 800


def test_what_changed_to_something_less_far_is_still_an_alarm(reference):
    drift = compare(log_of(draw(2000, 1, tokens=-1.0), draw(300, 2, tokens=-0.4)), reference)
    change, = drift.alarms
    assert change.name == "tokens" and change.papers == 2300


def test_a_change_in_the_last_papers_is_told_as_that(reference):
    drift = compare(log_of(draw(3000, 1), draw(70, 2, tokens=-3.0)), reference)
    assert [change.name for change in drift.alarms] == ["tokens"]
    assert "(now: the last 100 papers, in which it changed); distance" in drift.text()


def test_a_request_of_many_papers_of_one_kind_is_one_thing(reference):
    """Whose papers are not independent: they say little of those to come."""
    alike = draw(128, 2, shares=(0, 0, 1), tokens=-2.0)
    found = log_of(draw(3000, 1), alike)
    found.times[3000:] = found.times[3000]
    assert compare(found, reference).alarms == []
    steady = log_of(draw(3000, 1), draw(1280, 3, shares=(0, 0, 1)), at_once=10)
    assert [change.name for change in compare(steady, reference).alarms] == ["categories"]


def test_a_category_that_was_not_there_and_one_that_is_gone(reference):
    found = draw(400, 1)
    found.categories[:] = ["math.ST" if name == "cs.LG" else name for name in found.categories]
    drift = compare(found, reference)
    assert [change.name for change in drift.alarms] == ["categories"]
    assert "math.ST 0% then" in drift.text() and "cs.LG 19% then, 0%" in drift.text()


def test_a_few_papers_cannot_tell(reference):
    with pytest.raises(InputError, match="99 papers are too few .* at least 100"):
        compare(draw(99, 1), reference)


@pytest.fixture(scope="module")
def judged(make_served, tmp_path_factory) -> Path:
    """Return a model directory with a reference of generated papers."""
    model_dir = make_served(tmp_path_factory.mktemp("judged") / "tiny")
    model, papers = Classifier.load(model_dir), list(generate(300, 5))
    read = model.read([paper["summary"] for paper in papers], [paper["title"] for paper in papers])
    write_reference(model_dir, signals(
        read, model.run(read), names=model.names, temperature=model.temperature,
        unknown_words=UnknownWords(model.tokenizer)))
    return model_dir


def write(path: Path, papers: list[dict]) -> Path:
    path.write_text("".join(json.dumps(paper) + "\n" for paper in papers), "utf-8")
    return path


def test_a_file_of_papers_like_those_and_one_of_another_field(judged, tmp_path):
    alike = write(tmp_path / "alike.jsonl", [*generate(300, 6), {"id": 1}])
    assert compare(recent_signals(judged, alike), read_reference(judged)).alarms == []
    other = write(tmp_path / "other.jsonl", [
        {"summary": f"We prove a theorem about {n} harmonic sheaves on curves."}
        for n in range(150)])
    done = run_script("drift.py", judged, other, "--figure", tmp_path / "drift.png")
    assert done.returncode == 3, done.stderr[-1000:]
    assert "ALARM  share of unknown words: " in done.stdout
    assert "ALARM  tokens of a paper" in done.stdout
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_the_verdict_is_told_where_no_picture_can_be_drawn(judged, tmp_path):
    papers = write(tmp_path / "papers.jsonl", list(generate(300, 6)))
    (tmp_path / "file").write_text("")
    done = run_script("drift.py", judged, papers, "--figure", tmp_path / "file" / "drift.png")
    assert done.returncode != 0 and "No alarm" in done.stdout


def test_a_link_that_is_moved_meanwhile_changes_nothing(judged, make_served, tmp_path,
                                                        monkeypatch):
    link = tmp_path / "production"
    link.symlink_to(judged)
    papers = write(tmp_path / "papers.jsonl", list(generate(300, 6)))
    asked = []

    def move_and_read(model_dir):
        _point(link, make_served(tmp_path / "other", seed=1))
        return read_reference(model_dir)
    monkeypatch.setattr("nej.predicting.drift.read_reference", move_and_read)
    monkeypatch.setattr("nej.predicting.recent.recent_signals", lambda model, *rest, **options: (
        asked.append(model), recent_signals(model, *rest, **options))[1])
    monkeypatch.syspath_prepend(ROOT / "scripts")
    main = runpy.run_path(str(ROOT / "scripts" / "drift.py"))["main"]
    main([str(link), str(papers), "--figure", str(tmp_path / "drift.png")])
    assert asked[0].resolve() == judged.resolve()


def log_line(version: str, hours: float = 0.0, **others) -> dict:
    return {"time": (datetime.now(UTC) - timedelta(hours=hours)).isoformat(), "version": version,
            "category": "cs.CV", "probability": 0.5, "tokens": 40, "unknown_words": 0.1,
            "embedding": [0.0] * 8} | others


def test_a_log_of_predictions_is_read_with_its_older_parts(judged, tmp_path, caplog):
    caplog.set_level("INFO", "nej")
    version = json.loads((judged / "manifest.json").read_text())["weights_sha256"][:12]
    path = tmp_path / "predictions.jsonl"
    log = PredictionLog(path, size_bytes=30_000)
    log.write([log_line(version, hours=100, tokens=10)] * 9)
    log.write([log_line(version, hours=1)] * 9)
    log.write([log_line("0123456789ab"), log_line(version, category="cs.LG")])
    log.close()
    with open(path, "a") as file:
        file.write('{"time": "2026-')
    assert (tmp_path / "predictions.jsonl.1").exists()
    found = recent_signals(judged, path)
    assert len(found) == 19 and "of another model: 1; left out, not whole: 1" in caplog.text
    assert found.tokens.tolist() == [10] * 9 + [40] * 10  # the oldest first
    assert found.times.tolist() == sorted(found.times) and found.directions.shape == (19, 8)
    assert len(recent_signals(judged, path, days=1)) == 10 and "older: 9" in caplog.text
    with pytest.raises(InputError, match="no prediction of .* in the last 0.01 days"):
        recent_signals(judged, write(path, [log_line(version, hours=3)]), days=0.01)


@pytest.mark.parametrize("others", [
    {"embedding": [1, 2]}, {"embedding": None}, {"embedding": ["x"] * 8}, {"tokens": "x"},
    {"unknown_words": None}, {"time": 5}, {"time": "x"}, {"category": None},
    {"probability": float("nan")}, {"tokens": 10 ** 400}])
def test_a_line_with_a_field_of_another_kind_is_left_out(judged, tmp_path, caplog, others):
    caplog.set_level("INFO", "nej")
    version = json.loads((judged / "manifest.json").read_text())["weights_sha256"][:12]
    path = write(tmp_path / "predictions.jsonl", [log_line(version)] * 2
                 + [log_line(version, **others)])
    found = recent_signals(judged, path)
    assert len(found) == 2 and found.directions.shape == (2, 8)
    assert "2 predictions; left out, not whole: 1" in caplog.text


@pytest.mark.parametrize("first", ['{"x": 1', "", "[1]", "[" * 100_000])
def test_a_first_line_that_cannot_be_read_makes_no_papers_of_a_log(judged, tmp_path, first):
    version = json.loads((judged / "manifest.json").read_text())["weights_sha256"][:12]
    line, path = json.dumps(log_line(version)), tmp_path / "predictions.jsonl"
    path.write_text(f"{first}\n{line}\n")
    assert len(recent_signals(judged, path)) == 1
    (tmp_path / "predictions.jsonl.1").write_text(f"{line}\n{line}\n")
    path.write_text(f"{first}\n")
    assert len(recent_signals(judged, path)) == 2


def test_a_log_that_moves_on_while_it_is_read_lacks_nothing(judged, tmp_path, monkeypatch):
    version = json.loads((judged / "manifest.json").read_text())["weights_sha256"][:12]
    path = tmp_path / "predictions.jsonl"
    log = PredictionLog(path, size_bytes=10_000)  # a file has some four lines

    def append(tokens: int):
        log._append((json.dumps(log_line(version, tokens=tokens)) + "\n").encode())
    for tokens in range(1, 9):
        append(tokens)
    older = len(list(tmp_path.glob("*.jsonl.?")))
    loads = json.loads

    def loads_and_moves(text):
        if len(list(tmp_path.glob("*.jsonl.?"))) < older + 2:
            append(99)
        return loads(text)
    monkeypatch.setattr("nej.predicting.recent.json.loads", loads_and_moves)
    found = recent_signals(judged, path).tokens.tolist()
    assert [tokens for tokens in found if tokens != 99] == list(range(1, 9))
    moving = threading.Event()
    with log._lock:  # it is just moving on
        path.rename(tmp_path / "away")
        reader = threading.Thread(target=lambda: (
            moving.set(), found.append(recent_signals(judged, path))))
        reader.start()
        moving.wait(10)
        time.sleep(0.2)
        (tmp_path / "away").rename(path)
    reader.join()
    assert len(found[-1]) >= 8
    log.close()


@pytest.mark.parametrize("name", ["predictions.jsonl", "predictions.log"])
def test_a_log_that_has_nothing_in_it_yet_is_told(judged, tmp_path, name):
    log = PredictionLog(tmp_path / name, size_bytes=1 << 20)  # as the service makes it
    with pytest.raises(InputError, match=f"{name} is empty: no predictions in it yet"):
        recent_signals(judged, tmp_path / name, days=1)
    log.close()
    version = json.loads((judged / "manifest.json").read_text())["weights_sha256"][:12]
    write(tmp_path / f"{name}.1", [log_line(version)] * 3)
    assert len(recent_signals(judged, tmp_path / name)) == 3


@pytest.mark.parametrize("days", [1e10, 1e6, float("inf"), float("nan")])
def test_days_that_no_calendar_has_are_told(judged, tmp_path, days):
    path = write(tmp_path / "predictions.jsonl", [log_line("0123456789ab")])
    with pytest.raises(InputError, match="--days is .*, and no calendar has as many"):
        recent_signals(judged, path, days=days)


def test_mistakes_are_explained(judged, make_served, tmp_path):
    with pytest.raises(InputError, match="--days is for a log"):
        recent_signals(judged, write(tmp_path / "a.jsonl", [{"summary": "x"}]), days=1)
    with pytest.raises(InputError, match="no file .*nowhere.csv"):
        recent_signals(judged, tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="has no reference.json; `make evaluate MODEL="):
        read_reference(make_served(tmp_path / "other"))
