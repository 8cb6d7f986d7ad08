"""Papers that a model, or what it was started from, was trained on are not new to it."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nej import InputError
from nej.dataset import load_dataset
from nej.files import checksum
from nej.judging.lineage import lineage, papers_seen
from nej.manifest import origin, write_manifest
from nej.model import load_tokenizer
from nej.splits import positions
from nej.training import train

IDS = [f"abs-2001.{n:05}" for n in range(500)]
LABELS = [0, 1, 2, 3] * 5


def start_from(model_dir: Path, start: Path, sha256: str | None) -> None:
    """Rewrite what a model directory says that it was started from."""
    for name, change in (("training_config", {"model_name_or_path": str(start)}),
                         ("manifest", {"starting_checkpoint": {"sha256": sha256}})):
        path = model_dir / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))


def weights(model_dir: Path) -> str:
    """Return the checksum of the weights that the manifest names."""
    return json.loads((model_dir / "manifest.json").read_text())["weights_sha256"]


def test_papers_are_seen_that_the_split_rule_trains_or_chooses_on(make_judged):
    model = make_judged("a", LABELS, LABELS, test_fraction=0.2, validation_fraction=0.1)
    assert papers_seen(model, IDS) == sum(positions(IDS) >= 0.2)
    assert papers_seen(model, []) == 0


def test_the_chain_of_starting_checkpoints_is_walked_to_its_end(make_judged, tmp_path):
    old, middle, new = (make_judged(name, LABELS, LABELS) for name in ("old", "middle", "new"))
    plain = tmp_path / "models" / "starter"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    start_from(old, plain, None)
    start_from(middle, old, weights(old))
    start_from(new, middle, weights(middle))
    assert lineage(new) == [new, middle, old]
    shutil.rmtree(plain)  # the starter can be made again
    assert lineage(new) == [new, middle, old]


def test_a_chain_that_cannot_be_known_is_refused(make_judged):
    old, new = (make_judged(name, LABELS, LABELS) for name in ("old", "new"))
    start_from(new, old, "0" * 64)
    with pytest.raises(InputError, match="old, which holds another model now"):
        lineage(new)
    start_from(new, new, weights(new))  # trained on in its own place
    with pytest.raises(InputError, match="new, which holds another model now"):
        lineage(new)
    start_from(new, old, weights(old))
    shutil.rmtree(old)
    with pytest.raises(InputError, match="old, which is not there any more"):
        lineage(new)


def test_a_link_to_a_starting_checkpoint_may_lead_elsewhere_later(
        trained, make_config, tmp_path, monkeypatch):
    """As models/production does, once the model that was started from it is promoted."""
    monkeypatch.chdir(tmp_path)
    link = Path("production")
    link.symlink_to("model")
    config = make_config(top_k=3, max_steps=1, model_name_or_path=str(link), output_dir="new")
    made_from = origin(config)
    train(config, finish=lambda folder, result: write_manifest(folder, config, result, made_from))
    link.unlink()
    link.symlink_to("new")
    assert lineage(Path("new")) == [Path("new"), Path("model")]


def test_a_model_of_the_hub_is_no_lost_folder(make_judged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_judged("a", LABELS, LABELS, model_name_or_path="distilbert/distilbert-base")
    assert lineage(model) == [model]
    start_from(model, Path("models/gone"), None)
    with pytest.raises(InputError, match="not there any more"):
        lineage(model)


def test_a_split_by_date_is_known_from_the_data_alone(make_judged, make_config, tiny_model):
    config = make_config(top_k=3, validation_from="2019-01-01", test_from="2022-01-01")
    model = make_judged("a", LABELS, LABELS)
    shutil.copytree(tiny_model, model, dirs_exist_ok=True)
    (model / "training_config.json").write_text(json.dumps(asdict(config)))
    (model / "manifest.json").write_text(json.dumps(
        {"data": {"md5": checksum(Path(config.data_path), "md5")}}))
    dataset = load_dataset(config, load_tokenizer(tiny_model))
    ids = [*dataset["train"]["id"][:7], *dataset["validation"]["id"][:4], *dataset["test"]["id"]]
    assert papers_seen(model, ids) == 11
    (model / "training_config.json").write_text(json.dumps(asdict(
        replace(config, data_path="gone.csv"))))
    with pytest.raises(InputError, match="cannot be known: gone.csv is not there"):
        papers_seen(model, ids)
