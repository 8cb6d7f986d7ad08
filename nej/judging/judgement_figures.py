"""Pictures of how a model does on its test papers."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nej.pictures import BLUE, ORANGE, PALETTE, picture

INTERVAL = "95 % interval"
FEW_PAPERS = 30  # the interval of a slice of fewer says little, and may leave the picture
FEW_ANSWERED = 0.05  # the share under which an accuracy is too uncertain to draw the axis for


def draw_confusion_matrix(metrics: dict[str, Any], target: Path) -> None:
    """Draw which class the papers of each class were given: `metrics` as of metrics.all_metrics.

    A row shows shares of the papers of one class.
    """
    from matplotlib.colors import PowerNorm
    names = [_short(name) for name in metrics["per_class"]]
    counts = np.array(metrics["confusion_matrix"])
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    few = len(names) <= 12
    fontsize = 11 if few else max(6.5, 10 - len(names) / 15)
    longest = max(map(len, names))
    side = min(9, 4.5 + 0.35 * len(names) + 0.07 * max(0, longest - 8)) if few else 9
    with picture(target, size=(side + 0.5, side)) as (figure, axis):
        # a square root, or no confusion could be seen beside the diagonal
        image = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
        ticks = range(len(names))
        axis.set_xticks(ticks, names, rotation=90 if len(names) * longest > 40 else 0,
                        fontsize=fontsize)
        axis.set_yticks(ticks, names, fontsize=fontsize)
        if few:
            for (row, column), count in np.ndenumerate(counts):
                share = shares[row, column]
                axis.text(column, row, f"{count:,}\n{_percent(share)}" if count else "0",
                          ha="center", va="center", fontsize=10,
                          color="white" if share > 0.35 else "black")
        else:  # lines to follow from a name to its cell
            axis.set_xticks(np.arange(0.5, len(names) - 1), minor=True)
            axis.set_yticks(np.arange(0.5, len(names) - 1), minor=True)
            axis.grid(which="minor", color="#dddddd", linewidth=0.4)
            axis.tick_params(which="minor", length=0)
        axis.set(xlabel="predicted", ylabel="true class",
                 title=f"Confusion matrix, {metrics['papers']:,} test papers")
        bar = figure.colorbar(image, ax=axis, label="share of the true class's papers",
                              shrink=0.7, aspect=35, pad=0.02)
        bar.set_ticks([0, 0.02, 0.1, 0.25, 0.5, 1], labels=["0", "2 %", "10 %", "25 %", "50 %",
                                                            "100 %"])


def draw_per_class(metrics: dict[str, Any], target: Path) -> None:
    """Draw the F1 of each class with its interval, best first, beside macro F1 and accuracy.

    `metrics` are the test metrics of metrics.json, with intervals. Classes without papers are not
    drawn.
    """
    classes = sorted(((name, found) for name, found in metrics["per_class"].items()
                      if found["support"]), key=lambda item: -item[1]["f1"])
    labels = [f"{_short(name)} ({found['support']:,})" for name, found in classes]
    values = [found["f1"] for _, found in classes]
    with picture(target, size=(8.5, 1.9 + 0.24 * len(classes))) as (figure, axis):
        _with_intervals(axis, values, [found["intervals"]["f1"] for _, found in classes])
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.set_xlim(min(0.99, *(found["intervals"]["f1"][0] for _, found in classes)) - 0.02, 1)
        lower, higher = sorted([("macro F1", metrics["macro_f1"], ORANGE),
                                ("accuracy", metrics["accuracy"], "black")], key=lambda m: m[1])
        for (name, value, colour), side in ((lower, "right"), (higher, "left")):
            axis.axvline(value, color=colour, linestyle="--", linewidth=1.2)
            axis.annotate(f"{name} {value:.3f}", (value, 1), xycoords=("data", "axes fraction"),
                          xytext=(-3 if side == "right" else 3, 3), textcoords="offset points",
                          ha=side, va="bottom", color=colour, fontsize=9)
        axis.set_title(f"F1 of each class and its {INTERVAL}, {metrics['papers']:,} test papers",
                       pad=20)
        axis.set_xlabel("F1 (in brackets: test papers of the class)")
        axis.grid(axis="x", alpha=0.3)


def draw_reliability(calibration: dict[str, Any], target: Path) -> None:
    """Draw accuracy against mean confidence, bin by bin, above how many papers each bin has.

    Args:
        calibration: `bins` of equal width from 0 to 1, each with confidence (mean; None if empty),
            accuracy, interval and papers; `expected_calibration_error` before and after
            temperature scaling.
    """
    bins = calibration["bins"]
    full = [found for found in bins if found["papers"]]
    papers = [found["papers"] for found in bins]
    error = calibration["expected_calibration_error"]
    with picture(target, rows=2, size=(6.5, 7.5), sharex=True,
                 height_ratios=(3, 1)) as (figure, (top, bottom)):
        top.plot([0, 1], [0, 1], color="black", linestyle=":", label="perfectly calibrated")
        confidence = np.array([found["confidence"] for found in full])
        accuracy = np.array([found["accuracy"] for found in full])
        top.errorbar(confidence, accuracy, _lengths(accuracy, [f["interval"] for f in full]),
                     fmt="o-", color=BLUE, ecolor=BLUE, capsize=3,
                     label=f"the model's bins, {INTERVAL}")
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy",
                title=f"Reliability, {sum(papers):,} test papers\nexpected calibration error: "
                f"{error['after']:.3f}\n(without temperature scaling {error['before']:.3f})")
        top.legend(loc="upper left", frameon=False)
        top.grid(alpha=0.3)
        edges = np.linspace(0, 1, len(bins) + 1)
        bars = bottom.bar(edges[:-1], papers, np.diff(edges), align="edge", color=BLUE,
                          edgecolor="white")
        bottom.bar_label(bars, [f"{count:,}" if count else "" for count in papers], fontsize=8)
        bottom.margins(y=0.18)
        bottom.set(xlabel="confidence (probability of the predicted class)", ylabel="papers")
        bottom.grid(axis="y", alpha=0.3)
        bottom.set_axisbelow(True)


def draw_coverage(coverage: Sequence[dict[str, Any]], target: Path, *, papers: int,
                  wanted: dict[str, dict[str, float] | None] | None = None) -> None:
    """Draw the accuracy among the papers that are answered if the less sure ones are not.

    Args:
        coverage: for each threshold of the confidence: threshold, coverage (share of the papers
            answered), accuracy among those and its interval.
        papers: how many test papers there are.
        wanted: for an accuracy that is wanted, the threshold and coverage that give it.
    """
    rows = sorted((row for row in coverage if row["coverage"]), key=lambda row: row["coverage"])
    share, accuracy = (np.array([row[key] for row in rows]) for key in ("coverage", "accuracy"))
    low, high = np.reshape([row["interval"] for row in rows], (-1, 2)).T
    with picture(target, size=(8, 5.5)) as (figure, axis):
        axis.plot(share, accuracy, color=BLUE)
        axis.fill_between(share, low, high, color=BLUE, alpha=0.2, linewidth=0, label=INTERVAL)
        marks = iter("osD^v")
        for name, found in (wanted or {}).items():
            if found and found["coverage"]:
                axis.plot(found["coverage"], found["accuracy"], next(marks), color=ORANGE,
                          markersize=8, clip_on=False, linestyle="none",
                          label=f"{_percent(float(name))} wanted: {_percent(found['coverage'])} "
                          f"answered (confidence from {found['threshold']:.2f})")
        some = share >= min(FEW_ANSWERED, share.max())
        bottom = min(low[some].min(), accuracy[some].min())
        axis.set(title="Accuracy if the model abstains where its confidence is low, "
                 f"{papers:,} test papers",
                 xlabel="share of the test papers that are answered",
                 ylabel="accuracy among the answered papers", xlim=(0, 1),
                 ylim=(bottom - 0.45 * (1 - bottom) - 0.01, 1.005))
        axis.xaxis.set_major_formatter(lambda tick, _: _percent(tick))
        axis.legend(loc="lower left", frameon=False)
        axis.grid(alpha=0.3)


def draw_slices(slices: Sequence[dict[str, Any]], target: Path, *, overall: float) -> None:
    """Draw the accuracy of each slice of the test papers, grouped by what they are sliced by.

    Args:
        slices: slice (what by), value, papers, accuracy and interval of each.
        overall: the accuracy of all test papers.
    """
    ticks: list[str] = []
    rows: list[dict[str, Any] | None] = []
    headings: list[int] = []
    for group in dict.fromkeys(row["slice"] for row in slices):
        headings.append(len(ticks))
        ticks.append(group)
        rows.append(None)
        for row in slices:
            if row["slice"] == group:
                ticks.append(f"{_short(str(row['value']))} ({row['papers']:,})")
                rows.append(row)
    where = [index for index, row in enumerate(rows) if row]
    shown = [row for row in rows if row]
    with picture(target, size=(8.5, 1.7 + 0.24 * len(ticks))) as (figure, axis):
        _with_intervals(axis, [row["accuracy"] for row in shown],
                        [row["interval"] for row in shown], where)
        axis.axvline(overall, color=ORANGE, linestyle="--", linewidth=1.2)
        axis.annotate(f"all: {overall:.3f}", (overall, 1), xycoords=("data", "axes fraction"),
                      xytext=(0, 3), textcoords="offset points", ha="center", va="bottom",
                      color=ORANGE, fontsize=9)
        axis.set_yticks(range(len(ticks)), ticks)
        for index in headings:
            axis.get_yticklabels()[index].set_fontweight("bold")
            axis.axhline(index - 0.5, color="lightgrey", linewidth=0.8)
        axis.set_ylim(len(ticks) - 0.4, -0.6)
        low, high = zip((overall, overall), *(
            row["interval"] for row in slices if row["papers"] >= FEW_PAPERS))
        axis.set_xlim(max(0, min(low) - 0.05), min(1, max(high) + 0.05))
        axis.set_title(f"Accuracy of slices of the test papers, {INTERVAL}", pad=20)
        axis.set_xlabel("accuracy (in brackets: test papers of the slice)")
        axis.grid(axis="x", alpha=0.3)


def draw_embeddings(points: np.ndarray, labels: Sequence[str], target: Path, *,
                    title: str) -> None:
    """Draw papers in the plane, coloured by class, with each class's name at their median.

    Of many classes the largest have colours of their own, and the others are grey.

    Args:
        points: (papers, 2).
        labels: the class of each.
    """
    counts = Counter(labels)
    names = [name for name, _ in counts.most_common()]
    colours = dict(zip(names, PALETTE))
    where = np.array(labels)
    size = float(np.clip(30_000 / len(points), 3, 20))
    with picture(target, size=(9, 7.5)) as (figure, axis):
        def scatter(members: np.ndarray, colour: str, label: str) -> None:
            axis.scatter(*points[members].T, s=size, color=colour, alpha=0.5, linewidth=0,
                         rasterized=True, label=label)

        others = names[len(PALETTE):]
        if others:
            members = np.isin(where, others)
            scatter(members, "#bbbbbb", f"{len(others)} others ({members.sum():,})")
        for name, colour in colours.items():
            scatter(where == name, colour, f"{_short(name)} ({counts[name]:,})")
        axis.set(title=title, xticks=[], yticks=[])
        axis.margins(0.02)
        handles, texts = axis.get_legend_handles_labels()
        first = 1 if others else 0  # the grey ones come last
        legend = figure.legend(
            [*handles[first:], *handles[:first]], [*texts[first:], *texts[:first]],
            loc="outside lower center", frameon=False, handletextpad=0.2,
            ncols=min(5 if len(texts) <= 5 else 4, 100 // (max(map(len, texts)) + 5)))
        for handle in legend.legend_handles:
            handle.set_sizes([40])
            handle.set_alpha(1)
        _label_medians(figure, axis, {name: np.median(points[where == name], 0) for name in names},
                       fontsize=11 if len(names) <= len(PALETTE) else 8)


def _label_medians(figure: Any, axis: Any, medians: dict[str, np.ndarray], *,
                   fontsize: float) -> None:
    """Write each name at its place, or as near to it as no name before it stands."""
    from matplotlib.patheffects import withStroke
    figure.canvas.draw()  # the layout, without which no text has a place
    taken: list[Any] = []
    for name, place in medians.items():
        text = axis.annotate(_short(name), place, xytext=(0, 0), textcoords="offset points",
                             ha="center", va="center", fontsize=fontsize, fontweight="bold",
                             path_effects=[withStroke(linewidth=2.5, foreground="white")])
        for turn in range(200):  # along a spiral
            away = 1.2 * np.sqrt(turn) * fontsize * 0.35
            text.set_position((1.6 * away * np.cos(2.4 * turn), away * np.sin(2.4 * turn)))
            box = text.get_window_extent().padded(1)
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _with_intervals(axis: Any, values: Sequence[float], intervals: Sequence[Sequence[float]],
                    rows: Sequence[int] | None = None) -> None:
    """Draw a point and its interval in each row."""
    axis.errorbar(values, range(len(values)) if rows is None else rows,
                  xerr=_lengths(values, intervals), fmt="o", color=BLUE, ecolor=BLUE, capsize=2.5,
                  markersize=5, linewidth=1.4)


def _lengths(values: Sequence[float] | np.ndarray, intervals: Sequence[Sequence[float]]
             ) -> np.ndarray:
    """Return how far intervals reach below and above their values, as errorbar wants it."""
    low, high = np.reshape(intervals, (-1, 2)).T
    return np.maximum(0, [np.asarray(values) - low, high - np.asarray(values)])


def _percent(share: float) -> str:
    return "<1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def _short(name: str) -> str:
    return name if len(name) <= 30 else name[:29].rstrip() + "…"
