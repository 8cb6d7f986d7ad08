"""What people would rather look at than read: the pictures of a model directory."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nej import InputError
from nej.files import read_json
from nej.judging.judgement_figures import (
    draw_confusion_matrix, draw_coverage, draw_per_class, draw_reliability, draw_slices,
)
from nej.pictures import BLUE, GREEN, ORANGE, PALETTE, picture


def draw_model(model_dir: Path, folder: Path, *, judged_in: Path | None = None) -> list[Path]:
    """Draw into `folder` what there is to see of a model directory; return the pictures.

    training_statistics.png; if the model was judged, confusion_matrix.png, and of per_class.png,
    slices.png, reliability.png and coverage.png those whose figures metrics.json and
    calibration.json have.

    Args:
        judged_in: where those two are, if not in the model directory.

    Raises:
        InputError: no model there, or a picture cannot be written.
    """
    pictures = [folder / "training_statistics.png"]
    draw_training_statistics(model_dir, pictures[0])

    def add(name: str, draw: Callable[..., None], figures: Any, **others: Any) -> None:
        pictures.append(folder / f"{name}.png")
        draw(figures, pictures[-1], **others)

    judged_in = judged_in or model_dir
    metrics = read_json(judged_in / "metrics.json")
    test = metrics.get("test")
    if test:
        add("confusion_matrix", draw_confusion_matrix, test)
        if all("intervals" in found for found in test["per_class"].values()):
            add("per_class", draw_per_class, test)
        if metrics.get("slices"):
            add("slices", draw_slices, metrics["slices"], overall=test["accuracy"])
    calibration = read_json(judged_in / "calibration.json").get("test", {})
    if {"bins", "expected_calibration_error"} <= set(calibration):
        add("reliability", draw_reliability, calibration)
    if test and calibration.get("coverage"):
        add("coverage", draw_coverage, calibration["coverage"], papers=test["papers"],
            wanted=calibration.get("wanted"))
    return pictures


def draw_training_statistics(model_dir: Path, target: Path) -> None:
    """Draw loss, accuracy, macro F1 and learning rate over optimizer steps, as a PNG.

    Raises:
        InputError: no model there, or the picture cannot be written.
    """
    state = _state(model_dir)
    history = state["log_history"]
    panels = (
        ("Loss (mean cross-entropy)", (("loss", "training", BLUE),
                                       ("eval_loss", "validation", ORANGE))),
        ("Accuracy on validation papers", (("eval_accuracy", "validation", ORANGE),)),
        ("Macro F1 on validation papers", (("eval_macro_f1", "validation", ORANGE),)),
        ("Learning rate", (("learning_rate", "training", GREEN),)),
    )
    with picture(target, rows=2, columns=2, size=(10, 6.5)) as (figure, axes):
        for axis, (title, series) in zip(axes.flat, panels):
            for key, name, colour in series:
                steps, values = _series(history, key)
                marker = "o" if key.startswith("eval_") else None
                axis.plot(steps, values, color=colour, marker=marker, label=name, clip_on=False)
            axis.set(title=title, xlabel="optimizer step", xlim=(0, state["max_steps"]))
            axis.grid(alpha=0.3)
            if len(series) > 1:
                axis.legend()
            if "validation" in title:
                _mark_best(axis, state)
        papers = read_json(model_dir / "manifest.json").get("papers")
        of_papers = "" if papers is None else (
            f"\n{papers['train']:,} training and {papers['validation']:,} validation papers")
        figure.suptitle(f"Training of {model_dir.name}: {state['global_step']:,} steps, "
                        f"{state['epoch']:.1f} epochs{of_papers}")


def draw_curves(model_dirs: Sequence[Path], target: Path) -> None:
    """Draw training loss, validation loss, accuracy and macro F1 of several runs in one picture.

    Raises:
        InputError: no model there, or the picture cannot be written.
    """
    histories = {folder.name: _state(folder)["log_history"] for folder in model_dirs}
    panels = (("Training loss", "loss"), ("Validation loss", "eval_loss"),
              ("Accuracy on validation papers", "eval_accuracy"),
              ("Macro F1 on validation papers", "eval_macro_f1"))
    with picture(target, rows=2, columns=2, size=(10, 6.5)) as (figure, axes):
        for axis, (title, key) in zip(axes.flat, panels):
            for (name, history), colour in zip(histories.items(), PALETTE):
                axis.plot(*_series(history, key), color=colour, label=name, clip_on=False,
                          marker="o" if key.startswith("eval_") else None)
            axis.set(title=title, xlabel="optimizer step", xlim=(0, None))
            axis.grid(alpha=0.3)
        axes.flat[0].legend()
        figure.suptitle(f"Training of {', '.join(histories)}")


def _state(model_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((model_dir / "trainer_state.json").read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{model_dir} has no trainer_state.json; name a model directory that "
                         "scripts/train.py made") from None


def _series(history: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(log["step"], log[key]) for log in history if key in log]
    return [step for step, _ in points], [value for _, value in points]


def _mark_best(axis: Any, state: dict[str, Any]) -> None:
    """Draw a line at the step whose weights were kept (best macro F1)."""
    step = state.get("best_global_step")
    if step:
        axis.axvline(step, color="black", linestyle=":", linewidth=1)
        axis.annotate("kept", (step, 0.02), xycoords=("data", "axes fraction"),
                      xytext=(-4, 0), textcoords="offset points", ha="right", fontsize=9)
