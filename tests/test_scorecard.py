"""Two models side by side: tables that line up, sizes and speeds that were measured."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from nej.judging.comparison import compare
from nej.judging.lineage import own_dataset
from nej.judging.scorecard import markdown, measure_speed, size, text
from nej.manifest import origin, write_manifest
from nej.training import train


@pytest.fixture
def pair(make_judged):
    """Return two models with weights of 3 x 4 and 5 parameters, and classes with a bar."""
    labels = np.arange(60) % 3
    folders = [make_judged(name, labels.tolist(), predicted.tolist(), names=("a", "b|c", "d"))
               for name, predicted in (("old", labels // 2), ("new", labels))]
    for folder in folders:
        save_file({"x": np.zeros((3, 4), np.float32), "y": np.zeros(5, np.float32)},
                  folder / "model.safetensors")
    return folders


def test_size_counts_every_parameter(pair):
    parameters, mib = size(pair[0])
    assert parameters == 17
    assert mib == (pair[0] / "model.safetensors").stat().st_size / 2**20


def test_columns_line_up_and_the_verdict_is_last(pair):
    found = compare(*pair)
    parts = text(found, [10.4, 1234.5]).split("\n\n")
    for table in parts[1:4]:
        assert len({len(line) for line in table.splitlines()}) == 1
    assert "beyond noise" in parts[1].splitlines()[0]
    assert parts[3].splitlines()[-1].split() == ["papers/s,", "roughly", "10", "1,234"]
    assert parts[-1] == found.sentence()
    assert "papers/s" not in text(found)


def test_markdown_tables_have_as_many_cells_in_each_row(pair):
    found = compare(*pair)
    parts = markdown(found).split("\n\n")
    assert parts[1] == f"**{found.sentence()}**"
    for table in parts[2:5]:
        lines = table.replace(r"\|", "").splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert lines[1].startswith("| --- | --: |")
    assert r"| b\|c | 20 |" in parts[3]


def test_no_change_has_no_sign_of_a_loss(pair):
    assert "-0.0000" not in text(compare(pair[0], pair[0])) + text(compare(*pair[::-1]))


def test_speed_is_measured_over_the_same_papers(make_config, monkeypatch):
    from nej.prediction import Classifier
    config = make_config(top_k=3, max_steps=1)

    def finish(folder, result):
        write_manifest(folder, config, result, origin(config))
    model = train(config, finish=finish).model_dir
    ran, run = [], Classifier.run

    def recorded(classifier, papers, **kwargs):
        ran.append([paper["input_ids"] for paper in papers])
        return run(classifier, papers, **kwargs)
    monkeypatch.setattr(Classifier, "run", recorded)
    speeds = measure_speed([model, model], seconds=0.2)
    assert len(speeds) == 2 and all(np.isfinite(speeds)) and min(speeds) > 0
    assert ran[-4:] == [ran[-1]] * 4 and len(ran[-1]) <= len(own_dataset(model)["test"])
