"""What all pictures share: palette, size, writing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

from nej.files import replacing

# Okabe and Ito's palette, told apart by the colour-blind
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PALETTE = (BLUE, ORANGE, GREEN, "#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#000000")


@contextmanager
def picture(target: Path, *, size: tuple[float, float], rows: int = 1, columns: int = 1,
            **layout: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a figure and its axes to draw on; then write it as a PNG.

    Args:
        size: width and height in inches, of 120 pixels each.
        layout: what else pyplot.subplots takes.

    Raises:
        InputError: it cannot be written.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained",
                                   **layout)
    try:
        yield figure, axes
        with replacing(target) as aside:
            figure.savefig(aside, dpi=120, format="png")
    finally:
        pyplot.close(figure)
