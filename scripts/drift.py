"""Tell whether papers are still like those that a model was judged on.

    python scripts/drift.py models/production logs/predictions.jsonl --days 7
    python scripts/drift.py models/production new_papers.csv

The first is a log that scripts/serve.py --log writes, the second a CSV, JSON Lines or Parquet file
of papers. Exit code 0: no alarm. 3: alarm. 2: it cannot be told, and why.
"""

import argparse
from pathlib import Path

from _run import Parser, importing, run


def main(arguments: list[str]) -> int:
    """Compare, print what moved, draw it; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    parser.add_argument("papers", type=Path, help="a log of predictions, or a file of papers")
    parser.add_argument("--days", type=float,
                        help="of a log, only the predictions of the last so many days")
    parser.add_argument("--figure", type=Path, default=Path("reports/figures/drift.png"),
                        help="where to draw it (reports/figures/drift.png)")
    options = parser.parse_args(arguments)
    with importing():
        from nej.files import require_model
        from nej.predicting.drift import compare, read_reference
        from nej.predicting.drift_figures import draw_drift
        from nej.predicting.recent import recent_signals
    model_dir = options.model.resolve()  # a link may be moved meanwhile
    require_model(model_dir)
    reference = read_reference(model_dir)
    found = recent_signals(model_dir, options.papers, days=options.days)
    drift = compare(found, reference)
    print(drift.text())  # before the picture, which a read-only folder does not take
    draw_drift(drift, found, reference, options.figure)
    print(f"figure: {options.figure}")
    return 3 if drift.alarms else 0


if __name__ == "__main__":
    run(main)
