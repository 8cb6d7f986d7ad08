"""Judge a model directory on its test papers, beside baselines fitted on the same split."""

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.metrics import log_loss
from tqdm import tqdm
from transformers import DistilBertForSequenceClassification

from nej import InputError
from nej.baselines import baseline_predictions
from nej.batching import collate
from nej.config import Config, load_config
from nej.dataset import cache_folder, load_dataset
from nej.device import use_bf16
from nej.files import CONFIG_FILE, checksum, replacing, write_csv, write_json
from nej.metrics import all_metrics, best_validation
from nej.model import load_classifier, load_tokenizer
from nej.packing import pack, packed_forward

logger = logging.getLogger(__name__)

BATCH_PAPERS = 32
HEADLINE = ("accuracy", "macro_f1", "weighted_f1", "log_loss")


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics of a model and of the baselines on the same papers, as metrics.json has them."""

    model_dir: Path
    test: dict[str, Any]
    baselines: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, model_dir: Path) -> "EvaluationReport":
        """Read what `evaluate` wrote.

        Raises:
            InputError: the model was not judged yet.
        """
        try:
            metrics = json.loads((model_dir / "metrics.json").read_text("utf-8"))
            return cls(model_dir, metrics["test"], metrics["baselines"])
        except (OSError, KeyError):
            raise InputError(f"{model_dir}: no test metrics there; judge the model with "
                             f"`python scripts/evaluate.py {model_dir}`") from None

    def table(self) -> str:
        """Return the headline as a text table."""
        rows = [("", "accuracy", "macro F1", "weighted F1")]
        rows += [(name, *(f"{metrics[key]:.3f}" for key in ("accuracy", "macro_f1", "weighted_f1")))
                 for name, metrics in [(str(self.model_dir), self.test), *self.baselines.items()]]
        wide = max(len(row[0]) for row in rows)
        lines = [f"{row[0]:<{wide}}  {row[1]:>8}  {row[2]:>8}  {row[3]:>11}" for row in rows]
        return "\n".join([f"On {self.test['papers']} test papers:", *lines])


def evaluate(model_dir: Path, *, data_path: Path | None = None) -> EvaluationReport:
    """Judge a model on the test papers of the data it was trained on, and write it down.

    Writes metrics.json, the figures that matter most of it as headline.json, calibration.json,
    predictions.csv (of the test papers) and the model card README.md into the directory.

    Args:
        model_dir: what `train` made.
        data_path: the CSV, where it is not at the place that the model's config names.

    Raises:
        InputError: no model there, no data, or other data than it was trained on.
    """
    config, names = _load_settings(model_dir, data_path)
    tokenizer = load_tokenizer(str(model_dir))
    dataset = load_dataset(config, tokenizer)
    if dataset["test"].features["label"].names != names:
        raise InputError(f"{config.data_path}: its categories "
                         f"{dataset['test'].features['label'].names} are not the model's {names}; "
                         "name the data that the model was trained on")
    device = "cuda" if torch.cuda.is_available() and not config.use_cpu else "cpu"
    model = load_classifier(str(model_dir)).eval().to(device)
    logits = {split: predict_logits(model, dataset[split], pad_token_id=tokenizer.pad_token_id,
                                    bf16=use_bf16(config, device))
              for split in ("validation", "test")}
    labels = {split: np.asarray(dataset[split]["label"]) for split in logits}
    temperature = fit_temperature(logits["validation"], labels["validation"])
    test = all_metrics(logits["test"].argmax(-1), labels["test"], names=names)
    test["log_loss"] = _log_loss(logits["test"], labels["test"], temperature)
    baselines = {name: all_metrics(np.asarray(predictions), labels["test"], names=names)
                 for name, predictions in
                 baseline_predictions(dataset, cache_folder(config, tokenizer)).items()}
    state = json.loads((model_dir / "trainer_state.json").read_text("utf-8"))
    write_json(model_dir / "metrics.json", {
        "validation": best_validation(state["log_history"]), "test": test, "baselines": baselines})
    write_json(model_dir / "headline.json", {
        name: {key: found[key] for key in HEADLINE if key in found}
        for name, found in (("test", test), *baselines.items())})
    _write_predictions(model_dir / "predictions.csv", dataset["test"]["id"][:], labels["test"],
                       _probabilities(logits["test"], temperature), names)
    write_json(model_dir / "calibration.json", {
        "temperature": temperature, "validation_papers": len(labels["validation"]),
        "validation_log_loss": {
            "before": _log_loss(logits["validation"], labels["validation"], 1.0),
            "after": _log_loss(logits["validation"], labels["validation"], temperature)}})
    write_card(model_dir)
    return EvaluationReport(model_dir, test, baselines)


def write_card(model_dir: Path) -> None:
    """Write the model card README.md from the files in the model directory."""
    parts = {name: json.loads((model_dir / f"{name}.json").read_text("utf-8"))
             for name in ("training_config", "manifest", "metrics", "config")}
    config, manifest, metrics = (parts[n] for n in ("training_config", "manifest", "metrics"))
    rows = [("validation papers", metrics["validation"])]
    if "test" in metrics:
        rows.append(("**test papers**", metrics["test"]))
        rows += [(f"test papers, {name}", found) for name, found in metrics["baselines"].items()]
    table = "\n".join(f"| {name} | {found['accuracy']:.3f} | {found['macro_f1']:.3f} |"
                      for name, found in rows)
    classes = ", ".join(parts["config"]["id2label"].values())
    papers = manifest["papers"]
    chosen = ("the hash of their id" if config["test_from"] is None else
              f"their date of publication, from {config['test_from']} on")
    since = " since the run was last resumed" if manifest["resumed"] else ""
    card = f"""---
