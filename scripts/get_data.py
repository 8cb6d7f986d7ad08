"""Put a Kaggle-shaped file of papers in place as data/arxiv.csv.

    python scripts/get_data.py ~/Downloads/arxiv-scientific-research-papers-dataset.zip

The source is a zip, a CSV, or a folder with one CSV in it.
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Install the CSV; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--output", type=Path, default=Path("data/arxiv.csv"))
    options = parser.parse_args(arguments)
    from nej.files import checksum
    from nej.papers import install_csv
    install_csv(options.source.expanduser(), options.output)
    size = options.output.stat().st_size
    print(f"{options.output}: {size:,} bytes, md5 {checksum(options.output, 'md5')}")
    return 0


if __name__ == "__main__":
    run(main)
