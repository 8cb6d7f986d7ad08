"""Judge a model directory on its test papers, beside the baselines.

    python scripts/evaluate.py models/starter-top5
    python scripts/evaluate.py models/starter-top5 --data_path elsewhere/arxiv.csv
    python scripts/evaluate.py models/starter-top5 --show
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Evaluate and print the table; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    parser.add_argument("--data_path", type=Path, help="the CSV, if it is elsewhere now")
    parser.add_argument("--show", action="store_true",
                        help="only show what was found the last time")
    options = parser.parse_args(arguments)
    if options.show:
        from nej.evaluation import EvaluationReport
        print(EvaluationReport.load(options.model).table())
        print(f"model: {options.model}")
        return 0
    from nej.evaluation import evaluate
    print(evaluate(options.model, data_path=options.data_path).table())
    print(f"written: {options.model}/metrics.json, headline.json, calibration.json, "
          "predictions.csv, README.md")
    return 0


if __name__ == "__main__":
    run(main)
