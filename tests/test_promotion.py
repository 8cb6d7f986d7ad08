"""A model is put in use only if it deserves it; what was refused leaves everything as it was."""

import importlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nej import InputError
from nej.judging import promotion
from nej.judging.promotion import promote
from nej.prediction import Classifier

ROOT = Path(__file__).resolve().parent.parent
LABELS = np.arange(400) % 4


def guesses(right: int, of_class: int | None = None) -> list[int]:
    """Return classes of which the first `right` are right, or all but `right` of one class."""
    if of_class is None:
        return np.where(np.arange(400) < right, LABELS, (LABELS + 1) % 4).tolist()
    wrong = np.flatnonzero(LABELS == of_class)[:right]
    predicted = LABELS.copy()
    predicted[wrong] = (of_class + 1) % 4
    return predicted.tolist()


@pytest.fixture
def findings(monkeypatch):
    """Return the list of what the behaviour tests find, to which a test may add."""
    found = [SimpleNamespace(name="batches", passed=True, detail="the same")]
    monkeypatch.setattr("nej.judging.behaviour.check", lambda model: found)
    monkeypatch.setattr(Classifier, "load", lambda folder: folder)
    return found


@pytest.fixture
def models(make_judged, findings, tmp_path) -> Path:
    """Return the folder of three models: weak, good and better."""
    for name, right in (("weak", 100), ("good", 300), ("better", 360)):
        make_judged(name, LABELS.tolist(), guesses(right))
    return tmp_path / "models"


def seen(models: Path) -> list:
    """Return everything in the folder: names, links and contents."""
    return sorted((str(path), os.readlink(path) if path.is_symlink() else path.is_file() and
                   path.read_bytes()) for path in models.rglob("*"))


def log(models: Path) -> list[dict]:
    """Return the log's lines."""
    return [json.loads(line) for line in (models / "promotions.jsonl").read_text().splitlines()]


def test_the_better_model_takes_the_place_and_the_log_says_why(models):
    assert promote(models / "good", models=models).promoted
    assert os.readlink(models / "production") == "good"
    found = promote(models / "better", models=models)
    assert found.promoted and os.readlink(models / "production") == "better"
    first, second = log(models)
    manifest = json.loads((models / "better" / "manifest.json").read_text())
    assert first["replaced"] is None and "TF-IDF + LinearSVC" in first["verdict"]
    assert (second["model"], second["replaced"]) == ("better", "good")
    assert second["weights_sha256"] == manifest["weights_sha256"]
    assert (second["data_md5"], second["commit"]) == ("1234", "abcd")
    assert second["verdict"] == found.verdict and "is better than" in found.verdict
    assert second["figures"]["macro_f1"]["interval"][0] > 0


def test_the_link_goes_with_its_folder(models, tmp_path):
    promote(models / "good", models=models)
    shutil.move(models, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "production" / "manifest.json").exists()


def test_what_is_not_better_is_refused_and_changes_nothing(models, findings):
    promote(models / "better", models=models)
    before = seen(models)
    findings.append(SimpleNamespace(name="capitals", passed=False, detail="3 texts differ"))
    found = promote(models / "good", models=models)
    assert not found.promoted and seen(models) == before
    assert "is worse than" in found.reasons[0]
    assert [r.split(" is ")[0] for r in found.reasons[1:5]] == [
        f"F1 of cs.{name}" for name in ("AI", "CL", "CV", "LG")]
    assert found.reasons[5:] == ["behaviour test 'capitals' fails: 3 texts differ"]
    assert len(found.text().splitlines()) == 7


def test_a_class_may_not_lose_more_than_is_allowed(models, make_judged):
    promote(models / "good", models=models)
    path = models / "good" / "predictions.csv"
    rows = path.read_text().replace("cs.CV,cs.LG,0.8,0.4,2", "cs.CV,cs.CV,0.8,0.8,1")
    path.write_text(rows)  # cs.CV is its best class now, and its papers are cs.LG for the next one
    make_judged("uneven", LABELS.tolist(), guesses(40, of_class=2))
    found = promote(models / "uneven", models=models)
    assert [r.split(" lower")[0] for r in found.reasons] == [
        "F1 of cs.CV is 0.1389", "F1 of cs.LG is 0.0238"]
    assert len(promote(models / "uneven", models=models, max_class_loss=0.03).reasons) == 1
    assert promote(models / "uneven", models=models, max_class_loss=0.5).promoted
    for wrong in (-0.1, float("nan")):
        with pytest.raises(InputError, match="from 0 to 1"):
            promote(models / "good", models=models, max_class_loss=wrong)


