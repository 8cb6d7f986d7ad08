"""Label the papers of a file: CSV, JSON Lines or Parquet in, and out; - is a pipe.

    python scripts/predict.py models/production papers.csv -o labelled.parquet
    torchrun --nproc_per_node 4 scripts/predict.py models/production papers.csv -o labelled.csv
    zcat papers.jsonl.gz | python scripts/predict.py models/production - -o - | head

Each paper has a row, in the file's order: row (from 1), id, category, name, probability, abstained,
truncated, and for one that cannot be labelled the reason. After a kill the same command goes on.
"""

import argparse
import sys
from pathlib import Path

from _run import Parser, importing, run


def main(arguments: list[str]) -> int:
    """Label, say what became of the papers; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model directory")
    parser.add_argument("papers", type=Path, help="the file, or - for standard input")
    parser.add_argument("-o", "--output", type=Path, required=True,
                        help="where to; - is standard output (CSV from CSV, else JSON Lines)")
    parser.add_argument("--wanted_accuracy", type=float, default=0.9,
                        help="abstain where fewer answers would be right (0.9); 0 never abstains")
    parser.add_argument("--top_k", type=int, default=1,
                        help="how many categories of each paper to name (1)")
    parser.add_argument("--backend", choices=["torch", "openvino"],
                        help="what computes; without it the fastest that there is")
    options = parser.parse_args(arguments)
    with importing():
        from nej.data.records import PIPE
        from nej.predicting.bulk import label_file
    summary = label_file(options.model, options.papers, options.output, backend=options.backend,
                         wanted_accuracy=options.wanted_accuracy, top_k=options.top_k)
    if summary:
        print(summary.text(), file=sys.stderr if options.output == PIPE else sys.stdout)
    return 0


if __name__ == "__main__":
    run(main)
