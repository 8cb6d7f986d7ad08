"""What all tests share: no network, one thread, a tiny model and a small file of papers."""

import os
import tempfile

# before the libraries read them
os.environ |= {
    "HF_HOME": tempfile.mkdtemp(prefix="nej-tests-"), "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
for name in ("HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "WANDB_API_KEY"):
    os.environ.pop(name, None)

import re  # noqa: E402
import shutil  # noqa: E402
from collections import Counter  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

from nej.config import Config, load_config  # noqa: E402
from scripts.make_sample import generate, write_csv  # noqa: E402

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _clean_up():
    yield
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def papers_csv(tmp_path_factory) -> Path:
    """Return a CSV of 600 synthetic papers of eight categories."""
    path = tmp_path_factory.mktemp("data") / "papers.csv"
    write_csv(path, 600, 7)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Return a folder with a random DistilBERT, 32 wide and 2 layers deep, and its tokenizer."""
    from transformers import BertTokenizer, DistilBertConfig, DistilBertModel
    folder = tmp_path_factory.mktemp("tiny")
    words = Counter()
    for row in generate(300, 7):
        words.update(re.findall(r"[a-z]+", row["summary"].lower()))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ","]
    vocabulary += dict.fromkeys(["image", "robot", *(word for word, _ in words.most_common(800))])
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    torch.manual_seed(0)
    DistilBertModel(DistilBertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=64, dim=32, n_layers=2, n_heads=2,
        hidden_dim=64)).save_pretrained(folder)
    BertTokenizer(
        vocab=str(folder / "vocab.txt"), do_lower_case=True, model_max_length=64,
        model_input_names=["input_ids", "attention_mask"]).save_pretrained(folder)
    return str(folder)


def _small_run(papers_csv: Path, tiny_model: str, folder: Path):
    """Return the Config of a run of seconds that writes into a folder."""
    return replace(
        load_config(), data_path=str(papers_csv), model_name_or_path=tiny_model, max_length=32,
        output_dir=str(folder / "model"), reports_dir=str(folder / "reports"),
        report_to="none", num_train_epochs=2.0, learning_rate=1e-3, eval_steps=0.25, bf16=False)


@pytest.fixture
def make_config(papers_csv, tiny_model, tmp_path):
    """Return a function that makes a small run's Config; its arguments override keys."""
    base = _small_run(papers_csv, tiny_model, tmp_path)

    def make(**overrides) -> Config:
        return replace(base, **overrides)
    return make


@pytest.fixture(scope="session")
def _trained_once(papers_csv, tiny_model, tmp_path_factory) -> Path:
    from nej.judging.card import write_card
    from nej.manifest import origin, write_manifest
    from nej.training import train
    config = replace(_small_run(papers_csv, tiny_model, tmp_path_factory.mktemp("trained")),
                     top_k=3, num_train_epochs=1)

    def finish(folder, result):
        write_manifest(folder, config, result, origin(config))
        write_card(folder)
    return train(config, finish=finish).model_dir


@pytest.fixture(scope="session")
def _judged_once(_trained_once, tmp_path_factory) -> Path:
    from nej.judging.evaluation import evaluate
    folder = tmp_path_factory.mktemp("judged") / "model"
    shutil.copytree(_trained_once, folder)
    evaluate(folder)
    return folder


@pytest.fixture
def trained(_trained_once, tmp_path) -> tuple[Config, Path]:
    """Return the config and the directory of a short run, not judged yet: a copy of its own."""
    return (load_config(_trained_once / "training_config.json"),
            Path(shutil.copytree(_trained_once, tmp_path / "model")))


@pytest.fixture
def judged(_trained_once, _judged_once, tmp_path) -> tuple[Config, Path]:
    """Return the same run after it was judged."""
    return (load_config(_trained_once / "training_config.json"),
            Path(shutil.copytree(_judged_once, tmp_path / "model")))


@pytest.fixture
def make_judged(tmp_path):
    """Return a function that writes a model directory as judging leaves it, with no real model.

    Its papers are test papers where test_fraction is 0.1.
    """
    from hashlib import sha256

    from nej.files import write_csv, write_json
    from nej.splits import positions
    classes = ("cs.AI", "cs.CL", "cs.CV", "cs.LG")

    def make(name, labels, predicted, *, probability=0.8, names=classes, ids=None, baseline=0.3,
             **config) -> Path:
        """Each paper's own class has `probability` if it is predicted, else half and rank 2."""
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        if ids is None:
            ids = [i for i in (f"abs-2001.{n:05}" for n in range(40 * len(labels)))
                   if positions([i])[0] < 0.1][:len(labels)]
        (folder / "model.safetensors").write_bytes(sha256(name.encode()).digest())
        write_json(folder / "config.json", {"id2label": dict(enumerate(names))})
        write_json(folder / "training_config.json", {
            "model_name_or_path": "distilbert-base-uncased", "test_from": None,
            "test_fraction": 0.1, "validation_fraction": 0.1} | config)
        write_json(folder / "manifest.json", {
            "weights_sha256": sha256(sha256(name.encode()).digest()).hexdigest(),
            "starting_checkpoint": {"sha256": None}, "data": {"md5": "1234"},
            "git": {"commit": "abcd"}})
        right = [a == b for a, b in zip(labels, predicted)]
        write_json(folder / "metrics.json", {
            "test": {"macro_f1": sum(right) / len(right)},
            "leads": {}, "baselines": {"majority class": {"macro_f1": 0.1},
                                       "TF-IDF + LinearSVC": {"macro_f1": baseline}}})
        write_json(folder / "calibration.json", {"temperature": 1.25})
        write_csv(folder / "predictions.csv", (
            "id", "actual", "predicted", "probability", "actual_probability", "actual_rank"), (
                (i, names[a], names[b], probability, probability if hit else probability / 2,
                 1 if hit else 2)
                for i, a, b, hit in zip(ids, labels, predicted, right)))
        return folder
    return make


@pytest.fixture(scope="session")
def make_served(tiny_model):
    """Return a function that makes a model directory which can be served, its weights random.

    Different seeds give different weights; the model reads titles and summaries, 64 tokens.
    """
    from dataclasses import asdict

    from transformers import DistilBertForSequenceClassification

    from nej.files import CONFIG_FILE, checksum, write_json
    from nej.model import load_tokenizer
    classes = ("cs.CL", "cs.CV", "cs.LG", "cs.RO")

    def make(folder: Path, *, seed: int = 0, threshold: float | None = 0.26) -> Path:
        torch.manual_seed(seed)
        model = DistilBertForSequenceClassification.from_pretrained(
            tiny_model, num_labels=len(classes), id2label=dict(enumerate(classes)),
            label2id={name: index for index, name in enumerate(classes)})
        with torch.no_grad():  # else all papers would be answered alike
            for weights in model.parameters():
                weights.mul_(8 if weights.dim() == 2 else 1)
        model.save_pretrained(folder)
        load_tokenizer(tiny_model).save_pretrained(folder)
        write_json(folder / CONFIG_FILE, asdict(replace(
            load_config(), text_fields="title+summary", max_length=64, use_cpu=True, bf16=False)))
        write_json(folder / "calibration.json", {
            "temperature": 1.25, "thresholds": {"0.9": threshold}})
        write_json(folder / "metrics.json", {"test": {"papers": 400, "accuracy": 0.8,
                                                      "macro_f1": 0.75}})
        (folder / "README.md").write_text("# The card\n", "utf-8")
        write_json(folder / "manifest.json", {
            "weights_sha256": checksum(folder / "model.safetensors"), "git": {"commit": "abcd"},
            "finished": "2026-11-24T12:00:00+00:00",
            "papers": {"train": 3200, "validation": 400, "test": 400},
            "data": {"path": "data/sample.csv", "md5": "1234", "dvc_revision": None}})
        return folder
    return make


@pytest.fixture(scope="session")
def served_model(make_served, tmp_path_factory) -> Path:
    """Return a model directory that can be served."""
    return make_served(tmp_path_factory.mktemp("served") / "tiny")
