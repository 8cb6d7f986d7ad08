"""Export a model for CPUs: an ONNX graph with 8-bit weights, which OpenVINO runs.

    python scripts/export.py models/production

It is compared with the model in PyTorch on test papers, and refused if its accuracy is lower by
over 0.005 or over 1 % of the labels change. Exit code 0: it is in the model directory, where
scripts/predict.py and scripts/serve.py find it. 3: it was refused, and nothing was written.
"""

import argparse
from pathlib import Path

from _run import Parser, importing, run


def main(arguments: list[str]) -> int:
    """Export and print the comparison; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    parser.add_argument("--papers", type=int, default=2000,
                        help="test papers to compare on (2000, drawn with the seed of training)")
    options = parser.parse_args(arguments)
    if options.papers < 1:
        parser.error(f"--papers is {options.papers}; at least 1")
    with importing():
        from nej.predicting.export import export
    report = export(options.model, most_papers=options.papers)
    print(report.text())
    return 3 if report.refused else 0


if __name__ == "__main__":
    run(main)
