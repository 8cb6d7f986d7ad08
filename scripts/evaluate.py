"""Judge a model directory on its test papers, beside the baselines.

    python scripts/evaluate.py models/starter-top5
    python scripts/evaluate.py models/starter-top5 --data_path elsewhere/arxiv.csv
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Evaluate and print the table; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    parser.add_argument("--data_path", type=Path, help="the CSV, if it is elsewhere now")
    options = parser.parse_args(arguments)
    from nej.evaluation import evaluate
    print(evaluate(options.model, data_path=options.data_path).table())
    print(f"written: {options.model}/metrics.json, calibration.json, README.md")
    return 0


if __name__ == "__main__":
    run(main)
