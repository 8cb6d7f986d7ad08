"""The model card: README.md of a model directory, filled from what was measured."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from nej.files import CONFIG_FILE, replacing
from nej.tables import interval_text, markdown_table

HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1"}  # as the hub calls them


def write_card(model_dir: Path) -> None:
    """Write README.md from the other files of the model directory; with test metrics, if any."""
    config, manifest, metrics, classes = (
        json.loads((model_dir / name).read_text("utf-8"))
        for name in (CONFIG_FILE, "manifest.json", "metrics.json", "config.json"))
    names = list(classes["id2label"].values())
    name = Path(config["output_dir"]).name
    calibrated, suspects, how_much = (  # in files that judging writes
        " Its probabilities are calibrated on validation papers\n"
        "(`calibration.json`), so that a threshold can be set under which it abstains.",
        " (`label_issues.csv` lists suspects)",
        ": the slices in `report.html` say how much") if "test" in metrics else ("", "", "")
    text = f"""---
{_metadata(name, config, metrics).to_yaml()}
---
# {name}

A DistilBERT that sorts arXiv papers into {len(names)} categories by their
{config['text_fields'].replace('+', ' and ')}: {', '.join(names)}.

{_figures(metrics)}

## What it is for

To propose a category for a paper that was written in English for arXiv, by its author or by a
person who looks at the proposal.{calibrated}

## Limits

- It knows the categories above and no others: a paper of another category gets one of these.
- A paper has one category here, though categories overlap (a paper of cs.LG may as well be one of
  stat.ML); some labels are wrong{suspects}.
- It reads the first {config['max_length']} tokens.
- Papers of other years, lengths and fields than those of the training are told worse or
  better{how_much}.

## Data

{_data(config, manifest)}

## How it was made, and how to make it again

From `{config['model_name_or_path']}`, with {manifest['steps']:,} optimizer steps in
{manifest['training_seconds'] / 60:.1f} minutes on {manifest['device']}{_since(manifest)}, at seed
{manifest['seed']}. All settings are in `{CONFIG_FILE}`; commit, versions and checksums are in
`manifest.json`. `python scripts/reproduce.py MODEL_DIRECTORY` trains it again from these and says
whether it is the same.
"""
    with replacing(model_dir / "README.md") as aside:
        aside.write_text(text, "utf-8")


def _metadata(name: str, config: dict[str, Any], metrics: dict[str, Any]) -> ModelCardData:
    results = [EvalResult(
        task_type="text-classification", dataset_type="arxiv", dataset_name=config["data_path"],
        dataset_split="test", metric_type=kind, metric_name=key, metric_value=round(
            metrics["test"][key], 4)) for key, kind in HUB_METRICS.items() if "test" in metrics]
    return ModelCardData(
        language="en", library_name="transformers", pipeline_tag="text-classification",
        base_model=config["model_name_or_path"], tags=["arxiv", "distilbert"],
        model_name=name if results else None, eval_results=results or None)


def _figures(metrics: dict[str, Any]) -> str:
    if "test" not in metrics:
        found = metrics["validation"]
        return ("It was not judged on test papers yet. On the validation papers, on which it was "
                f"chosen: accuracy {found['accuracy']:.3f}, macro F1 {found['macro_f1']:.3f}.")
    rows = [(name, *(f"{found[key]:.3f} ({interval_text(found['intervals'][key])})"
                     for key in ("macro_f1", "accuracy")))
            for name, found in (("**this model**", metrics["test"]), *metrics["baselines"].items())]
    calibration = metrics["test"]["expected_calibration_error"]
    return "\n".join([
        f"On {metrics['test']['papers']:,} test papers, touched by neither training nor choice; in "
        "brackets the 95 % interval:", "",
        markdown_table(("", "macro F1", "accuracy"), rows), "",
        *(f"- {found['verdict']}" for found in metrics["leads"].values()), "",
        f"Expected calibration error: {calibration:.3f}. All figures are in `metrics.json`, "
        "with pictures in `report.html`."])


def _data(config: dict[str, Any], manifest: dict[str, Any]) -> str:
    papers, data = manifest["papers"], manifest["data"]
    chosen = ("the hash of their id" if config["test_from"] is None else
              f"their date of publication, from {config['test_from']} on")
    revision = f", commit {data['dvc_revision'][:12]}" if data.get("dvc_revision") else ""
    return (f"`{config['data_path']}` (md5 {data['md5']}{revision}): {papers['train']:,} training, "
            f"{papers['validation']:,} validation and {papers['test']:,} test papers. Test papers "
            f"are chosen by {chosen}.")


def _since(manifest: dict[str, Any]) -> str:
    return " since the run was last resumed" if manifest["resumed"] else ""
