"""Put a model in use: models/production points to it, if it deserves that.

    python scripts/promote.py models/starter-top5
    python scripts/promote.py models/starter-top5 --max_class_loss 0.01

It must be better than the model in use beyond noise, no class's F1 much worse, and the behaviour
tests passed; the first one must be above the baselines. models/promotions.jsonl keeps what was
promoted and why. Exit code 0: promoted, or in use already. 3: refused, with the reasons. 2: cannot
be judged.
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Judge and promote; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory inside models/")
    parser.add_argument("--max_class_loss", type=float, default=0.02,
                        help="points of F1 that a class may lose (0.02)")
    options = parser.parse_args(arguments)
    from nej.judging.promotion import promote
    found = promote(options.model, max_class_loss=options.max_class_loss)
    print(found.text())
    return 3 if found.reasons else 0


if __name__ == "__main__":
    run(main)
