"""Pictures of the papers: how many there are of each kind, how long, and when."""

from collections import Counter
from pathlib import Path

import numpy as np

from nej.pictures import BLUE, ORANGE, PALETTE, picture

MOST_BARS, MOST_CLASSES = 25, 7  # the others are one


def draw_bars(counts: dict[str, int], target: Path, *, title: str, unit: str) -> None:
    """Draw the largest counts as bars, with the rest as one."""
    names, values = list(counts)[:MOST_BARS], list(counts.values())[:MOST_BARS]
    if len(counts) > MOST_BARS:
        names.append(f"{len(counts) - MOST_BARS:,} others")
        values.append(sum(list(counts.values())[MOST_BARS:]))
    with picture(target, size=(8, 1.5 + 0.26 * len(names))) as (figure, axis):
        bars = axis.barh(names, values, color=[BLUE] * min(MOST_BARS, len(counts)) + ["grey"])
        axis.bar_label(bars, [f"{value:,}" for value in values], padding=3, fontsize=9)
        axis.invert_yaxis()
        axis.set(title=title, xlabel=unit)
        axis.margins(x=0.12, y=0.01)


def draw_lengths(tokens: np.ndarray, target: Path, *, max_length: int) -> None:
    """Draw a histogram of papers by their tokens, and where max_length cuts."""
    with picture(target, size=(8, 3.5)) as (figure, axis):
        axis.hist(tokens, bins=60, color=BLUE)
        axis.axvline(max_length, color=ORANGE, linestyle="--")
        axis.annotate(f"max_length {max_length}: {np.mean(tokens > max_length):.0%} are truncated",
                      (max_length, 0.95), xycoords=("data", "axes fraction"), color=ORANGE,
                      xytext=(5, 0), textcoords="offset points", va="top")
        axis.set(title=f"Tokens of a paper, sample of {len(tokens):,}", xlabel="tokens",
                 ylabel="papers", xlim=(0, None))


def draw_years(years: dict[int, dict[str, int]], target: Path) -> None:
    """Draw how many papers each year has, and the share of each class in it."""
    with picture(target, rows=2, size=(8, 6.5)) as (figure, (top, bottom)):
        ticks = list(years)
        totals = np.array([sum(classes.values()) for classes in years.values()], int)
        top.bar(ticks, totals, color=BLUE)
        top.set(title=f"Papers by year of publication ({totals.sum():,} with a date)",
                ylabel="papers")
        sizes = sum((Counter(classes) for classes in years.values()), Counter())
        names = [name for name, _ in sizes.most_common(MOST_CLASSES)]
        floor = np.zeros(len(ticks))
        for name, colour in zip([*names, None], [*PALETTE[:len(names)], "lightgrey"]):
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
