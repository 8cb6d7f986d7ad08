"""Is a new model really better: two models on the same test papers.

    python scripts/compare.py models/old models/new
    python scripts/compare.py models/old models/new --markdown comparison.md

Exit code 0: the second is better beyond noise (the 95 % interval of the difference in macro F1 is
above 0). 3: no difference beyond noise. 4: it is worse beyond noise. 2: they cannot be compared.
"""

import argparse
import logging
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Compare and print; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the model directory to beat")
    parser.add_argument("after", type=Path, help="the candidate's")
    parser.add_argument("--markdown", metavar="FILE",
                        help="write Markdown there too, for a pull request; - prints it instead")
    options = parser.parse_args(arguments)
    from nej import InputError
    from nej.files import replacing
    from nej.judging.comparison import BETTER, SAME, compare
    from nej.judging.scorecard import markdown, measure_speed, text
    found = compare(options.before, options.after)
    try:
        speed = measure_speed([options.before, options.after])
    except InputError as error:  # what was judged can be compared without the data
        logging.getLogger(__name__).warning("speed was not measured: %s", error)
        speed = None
    if options.markdown == "-":
        print(markdown(found, speed), end="")
    else:
        print(text(found, speed))
    if options.markdown not in (None, "-"):
        with replacing(Path(options.markdown)) as aside:
            aside.write_text(markdown(found, speed), "utf-8")
        print(f"written: {options.markdown}")
    return 0 if found.verdict == BETTER else 3 if found.verdict == SAME else 4


if __name__ == "__main__":
    run(main)
