"""What a W&B run tells of its model: test metrics, tables, curves, pictures, and where from."""

import csv
import json
import re
from pathlib import Path
from typing import Any

from nej.fields import arxiv_link
from nej.files import read_manifest

TRIAL = "trial"  # job type of the runs of a search without W&B's server
MOST_ROWS = 10_000  # that W&B shows of a table


def log_data(run: Any, origin: dict[str, Any]) -> None:
    """Name the data as an input of the run: an artifact that refers to the file, by its checksum.

    Args:
        origin: what manifest.origin returns.
    """
    import wandb
    data = origin["data"]
    path = Path(data["path"]).resolve()
    artifact = wandb.Artifact(_name(f"data-{path.stem}"), type="dataset", metadata=data)
    artifact.add_reference(path.as_uri(), name=path.name)
    # run.use_artifact does this, and refuses to do it offline
    run._log_artifact(artifact, use_after_commit=True)


def log_model(run: Any, model_dir: Path) -> None:
    """Add the model directory as an output of the run, with its manifest.

    Trials of a sweep are many, and models large: of those the weights are referred to only.
    """
    import wandb
    manifest = read_manifest(model_dir)
    artifact = wandb.Artifact(_name(f"model-{model_dir.name}"), type="model", metadata=manifest)
    for file in sorted(path for path in model_dir.rglob("*") if path.is_file()):
        name = file.relative_to(model_dir).as_posix()
        weights = file.suffix == ".safetensors"
        if weights and (run.sweep_id or run.job_type == TRIAL):
            artifact.add_reference(file.resolve().as_uri(), name=name)
        else:  # "mutable" would copy the weights first
            artifact.add_file(str(file), name, policy="immutable" if weights else "mutable")
    run.log_artifact(artifact)


def log_judgement(run: Any, model_dir: Path, *, step: int) -> None:
    """Log what judging found: metrics into the summary, the rest as one row, at `step`.

    Of a model that was not judged there are the validation metrics alone.
    """
    import wandb
    metrics = json.loads((model_dir / "metrics.json").read_text("utf-8"))
    run.summary.update({f"validation/{key}": value
                        for key, value in metrics["validation"].items()})
    if "test" not in metrics:
        return
    run.summary.update(summary(metrics))
    rows = {"per_class": per_class(metrics["test"]),
            "confusion_matrix": confusion(metrics["test"]),
            "misclassified": misclassified(model_dir / "predictions.csv"),
            "surest_mistakes": surest_mistakes(model_dir / "mistakes.json")}
    shown: dict[str, Any] = {name: wandb.Table(columns=list(columns), data=data)
                             for name, (columns, data) in rows.items()}
    counts = shown.pop("confusion_matrix")
    shown["confusion_matrix"] = wandb.plot_table(
        "wandb/confusion_matrix/v1", counts, {name: name for name in counts.columns},
        {"title": "Confusion matrix of the test papers"})
    with open(model_dir / "precision_recall.csv", encoding="utf-8", newline="") as file:
        curves = [[row["class"], float(row["recall"]), float(row["precision"])]
                  for row in csv.DictReader(file)]
    shown["precision_recall"] = wandb.plot_table(
        "wandb/area-under-curve/v0",
        wandb.Table(columns=["class", "recall", "precision"],
                    data=curves[::1 + len(curves) // MOST_ROWS]),
        {"x": "recall", "y": "precision", "class": "class"},
        {"title": "Precision over recall", "x-axis-title": "recall", "y-axis-title": "precision"})
    for picture in sorted((model_dir / "figures").glob("*.png")):
        shown[f"figures/{picture.stem}"] = wandb.Image(str(picture))
    run.log({f"test/{name}": value for name, value in shown.items()}, step=step, commit=True)


def summary(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return test metrics with the ends of their intervals, the baselines' and the verdicts."""
    test = metrics["test"]
    found = {f"test/{key}": value for key, value in test.items()
             if isinstance(value, (int, float))}
    for key, bounds in test["intervals"].items():
        found |= {f"test/{key}_low": bounds[0], f"test/{key}_high": bounds[1]}
    for name, judged in metrics["baselines"].items():
        found |= {f"baselines/{name}/{key}": judged[key] for key in ("accuracy", "macro_f1")}
    return found | {f"verdicts/{name}": lead["verdict"] for name, lead in metrics["leads"].items()}


Rows = tuple[tuple[str, ...], list[list[Any]]]  # columns, and rows of values


def per_class(test: dict[str, Any]) -> Rows:
    """Return precision, recall and F1 of each class, with the ends of their intervals."""
    figures = ("precision", "recall", "f1")
    columns = ("class", "papers", *(f"{figure}{end}" for figure in figures
                                    for end in ("", "_low", "_high")))
    return columns, [
        [name, found["support"], *(value for figure in figures for value in (
            found[figure], *(found["intervals"][figure] or (None, None))))]
        for name, found in test["per_class"].items()]


def confusion(test: dict[str, Any]) -> Rows:
    """Return how often which class was taken for which; of many classes what happened only."""
    names, counts = list(test["per_class"]), test["confusion_matrix"]
    rows = [[actual, predicted, count] for actual, line in zip(names, counts)
            for predicted, count in zip(names, line)]
    if len(rows) > MOST_ROWS:
        rows = sorted((row for row in rows if row[2]), key=lambda row: -row[2])[:MOST_ROWS]
    return ("Actual", "Predicted", "nPredictions"), rows


def misclassified(predictions: Path) -> Rows:
    """Return the papers of predictions.csv that are wrong, the surest first."""
    with open(predictions, encoding="utf-8", newline="") as file:
        wrong = [row for row in csv.DictReader(file) if row["actual"] != row["predicted"]]
    wrong.sort(key=lambda row: -float(row["probability"]))
    columns = ("id", "link", "actual", "predicted", "probability", "actual_probability",
               "actual_rank")
    return columns, [
        [row["id"], arxiv_link(row["id"]), row["actual"], row["predicted"],
         float(row["probability"]), float(row["actual_probability"]), int(row["actual_rank"])]
        for row in wrong[:MOST_ROWS]]


def surest_mistakes(file: Path) -> Rows:
    """Return the mistakes of mistakes.json, with the words that decided."""
    columns = ("id", "title", "actual", "predicted", "confidence", "words", "summary")
    return columns, [
        [paper["id"], paper["title"], paper["actual"], paper["predicted"], paper["confidence"],
         ", ".join(word["word"] for word in paper["words"]), paper["summary"]]
        for paper in json.loads(file.read_text("utf-8"))]


def _name(text: str) -> str:
    return re.sub(r"[^\w.-]", "-", text, flags=re.ASCII)[:128]  # what artifacts may be called
