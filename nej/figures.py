"""What people would rather look at than read."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from nej import InputError
from nej.files import replacing

# Okabe and Ito's palette, told apart by the colour-blind
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PALETTE = (BLUE, ORANGE, GREEN, "#E69F00", "#56B4E9", "#CC79A7", "#F0E442")


def draw_model(model_dir: Path, folder: Path) -> list[Path]:
    """Draw into `folder` what there is to see of a model directory; return the pictures.

    training_statistics.png, and confusion_matrix.png if the model was judged.

    Raises:
        InputError: no model there, or a picture cannot be written.
    """
    pictures = [folder / "training_statistics.png"]
    draw_training_statistics(model_dir, pictures[0])
    metrics = json.loads((model_dir / "metrics.json").read_text("utf-8"))
    if "test" in metrics:
        pictures.append(folder / "confusion_matrix.png")
        draw_confusion_matrix(metrics["test"], pictures[1])
    return pictures


def draw_training_statistics(model_dir: Path, target: Path) -> None:
    """Draw loss, accuracy, macro F1 and learning rate over optimizer steps, as a PNG.

    Raises:
        InputError: no model there, or the picture cannot be written.
    """
    try:
        state = json.loads((model_dir / "trainer_state.json").read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{model_dir} has no trainer_state.json; name a model directory that "
                         "scripts/train.py made") from None
    history = state["log_history"]
    panels = (
        ("Loss (mean cross-entropy)", (("loss", "training", BLUE),
                                       ("eval_loss", "validation", ORANGE))),
        ("Accuracy", (("eval_accuracy", "validation", ORANGE),)),
        ("Macro F1", (("eval_macro_f1", "validation", ORANGE),)),
        ("Learning rate", (("learning_rate", "training", GREEN),)),
    )
    with _picture(target, rows=2, columns=2, size=(10, 6.5)) as (figure, axes):
        for axis, (title, series) in zip(axes.flat, panels):
            for key, name, colour in series:
                steps, values = _series(history, key)
                marker = "o" if key.startswith("eval_") else None
                axis.plot(steps, values, color=colour, marker=marker, label=name, clip_on=False)
            axis.set(title=title, xlabel="optimizer step", xlim=(0, state["max_steps"]))
            axis.grid(alpha=0.3)
            if len(series) > 1:
                axis.legend()
            if title in ("Accuracy", "Macro F1"):
                _mark_best(axis, state)
        figure.suptitle(f"Training of {model_dir.name}: {state['global_step']:,} steps, "
                        f"{state['epoch']:.1f} epochs")


def draw_confusion_matrix(metrics: dict[str, Any], target: Path) -> None:
    """Draw which class the papers of each class were given: `metrics` as of metrics.all_metrics.

    A row shows shares of the papers of one class.
    """
    names = list(metrics["per_class"])
    counts = np.array(metrics["confusion_matrix"])
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = 3 + 0.55 * min(len(names), 12) + 0.16 * max(0, len(names) - 12)
    with _picture(target, size=(side + 1, side)) as (figure, axis):
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        small = {"fontsize": 10 if len(names) <= 12 else 6}
        axis.set_xticks(range(len(names)), names, rotation=90, **small)
        axis.set_yticks(range(len(names)), names, **small)
        if len(names) <= 12:
            for (row, column), count in np.ndenumerate(counts):
                axis.text(column, row, f"{count:,}", ha="center", va="center", fontsize=9,
                          color="white" if shares[row, column] > 0.5 else "black")
        axis.set(xlabel="predicted", ylabel="true class",
                 title=f"Confusion matrix, {metrics['papers']:,} test papers")
        figure.colorbar(image, label="share of the true class's papers", shrink=0.8)


def draw_bars(counts: dict[str, int], target: Path, *, title: str, unit: str,
              most: int = 25) -> None:
    """Draw the largest counts as bars, with the rest as one."""
    names, values = list(counts)[:most], list(counts.values())[:most]
    if len(counts) > most:
        names.append(f"{len(counts) - most:,} others")
        values.append(sum(list(counts.values())[most:]))
    with _picture(target, size=(8, 1.5 + 0.26 * len(names))) as (figure, axis):
        bars = axis.barh(names, values, color=[BLUE] * min(most, len(counts)) + ["grey"])
        axis.bar_label(bars, [f"{value:,}" for value in values], padding=3, fontsize=9)
        axis.invert_yaxis()
        axis.set(title=title, xlabel=unit)
        axis.margins(x=0.12, y=0.01)


def draw_lengths(tokens: np.ndarray, target: Path, *, max_length: int) -> None:
    """Draw a histogram of papers by their tokens, and where max_length cuts."""
    with _picture(target, size=(8, 3.5)) as (figure, axis):
        axis.hist(tokens, bins=60, color=BLUE)
        axis.axvline(max_length, color=ORANGE, linestyle="--")
        axis.annotate(f"max_length {max_length}: {np.mean(tokens > max_length):.0%} are truncated",
                      (max_length, 0.95), xycoords=("data", "axes fraction"), color=ORANGE,
                      xytext=(5, 0), textcoords="offset points", va="top")
        axis.set(title=f"Tokens of a paper, sample of {len(tokens):,}", xlabel="tokens",
                 ylabel="papers", xlim=(0, None))


def draw_years(years: dict[int, dict[str, int]], target: Path, *, most: int = 7) -> None:
    """Draw how many papers each year has, and the share of each class in it."""
    with _picture(target, rows=2, size=(8, 6.5)) as (figure, (top, bottom)):
        ticks = list(years)
        totals = np.array([sum(classes.values()) for classes in years.values()], int)
        top.bar(ticks, totals, color=BLUE)
        top.set(title=f"Papers by year of publication ({totals.sum():,} with a date)",
                ylabel="papers")
        sizes = sum((Counter(classes) for classes in years.values()), Counter())
        names = [name for name, _ in sizes.most_common(most)]
        floor = np.zeros(len(ticks))
        for name, colour in zip([*names, None], [*PALETTE, "lightgrey"]):
            shares = np.array([
                sum(count for n, count in classes.items() if n == name or (
                    name is None and n not in names)) for classes in years.values()])
            if shares.any():
                shares = shares / np.maximum(1, totals)
                bottom.bar(ticks, shares, bottom=floor, color=colour, label=name or "others")
                floor = floor + shares
        bottom.set(title="Share of each class", xlabel="year", ylabel="share of the papers",
                   ylim=(0, 1))
        if ticks:
            bottom.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


@contextmanager
def _picture(target: Path, *, size: tuple[float, float], rows: int = 1, columns: int = 1
             ) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes to draw on; then write it as a PNG.

    Raises:
        InputError: it cannot be written.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained")
    try:
        yield figure, axes
        with replacing(target) as aside:
            figure.savefig(aside, dpi=120, format="png")
    finally:
        pyplot.close(figure)


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
