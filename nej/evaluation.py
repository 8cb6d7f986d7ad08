"""Judge a model directory on its test papers, beside baselines fitted on the same split."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import log_loss

from nej import InputError
from nej.baselines import baseline_predictions
from nej.dataset import cache_folder, load_dataset
from nej.files import checksum, replacing, write_csv, write_json
from nej.metrics import all_metrics, best_validation
from nej.prediction import Classifier, softmax

logger = logging.getLogger(__name__)

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
    classifier = Classifier.load(model_dir)
    config, names = classifier.config, classifier.names
    if data_path is not None:
        config = replace(config, data_path=str(data_path))
    _check_data(model_dir, Path(config.data_path))
    dataset = load_dataset(config, classifier.tokenizer)
    if dataset["test"].features["label"].names != names:
        raise InputError(f"{config.data_path}: its categories "
                         f"{dataset['test'].features['label'].names} are not the model's {names}; "
                         "name the data that the model was trained on")
    outputs = {split: classifier.run(dataset[split]) for split in ("validation", "test")}
    logits = {split: output.logits for split, output in outputs.items()}
    labels = {split: np.asarray(dataset[split]["label"]) for split in logits}
    temperature = fit_temperature(logits["validation"], labels["validation"])
    test = all_metrics(logits["test"].argmax(-1), labels["test"], names=names)
    test["log_loss"] = _log_loss(logits["test"], labels["test"], temperature)
    baselines = {name: all_metrics(np.asarray(predictions), labels["test"], names=names)
                 for name, predictions in
                 baseline_predictions(dataset, cache_folder(config, classifier.tokenizer)).items()}
    state = json.loads((model_dir / "trainer_state.json").read_text("utf-8"))
    write_json(model_dir / "metrics.json", {
        "validation": best_validation(state["log_history"]), "test": test, "baselines": baselines})
    write_json(model_dir / "headline.json", {
        name: {key: found[key] for key in HEADLINE if key in found}
        for name, found in (("test", test), *baselines.items())})
    _write_predictions(model_dir / "predictions.csv", dataset["test"]["id"][:], labels["test"],
                       softmax(logits["test"], temperature), names)
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
    return float(log_loss(labels, softmax(logits, temperature),
                          labels=range(logits.shape[1])))


def _write_predictions(target: Path, ids: list[str], labels: np.ndarray, probabilities: np.ndarray,
                       names: list[str]) -> None:
    """Write each paper's class, the one that it was given, and the probability of that."""
    write_csv(target, ("id", "actual", "predicted", "probability"), (
        (paper, names[label], names[given], f"{share:.4f}") for paper, label, given, share in
        zip(ids, labels, probabilities.argmax(1), probabilities.max(1))))


def _check_data(model_dir: Path, data: Path) -> None:
    """Raise InputError if the CSV is not the one that the model was trained on."""
    manifest = json.loads((model_dir / "manifest.json").read_text("utf-8"))
    if data.is_file():
        found, trained = checksum(data, "md5"), manifest["data"]["md5"]
        if found != trained:
            raise InputError(
                f"{data} has md5 {found}, but {model_dir} was trained on {trained}: its test "
                "papers may be other ones; go back to that version of the data")
