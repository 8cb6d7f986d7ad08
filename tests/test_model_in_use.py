"""Another model is taken into use without a request lost; what is no sound model is not."""

import asyncio
import json
import logging
import pickle
import shutil
import threading

import pytest

from nej import InputError
from nej.files import write_json
from nej.judging.promotion import _point
from nej.predicting.backends import backend_name
from nej.prediction import Classifier, keep_in_bf16
from nej.web.model_in_use import ModelInUse, ServedModel, category_names
from nej.web.schemas import Paper
from nej.web.service import Service
from nej.web.serving import Settings
from nej.web.signals import Signals
from scripts.make_sample import generate

PAPERS = [Paper(title=paper["title"], summary=paper["summary"]) for paper in generate(8, 11)]


@pytest.fixture(scope="module")
def models(make_served, tmp_path_factory):
    """Return a folder with two models."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("old", "new")):
        make_served(folder / name, seed=seed)
    return folder


@pytest.fixture
def production(models, tmp_path, monkeypatch):
    """Return a link to the old model, looked at twenty times a second."""
    monkeypatch.setattr("nej.web.model_in_use.WATCH_SECONDS", 0.05)
    link = tmp_path / "production"
    link.symlink_to(models / "old")
    return link


async def forever():
    """Stand in for a client that stays."""
    await asyncio.Event().wait()


def test_a_moved_link_changes_the_model_under_load_without_a_request_lost(models, production):
    service = Service(Settings(model=production))
    expected = {name: Classifier.load(models / name).probabilities(
        [paper.summary for paper in PAPERS], [paper.title for paper in PAPERS]).max(1)
        for name in ("old", "new")}
    answers = []

    async def client(number: int):
        after = 0
        while after < 3:  # answers of the new one
            found = await service.predict([PAPERS[number]], top_k=1, disconnected=forever)
            answers.append((number, found))
            after += found.model == "new"

    async def load():
        watching = asyncio.create_task(service.model.watch())
        clients = [asyncio.create_task(client(number)) for number in range(len(PAPERS))]
        while len(answers) < 16:
            await asyncio.sleep(0.01)
        _point(production, models / "new")
        await asyncio.wait_for(asyncio.gather(*clients), 30)
        watching.cancel()
    asyncio.run(load())
    service.close()
    names = [found.model for _, found in answers]
    assert names.count("old") >= 16 and names.count("new") == 24
    for number, found in answers:
        assert found.predictions[0].categories[0].probability == pytest.approx(
            expected[found.model][number], abs=1e-5)
    text = service.signals.text().decode()
    assert 'nej_model{name="old"' in text and 'nej_model_loads_total{outcome="used"} 2.0' in text
    assert [line[-3:] for line in text.splitlines() if line.startswith("nej_model{")] == [
        "0.0", "1.0"]


def test_only_the_models_thread_keeps_what_computing_needs(production, monkeypatch):
    """Helpers of another thread that has computed would slow the model's down, for good."""
    loaded_in = []
    usual = ServedModel.load

    def load(*args):
        loaded_in.append(threading.current_thread())
        return usual(*args)
    monkeypatch.setattr(ServedModel, "load", load)
    in_use = ModelInUse(production, wanted_accuracy=None, signals=Signals())
    assert asyncio.run(in_use.reload())
    assert len(loaded_in) == 2 and threading.main_thread() not in loaded_in
    assert not any(thread.is_alive() for thread in loaded_in)


def test_a_broken_model_is_not_taken_and_the_old_one_goes_on(models, production, tmp_path, caplog):
    broken = tmp_path / "broken"
    broken.mkdir()
    model = ModelInUse(production, wanted_accuracy=0.9, signals=Signals())
    for file in (models / "new").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(weights)

    async def replace():
        watching = asyncio.create_task(model.watch())
        _point(production, broken)
        while "cannot be taken into use" not in caplog.text:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # it is not tried again and again
        watching.cancel()
    with caplog.at_level(logging.INFO):
        asyncio.run(asyncio.wait_for(replace(), 30))
    assert model.current.name == "old"
    assert caplog.text.count("cannot be taken into use") == 1
    assert "not those of its manifest" in caplog.text and "version" in caplog.text
    assert 'nej_model_loads_total{outcome="refused"} 1.0' in model.signals.text().decode()