def test_a_class_may_lose_just_what_is_allowed(models, monkeypatch):
    """From 0.80 to 0.78, though 0.78 - 0.80 < -0.02 in floating point."""
    promote(models / "good", models=models)
    change = SimpleNamespace(before=0.80, after=0.78, difference=0.78 - 0.80)
    assert change.difference < -0.02
    found = promotion.compare(models / "good", models / "better")
    monkeypatch.setattr(promotion, "compare",
                        lambda *pair: replace(found, classes={"cs.AI": change}))
    assert promote(models / "better", models=models).promoted


def test_the_first_model_must_be_above_the_baseline_and_behave(models, findings):
    before = seen(models)
    found = promote(models / "weak", models=models)
    assert "not above the 0.3000 of the strongest baseline" in found.reasons[0]
    findings.append(SimpleNamespace(name="capitals", passed=False, detail="3 texts differ"))
    assert promote(models / "good", models=models).reasons == [
        "behaviour test 'capitals' fails: 3 texts differ"]
    assert seen(models) == before


def test_the_same_model_again_writes_nothing(models):
    promote(models / "good", models=models)
    before = seen(models)
    for name in ("good", "production"):
        found = promote(models / name, models=models)
        assert not found.promoted and not found.reasons and "already" in found.text()
    assert seen(models) == before


@pytest.mark.parametrize("killed_in", ["_append", "_point"])
def test_a_kill_leaves_the_old_link_and_the_command_can_be_given_again(
        models, monkeypatch, killed_in):
    promote(models / "good", models=models)

    def killed(*arguments):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(promotion, killed_in, killed)
        with pytest.raises(KeyboardInterrupt):
            promote(models / "better", models=models)
    assert os.readlink(models / "production") == "good"
    assert promote(models / "better", models=models).promoted
    assert log(models)[-1]["model"] == "better" and log(models)[-1]["replaced"] == "good"


def test_a_kill_while_the_link_is_replaced_leaves_a_whole_one(models, monkeypatch):
    promote(models / "good", models=models)

    def killed(*arguments):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            promotion._point(models / "production", Path("better"))
    assert os.readlink(models / "production") == "good"
    assert not [path for path in models.iterdir() if path.name.startswith(".production")]
    (models / f".production.{os.getpid()}").symlink_to("left")  # by one that was killed outright
    promotion._point(models / "production", Path("better"))
    assert os.readlink(models / "production") == "better"


def test_links_that_cannot_be_are_explained(models, make_judged, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="is not inside .*models, so that"):
        promote(shutil.copytree(models / "good", tmp_path / "elsewhere"), models=models)

    def forbidden(*arguments, **kwargs):
        raise OSError(1314, "A required privilege is not held by the client")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", forbidden)
        with pytest.raises(InputError, match="on Windows, developer mode"):
            promote(models / "good", models=models)
    (models / "production").mkdir()
    with pytest.raises(InputError, match="is no link but a file or folder"):
        promote(models / "good", models=models)
    (models / "production").rmdir()
    (models / "production").symlink_to("gone")
    with pytest.raises(InputError, match="points to gone, which is not there"):
        promote(models / "good", models=models)


def test_weights_that_changed_in_place_are_noticed(models):
    promote(models / "good", models=models)
    path = models / "good" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "0" * 64}))
    with pytest.raises(InputError, match="trained again in its place"):
        promote(models / "better", models=models)
    with pytest.raises(InputError, match="not those of its manifest"):
        promote(models / "good", models=models)


def test_exit_codes_say_promoted_or_refused(models, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    main = importlib.import_module("promote").main
    assert main(["models/good"]) == 0
    assert main(["models/good"]) == 0 and "already" in capsys.readouterr().out
    assert main(["models/weak", "--max_class_loss", "1"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "models/weak is not promoted:" and len(lines) == 2
    assert "models/weak is worse than models/good" in lines[1]
    with pytest.raises(InputError, match="no manifest.json"):
        main(["models/none"])
