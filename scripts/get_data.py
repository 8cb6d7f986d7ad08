"""Put the pinned version of Kaggle's papers in place as data/arxiv.csv.

    python scripts/get_data.py
    python scripts/get_data.py ~/Downloads/arxiv-scientific-research-papers-dataset.zip
    python scripts/get_data.py --accept another-version.zip

Without a source it comes from DVC's cache or remote, else from Kaggle, where no account is needed.
The source may be a zip, a CSV, or a folder with one CSV in it. data/arxiv.csv.dvc pins the version.
Another one is refused from Kaggle, and taken with a warning where you name it; --accept pins it.
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Put the CSV in place; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", help="a zip, a CSV or a folder")
    parser.add_argument("--output", type=Path, default=Path("data/arxiv.csv"))
    parser.add_argument("--accept", action="store_true",
                        help="pin what is found, though it is another version")
    options = parser.parse_args(arguments)
    from nej.data.sources import fetch_csv
    from nej.files import checksum
    source = options.source and options.source.expanduser()
    fetch_csv(options.output, source, accept=options.accept)
    size = options.output.stat().st_size
    print(f"{options.output}: {size:,} bytes, md5 {checksum(options.output, 'md5')}")
    return 0


if __name__ == "__main__":
    run(main)
