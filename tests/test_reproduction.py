"""What is said before a model is made again, and of one that came out another."""

import json
import subprocess
from contextlib import contextmanager

import pytest

from nej import InputError
from nej.experiments import reproduction


def test_an_environment_off_the_pins_is_told_before_the_training(tmp_path, monkeypatch, caplog):
    @contextmanager
    def work_tree(revision, folder, *, repository):
        folder.mkdir()
        (folder / "requirements.txt").write_text("numpy==0.0.1\n")
        yield folder

    def train(command, **options):
        assert "numpy 0.0.1 is pinned" in caplog.text
        return subprocess.CompletedProcess(command, 3)
    monkeypatch.setattr(reproduction, "work_tree", work_tree)
    monkeypatch.setattr(reproduction, "_find_data", lambda manifest, path, tree: path)
    monkeypatch.setattr(reproduction.subprocess, "run", train)
    (tmp_path / "manifest.json").write_text(json.dumps(
        {"git": {"commit": "f" * 40}, "processes": 1, "threads": 1}))
    (tmp_path / "training_config.json").write_text('{"data_path": "papers.csv"}')
    with pytest.raises(InputError, match="exit code 3"):
        reproduction.reproduce(tmp_path)


@pytest.mark.parametrize("accuracy, verdict", [(0.82, "is within ±0.0784"), (0.7, "is NOT within")])
def test_only_a_share_of_papers_has_an_interval_and_a_rough_one(tmp_path, accuracy, verdict):
    one, other = ({"weights_sha256": name, "git": {"dirty": False}, "papers": {"validation": 200},
                   "validation": {"accuracy": value, "macro_f1": 0.5}}
                  for name, value in (("a", 0.8), ("b", accuracy)))
    f1, share = reproduction._compare(tmp_path, one, tmp_path, other, []).differences
    assert f1 == "validation macro_f1: 0.5000 then, 0.5000 now"
    assert verdict in share and share.endswith("a rough 95 % interval of what chance does")
