"""Judge a model directory on its test papers, or on a file of papers, beside baselines."""

import csv
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from nej import InputError
from nej.baselines import baseline_predictions
from nej.config import AROUND
from nej.dataset import cache_folder, load_dataset
from nej.files import (
    CONFIG_FILE, checksum, explained_writes, read_manifest, replacing, write_csv, write_json,
)
from nej.judging.calibration import calibrate, judge_calibration
from nej.judging.card import write_card
from nej.judging.figures import draw_model
from nej.judging.judgement import COMPARED, judge, judge_classes, lead, precision_recall, verdict
from nej.judging.labelled import read_labelled
from nej.judging.mistakes import label_issues, mistakes, write_label_issues
from nej.judging.report import write_report
from nej.judging.slices import slices
from nej.metrics import Predictions, best_validation
from nej.predicting.drift import signals, write_reference
from nej.predicting.unknown_words import UnknownWords
from nej.prediction import Classifier, softmax

logger = logging.getLogger(__name__)

HEADLINE = ("accuracy", "macro_f1", "weighted_f1", "log_loss")


@dataclass(frozen=True)
class EvaluationReport:
    """What was found of a model on some papers, as metrics.json in `folder` has it."""

    folder: Path
    test: dict[str, Any]
    baselines: dict[str, dict[str, Any]]
    leads: dict[str, dict[str, Any]]  # over each baseline, and over another model

    @classmethod
    def load(cls, folder: Path) -> "EvaluationReport":
        """Read what `evaluate` wrote.

        Raises:
            InputError: the model was not judged yet.
        """
        try:
            metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
            return cls(folder, metrics["test"], metrics["baselines"], metrics["leads"])
        except (OSError, KeyError):
            raise InputError(f"{folder}: no test metrics there; judge the model with "
                             f"`python scripts/evaluate.py {folder}`") from None

    def table(self) -> str:
        """Return the headline as a text table, and whether the lead is more than noise."""
        judged = [(str(self.folder), self.test), *self.baselines.items()]
        wide = max(len(name) for name, _ in judged)
        lines = [f"On {self.test['papers']:,} test papers (in brackets 95 % intervals):",
                 f"{'':{wide}}  " + "".join(f"{title:<23}" for title in (
                     "macro F1", "accuracy", "weighted F1")).rstrip()]
        for name, found in judged:
            cells = [f"{found[key]:.3f} ({found['intervals'][key][0]:.3f}-"
                     f"{found['intervals'][key][1]:.3f})"
                     for key in ("macro_f1", "accuracy", "weighted_f1")]
            lines.append(f"{name:<{wide}}  " + "".join(f"{cell:<23}" for cell in cells).rstrip())
        return "\n".join([*lines, *(found["verdict"] for found in self.leads.values())])


