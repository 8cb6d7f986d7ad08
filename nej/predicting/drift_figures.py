"""The picture of drift: recent papers beside a model's test papers."""

from pathlib import Path
from typing import Any

import numpy as np

from nej.pictures import BLUE, ORANGE, picture
from nej.predicting.drift import NUMBERS, Change, Drift, Signals

MOST_CATEGORIES = 12
BINS = 20


def draw_drift(drift: Drift, found: Signals, reference: dict[str, Any], target: Path) -> None:
    """Draw each signal of the papers that were compared beside that of the test papers."""
    changes = {change.name: change for change in drift.changes}
    with picture(target, size=(10, 9), rows=3, columns=2) as (figure, axes):
        axes = axes.ravel()
        for axis, (name, title) in zip(axes, NUMBERS.items()):
            quantiles = np.array(reference["numbers"][name]["quantiles"])
            values = getattr(found, name)[-changes[name].papers:]
            edges = np.linspace(min(quantiles[0], values.min()),
                                max(quantiles[-1], values.max()) + 1e-9, BINS + 1)
            for sample, colour, label in ((quantiles, BLUE, "test papers"),
                                          (values, ORANGE, "these papers")):
                axis.stairs(np.histogram(sample, edges)[0] / len(sample), edges, color=colour,
                            label=label, linewidth=2)
            axis.set(ylabel="share of papers")
            _name(axis, changes[name], title)
        axes[0].legend(frameon=False)
        _draw_categories(axes[3], found, reference, changes["categories"])
        _draw_directions(axes[4], found, reference, changes["embeddings"])
        axes[5].axis("off")


def _name(axis: Any, change: Change, title: str) -> None:
    """Write above what it shows, and whether that is an alarm."""
    axis.set_title(f"{'ALARM: ' if change.alarm else ''}{title} ({change.distance:.2f}, alarm from "
                   f"{change.least:.2f})\n{change.period}".rstrip(), fontsize=10,
                   color=ORANGE if change.alarm else "black")


def _draw_categories(axis: Any, found: Signals, reference: dict[str, Any], change: Change) -> None:
    before, papers = reference["categories"], reference["papers"]
    now = found.categories[-change.papers:]
    shares = {name: (before.get(name, 0) / papers, now.count(name) / len(now))
              for name in {*before, *now}}
    names = sorted(shares, key=lambda name: (-max(shares[name]), name))[:MOST_CATEGORIES]
    places = np.arange(len(names))
    for side, colour in enumerate((BLUE, ORANGE)):
        axis.bar(places + 0.4 * (side - 0.5), [shares[name][side] for name in names], 0.4,
                 color=colour)
    axis.set_xticks(places, names, rotation=30, ha="right")
    axis.set(ylabel="share of papers")
    _name(axis, change, "categories")


def _draw_directions(axis: Any, found: Signals, reference: dict[str, Any], change: Change) -> None:
    before = reference["directions"]
    spread = np.sqrt(np.diag(before["covariance"])) + 1e-9
    off = (found.directions[-change.papers:].mean(0) - np.array(before["mean"])) / spread
    axis.bar(range(1, len(off) + 1), off, color=ORANGE)
    axis.axhline(0, color=BLUE, linewidth=2)
    axis.set(xlabel="direction", ylabel="mean, in standard deviations")
    _name(axis, change, "embeddings")
