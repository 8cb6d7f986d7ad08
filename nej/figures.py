"""What people would rather look at than read."""

import json
from pathlib import Path
from typing import Any

import matplotlib

from nej import InputError
from nej.files import replacing

# blue, orange and green of Okabe and Ito's palette, told apart by the colour-blind
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def draw_training_statistics(model_dir: Path, target: Path) -> None:
    """Draw loss, accuracy, macro F1 and learning rate over optimizer steps, as a PNG.

    Raises:
        InputError: no model there, or the picture cannot be written.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot
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
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    for axis, (title, series) in zip(axes.flat, panels):
        for key, name, colour in series:
            steps, values = _series(history, key)
            marker = "o" if key.startswith("eval_") else None
            axis.plot(steps, values, color=colour, marker=marker, label=name)
        axis.set(title=title, xlabel="optimizer step", xlim=(0, state["max_steps"]))
        axis.grid(alpha=0.3)
        if len(series) > 1:
            axis.legend()
        if title in ("Accuracy", "Macro F1"):
            _mark_best(axis, state, history)
    figure.suptitle(f"Training of {model_dir.name}: {state['global_step']:,} steps, "
                    f"{state['epoch']:.1f} epochs")
    with replacing(target) as aside:
        figure.savefig(aside, dpi=120, format="png")
    pyplot.close(figure)


def _series(history: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    points = [(log["step"], log[key]) for log in history if key in log]
    return [step for step, _ in points], [value for _, value in points]


def _mark_best(axis: Any, state: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Draw a line at the step whose weights were kept (best macro F1)."""
    step = state.get("best_global_step")
    if step:
        axis.axvline(step, color="black", linestyle=":", linewidth=1)
        axis.annotate("kept", (step, 0.02), xycoords=("data", "axes fraction"),
                      xytext=(-4, 0), textcoords="offset points", ha="right", fontsize=9)