library_name: transformers
pipeline_tag: text-classification
base_model: {config['model_name_or_path']}
---
# {Path(config['output_dir']).name}

A DistilBERT that sorts arXiv papers into {len(parts['config']['id2label'])} categories by their
{config['text_fields'].replace('+', ' and ')}: {classes}.

| measured on | accuracy | macro F1 |
|---|---|---|
{table}

- Made from `{config['model_name_or_path']}` with {papers['train']:,} papers of
  `{config['data_path']}` (md5 {manifest['data']['md5']}), {manifest['steps']:,} optimizer steps,
  {manifest['training_seconds'] / 60:.1f} minutes on {manifest['device']}{since}.
- It reads the first {config['max_length']} tokens. Test papers: {papers['test']:,}, chosen by
  {chosen}.
- All settings are in `training_config.json`; what made the model is in `manifest.json`. To make it
  again: check out the commit named there, then
  `python scripts/train.py --config training_config.json`.
- Categories overlap (a paper of cs.LG may as well be one of stat.ML), and a paper of a category
  that is not listed gets one that is.
"""
    with replacing(model_dir / "README.md") as aside:
        aside.write_text(card, "utf-8")


def predict_logits(model: DistilBertForSequenceClassification, papers: datasets.Dataset, *,
                   pad_token_id: int, bf16: bool) -> np.ndarray:
    """Return the logits of tokenized papers, float32 (papers, classes), in their order.

    Papers of like length share a batch. The model computes where it is, in bfloat16 if wanted; on
    a CPU without padding.
    """
    device = model.device
    put_together, forward = collate, model
    if device.type == "cpu":
        put_together, forward = pack, partial(packed_forward, model)
    order = np.argsort(-np.asarray(papers["length"]), kind="stable")
    columns = papers.select_columns(["input_ids", "label"])
    logits = np.empty((len(papers), model.config.num_labels), dtype=np.float32)
    starts = range(0, len(order), BATCH_PAPERS)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for start in tqdm(starts, desc="Predict", disable=None):
            rows = order[start:start + BATCH_PAPERS]
            batch = put_together([columns[int(row)] for row in rows], pad_token_id=pad_token_id)
            del batch["labels"]
            output = forward(**{name: tensor.to(device) for name, tensor in batch.items()})
            logits[rows] = output.logits.float().cpu().numpy()
    return logits


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that makes softmax(logits / temperature) fit the labels best.

    It minimizes the log loss (Guo et al., 2017, On Calibration of Modern Neural Networks).
    Where the labels are too few to say, it stays between 0.1 and 10.
    """
    from scipy.optimize import minimize_scalar
    found = minimize_scalar(lambda log_t: _log_loss(logits, labels, float(np.exp(log_t))),
                            bounds=(np.log(0.1), np.log(10)), method="bounded")
    return float(np.exp(found.x))


def _log_loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(log_loss(labels, _probabilities(logits, temperature),
                          labels=range(logits.shape[1])))


def _probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    return torch.from_numpy(logits / temperature).double().softmax(-1).numpy()


def _write_predictions(target: Path, ids: list[str], labels: np.ndarray, probabilities: np.ndarray,
                       names: list[str]) -> None:
    """Write each paper's class, the one that it was given, and the probability of that."""
    write_csv(target, ("id", "actual", "predicted", "probability"), (
        (paper, names[label], names[given], f"{share:.4f}") for paper, label, given, share in
        zip(ids, labels, probabilities.argmax(1), probabilities.max(1))))


def _load_settings(model_dir: Path, data_path: Path | None) -> tuple[Config, list[str]]:
    """Return the model's config, with the data's place mended, and its class names."""
    if not (model_dir / "manifest.json").exists():
        raise InputError(f"{model_dir} is not a finished model directory: no manifest.json in it; "
                         "train one with scripts/train.py, or name another")
    moved = [] if data_path is None else ["--data_path", str(data_path)]
    config = load_config(model_dir / CONFIG_FILE, moved)
    manifest = json.loads((model_dir / "manifest.json").read_text("utf-8"))
    if Path(config.data_path).is_file():
        found, trained = checksum(Path(config.data_path), "md5"), manifest["data"]["md5"]
        if found != trained:
            raise InputError(
                f"{config.data_path} has md5 {found}, but {model_dir} was trained on {trained}: "
                "its test papers may be other ones; go back to that version of the data")
    labels = json.loads((model_dir / "config.json").read_text("utf-8"))["id2label"]
    return config, [labels[str(index)] for index in range(len(labels))]
