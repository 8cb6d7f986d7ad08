"""Test how a trained model behaves: the same answer whatever the batch, no crash on odd texts.

    python scripts/test_model.py models/quickstart

Prints what was found, one line per check. Exit code 0 if no check failed (a warning is no
failure), 1 if one did, 2 if there is no model.
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Check the model and print the findings; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    options = parser.parse_args(arguments)
    from nej.judging.behaviour import check, table
    from nej.prediction import Classifier
    findings = check(Classifier.load(options.model))
    print(table(findings))
    return 0 if all(finding.passed for finding in findings) else 1


if __name__ == "__main__":
    run(main)