@pytest.mark.parametrize("last", ["model.safetensors", "tokenizer.json", "calibration.json"])
def test_a_model_that_is_copied_slowly_is_taken_when_it_is_whole(
        models, production, tmp_path, caplog, last):
    copy, whole = tmp_path / "copy", (models / "new" / last).read_bytes()
    shutil.copytree(models / "new", copy)
    (copy / last).write_bytes(whole[:-30])
    model = ModelInUse(production, wanted_accuracy=0.9, signals=Signals())

    async def replace():
        watching = asyncio.create_task(model.watch())
        _point(production, copy)
        while "cannot be taken into use" not in caplog.text:
            await asyncio.sleep(0.01)
        (copy / last).write_bytes(whole)
        while model.current.name == "old":
            await asyncio.sleep(0.01)
        watching.cancel()
    asyncio.run(asyncio.wait_for(replace(), 15))
    assert model.current.name == "copy"


def test_a_link_to_nothing_is_waited_for(models, production):
    model = ModelInUse(production, wanted_accuracy=None, signals=Signals())

    async def replace():
        watching = asyncio.create_task(model.watch())
        production.unlink()
        await asyncio.sleep(0.2)
        production.symlink_to(models / "new")
        while model.current.name == "old":
            await asyncio.sleep(0.01)
        watching.cancel()
    asyncio.run(asyncio.wait_for(replace(), 30))
    assert model.current.threshold is None


def test_a_back_end_that_is_asked_for_must_be_there(make_served, tmp_path):
    folder = make_served(tmp_path / "model")
    assert backend_name(ServedModel.load(folder, None, "torch").classifier) == "torch"
    with pytest.raises(InputError, match="make export"):
        ServedModel.load(folder, None, "openvino")


def test_weights_that_need_pickle_are_not_looked_at(make_served, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")
    folder = make_served(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.bin", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="no model.safetensors"):
        ServedModel.load(folder, None)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((folder / "model.bin").read_bytes())  # it is a trap
    assert (tmp_path / "sprung").exists()


def test_a_model_without_thresholds_does_not_abstain_and_says_so(make_served, tmp_path, caplog):
    folder = make_served(tmp_path / "model")
    for calibration in ({"temperature": 1.0}, {"temperature": 1.0, "thresholds": {"0.9": None}}):
        write_json(folder / "calibration.json", calibration)
        assert ServedModel.load(folder, 0.9).threshold is None
        assert "has no threshold for an accuracy of 0.9" in caplog.text
        caplog.clear()
    write_json(folder / "calibration.json", {"thresholds": {"0.85": 0.5, "0.9": 0.6}})
    assert ServedModel.load(folder, 0.85).threshold == 0.5
    assert ServedModel.load(folder, None).threshold is None
    assert caplog.text == ""


def test_weights_rounded_once_give_the_same_logits(models):
    from dataclasses import replace

    import torch
    classifier = replace(Classifier.load(models / "old"), bf16=True)
    papers = classifier.read([paper.summary for paper in PAPERS])
    before = classifier.run(papers)
    keep_in_bf16(classifier)
    assert (classifier.run(papers).logits == before.logits).all()
    assert classifier.model.classifier.weight.dtype == torch.bfloat16
    exact = Classifier.load(models / "old")
    keep_in_bf16(exact)
    assert exact.model.classifier.weight.dtype == torch.float32


def test_the_categories_of_the_sample_have_names():
    names = category_names()
    for paper in generate(50, 1):
        assert paper["category_code"] in names
    assert len(names) > 150 and json.dumps(names)


def test_a_class_that_arxiv_does_not_have_is_its_own_name(models):
    assert ServedModel.load(models / "old", None).name_of("Other") == "Other"