def evaluate(model_dir: Path, *, data_path: Path | None = None, papers_path: Path | None = None,
             against: Path | None = None) -> EvaluationReport:
    """Judge a model and write down what was found.

    Writes into the model directory metrics.json, of it headline.json, calibration.json,
    predictions.csv, precision_recall.csv, embeddings.npy, mistakes.json, label_issues.csv,
    figures/, report.md, report.html, the model card README.md and reference.json, by which drift
    is seen. For papers that are given, all but the last two go to reports/<model>-on-<file>.

    Args:
        model_dir: what `train` made.
        data_path: the CSV, where it is not at the place that the model's config names.
        papers_path: judge on the papers of this CSV, JSON Lines or Parquet file instead, except
            those that the model was trained or chosen on.
        against: another model directory, judged on the same papers, to compare with; for papers
            that are given, the folder in which those of that model are.

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
    folder, kept = model_dir, cache_folder(config, classifier.tokenizer) / "baselines.json"
    columns: dict[str, list] = {}
    if papers_path is not None:
        seen = {*dataset["train"]["id"][:], *dataset["validation"]["id"][:]}
        dataset["test"], columns = read_labelled(papers_path, classifier, seen=seen)
        folder = Path(config.reports_dir) / f"{model_dir.name}-on-{papers_path.stem}"
        with explained_writes(folder):  # now, not after the work
            folder.mkdir(parents=True, exist_ok=True)
        read = json.dumps(dataset["test"]["text"][:])  # what baselines read; ids stay, texts change
        digest = hashlib.sha256(read.encode()).hexdigest()[:16]
        kept = kept.with_name(f"baselines-{digest}.json")
    test = dataset["test"]
    labels = {split: np.asarray(dataset[split]["label"][:]) for split in ("validation", "test")}
    validation = classifier.run(dataset["validation"], description="Predict validation")
    outputs = classifier.run(test, description="Predict test")
    calibration = calibrate(validation.logits, labels["validation"], names)
    classifier = replace(classifier, temperature=calibration["temperature"])
    raw, predictions = (
        Predictions(test["id"][:], labels["test"], softmax(outputs.logits, temperature), names)
        for temperature in (1.0, calibration["temperature"]))
    others = {name: np.asarray(classes)
              for name, classes in baseline_predictions(dataset, kept).items()}
    baselines = {name: judge_classes(classes, labels["test"], names=names)
                 for name, classes in others.items()}
    if against is not None:
        others[str(against)] = _predicted_by(against, predictions)
    suspects = label_issues(predictions)
    metrics: dict[str, Any] = {
        "validation": best_validation(json.loads(
            (model_dir / "trainer_state.json").read_text("utf-8"))["log_history"]),
        "test": judge(predictions), "baselines": baselines,
        "leads": {name: _lead(predictions, classes, model_dir, name)
                  for name, classes in others.items()},
        "slices": slices({name: test[name][:] for name in ("text", "truncated", "published")} | {
            "category_code": _codes(test)} | columns, predictions),
        "label_issues": {"issues": len(suspects.issues), "wrong_share": suspects.wrong_share,
                         "pairs": [asdict(pair) for pair in suspects.pairs]}}
    if "all_categories" in columns and config.label_column == "category_code":  # they are codes
        metrics["cross_lists"] = _agreement(predictions, columns["all_categories"])
    if papers_path is None:
        metrics["seeds"] = seeds(model_dir, metrics["test"])
    calibration["test"] = judge_calibration(calibration, raw, predictions)
    write_json(folder / "mistakes.json", mistakes(classifier, test, predictions))
    write_label_issues(folder / "label_issues.csv", suspects,
                       titles=dict(zip(test["id"][:], test["title"][:])))
    with replacing(folder / "embeddings.npy") as aside, open(aside, "wb") as handle:
        np.save(handle, outputs.embeddings.astype(np.float16))
    _write_predictions(folder / "predictions.csv", predictions)
    write_csv(folder / "precision_recall.csv", ("class", "recall", "precision"),
              precision_recall(predictions))
    write_json(folder / "calibration.json", calibration)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "headline.json", {
        name: {key: found[key] for key in HEADLINE if key in found}
        for name, found in (("test", metrics["test"]), *baselines.items())})
    if papers_path is None:
        write_card(model_dir)
        write_reference(model_dir, signals(
            test, outputs, names=names, temperature=calibration["temperature"],
            unknown_words=UnknownWords(classifier.tokenizer)))
    pictures = draw_model(model_dir, folder / "figures", judged_in=folder)
    write_report(folder, model_dir, pictures=pictures)
    return EvaluationReport.load(folder)


def seeds(model_dir: Path, test: dict[str, Any]) -> dict[str, Any] | None:
    """Return mean and standard deviation over the judged runs beside `model_dir` that differ from
    it in the seed only; None if there is no other.

    Args:
        test: the metrics of this model.
    """
    def settings(folder: Path) -> tuple[dict, str, int]:
        config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        md5 = read_manifest(folder)["data"]["md5"]
        seed = config["seed"]
        return {key: value for key, value in config.items()
                if key not in (*AROUND, "seed")}, md5, seed
    *wanted, seed = settings(model_dir)
    runs = {model_dir.name: {"seed": seed} | {key: test[key] for key in COMPARED}}
    for file in sorted(model_dir.parent.glob("*/metrics.json")):
        try:
            *found, seed = settings(file.parent)
            other = json.loads(file.read_text("utf-8"))["test"]
        except (OSError, KeyError, ValueError):
            continue  # unfinished, not judged, or no model
        if found == wanted and seed not in [run["seed"] for run in runs.values()]:
            runs[file.parent.name] = {"seed": seed} | {key: other[key] for key in COMPARED}
    if len(runs) < 2:
        return None
    values = {key: np.array([run[key] for run in runs.values()]) for key in COMPARED}
    return {"runs": runs, "mean": {key: float(v.mean()) for key, v in values.items()},
            "standard_deviation": {key: float(v.std(ddof=1)) for key, v in values.items()}}


def _lead(predictions: Predictions, other: np.ndarray, model_dir: Path, name: str
          ) -> dict[str, Any]:
    found: dict[str, Any] = lead(predictions.predicted, other, predictions.labels,
                                 num_classes=len(predictions.names))
    return found | {"verdict": verdict(model_dir.name, name, found, papers=len(other))}


def _predicted_by(other: Path, predictions: Predictions) -> np.ndarray:
    """Return the classes that another model directory's predictions.csv has, int64 (papers,).

    Raises:
        InputError: it was not judged, or not on these papers.
    """
    try:
        with open(other / "predictions.csv", encoding="utf-8", newline="") as file:
            classes = {row["id"]: row["predicted"] for row in csv.DictReader(file)}
    except OSError:
        raise InputError(f"{other}: no predictions.csv there; judge that model first, with "
                         f"`python scripts/evaluate.py {other}`") from None
    common = len(classes.keys() & set(predictions.ids))
    if not common == len(classes) == len(predictions.ids):
        remedy = "judge both on the same"
        if other.parent.name != "reports":
            remedy += f", and for --papers FILE name --against reports/{other.name}-on-FILE"
        raise InputError(f"{other} was judged on other papers: of its {len(classes):,}, {common:,} "
                         f"are among these {len(predictions.ids):,}; {remedy}")
    try:
        return np.array([predictions.names.index(classes[paper]) for paper in predictions.ids])
    except ValueError as error:
        raise InputError(f"{other} knows other classes: {error}") from None


def _agreement(predictions: Predictions, categories: Sequence[list[str]]) -> dict[str, Any]:
    """Return how many wrong answers name a category that the paper has as well."""
    wrong = np.flatnonzero(~predictions.right)
    listed = sum(predictions.names[predictions.predicted[row]] in categories[row]
                 for row in wrong.tolist())
    return {"papers": len(predictions.labels), "wrong": len(wrong), "wrong_but_listed": listed,
            "accuracy": float(predictions.right.mean()),
            "accuracy_any_listed": float((predictions.right.sum() + listed) / len(categories))}


def _codes(papers: datasets.Dataset) -> list[str]:
    names = papers.features["category_code"].names
    return [names[code] for code in papers["category_code"][:]]


def _write_predictions(target: Path, predictions: Predictions) -> None:
    """Write each paper's class, the one that it was given, and the probability and rank of both."""
    own = predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels]
    names = predictions.names
    write_csv(
        target, ("id", "actual", "predicted", "probability", "actual_probability", "actual_rank"),
        # the true class's with all digits, for the log loss of comparisons
        ((paper, names[label], names[given], f"{share:.6f}", actual, rank)
         for paper, label, given, share, actual, rank in zip(
             predictions.ids, predictions.labels, predictions.predicted, predictions.confidence,
             own.tolist(), predictions.rank)))


def _check_data(model_dir: Path, data: Path) -> None:
    """Raise InputError if the CSV is not the one that the model was trained on."""
    manifest = read_manifest(model_dir)
    if data.is_file():
        found, trained = checksum(data, "md5"), manifest["data"]["md5"]
        if found != trained:
            raise InputError(
                f"{data} has md5 {found}, but {model_dir} was trained on {trained}: its test "
                "papers may be other ones; go back to that version of the data")
