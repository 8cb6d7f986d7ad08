"""Draw what there is to see of a model directory: training curves, confusion matrix.

    python scripts/visualize.py models/quickstart
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Draw and say where; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    parser.add_argument("--output", type=Path, default=Path("reports/figures"),
                        help="the folder for the pictures (reports/figures)")
    options = parser.parse_args(arguments)
    from nej.figures import draw_model
    print("\n".join(map(str, draw_model(options.model, options.output))))
    return 0


if __name__ == "__main__":
    run(main)
