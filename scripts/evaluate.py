"""Judge a model directory on its test papers, beside the baselines.

    python scripts/evaluate.py models/starter-top5
    python scripts/evaluate.py models/starter-top5 --against models/quickstart
    python scripts/evaluate.py models/starter-top5 --papers new_papers.jsonl
    python scripts/evaluate.py models/starter-top5 --show

What is written lies in the model directory, or for --papers in reports/; report.html is the page
to begin with.
"""

import argparse
from pathlib import Path

from _run import Parser, importing, run


def main(arguments: list[str]) -> int:
    """Evaluate and print the table; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    parser.add_argument("--data_path", type=Path, help="the CSV, if it is elsewhere now")
    parser.add_argument("--papers", type=Path, metavar="FILE",
                        help="judge on the papers of a CSV, JSON Lines or Parquet file instead")
    parser.add_argument("--against", type=Path, metavar="MODEL",
                        help="a model directory, judged on the same papers, to compare with")
    parser.add_argument("--show", action="store_true",
                        help="only show what was found the last time")
    options = parser.parse_args(arguments)
    if options.show:
        from nej.judging.evaluation import EvaluationReport
        print(EvaluationReport.load(options.model).table())
        print(f"report: {options.model}/report.html")
        return 0
    with importing():
        from nej.judging.evaluation import evaluate
    report = evaluate(options.model, data_path=options.data_path, papers_path=options.papers,
                      against=options.against)
    print(f"{report.table()}\nreport: {report.folder}/report.html")
    return 0


if __name__ == "__main__":
    run(main)
