"""Make a model again from its manifest, and say whether it is the same, bit for bit.

    python scripts/reproduce.py models/quickstart

Takes the commit, the data and the settings that manifest.json names, trains aside, and compares.
Exit code 0: identical. 1: different; what differs is listed in the order in which it matters: code,
data, splits, environment, threads, device, the first differing step, metrics. 2: cannot be done.
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Train again and compare; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    options = parser.parse_args(arguments)
    from nej.experiments.reproduction import reproduce
    found = reproduce(options.model)
    print(found.text())
    return int(bool(found.differences))


if __name__ == "__main__":
    run(main)
