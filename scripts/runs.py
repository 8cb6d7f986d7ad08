"""List the finished runs in models/, or put two side by side.

    python scripts/runs.py
    python scripts/runs.py --sort macro_f1 --where text_fields=summary --csv runs.csv
    python scripts/runs.py --compare models/a models/b

The column settings has what differs from configs/base.json. Sort and filter by any key of
docs/configuration.md, or by run, finished, minutes, papers, macro_f1, accuracy (of the test papers)
and validation_macro_f1.
"""

import argparse
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """List or compare; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="?", default=Path("models"),
                        help="the folder of model directories (models)")
    parser.add_argument("--sort", default="finished", help="the largest first (finished)")
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE",
                        help="only these runs; may be given several times")
    parser.add_argument("--csv", type=Path, metavar="FILE",
                        help="write it there too, with all digits")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="MODEL")
    parser.add_argument("--figure", type=Path, default=Path("reports/figures/runs.png"),
                        help="where --compare draws the curves (reports/figures/runs.png)")
    options = parser.parse_args(arguments)
    from nej.experiments.runs import COLUMNS, Run, base_config, compare_runs, list_runs
    from nej.files import write_csv
    from nej.tables import text_table
    if options.compare:
        from nej.judging.figures import draw_curves
        print(text_table(compare_runs(*map(Run.load, options.compare))))
        draw_curves(options.compare, options.figure)
        print(f"curves: {options.figure}")
        return 0
    base = base_config()
    runs = list_runs(options.models, sort=options.sort, where=options.where)
    if not runs:
        lacking = (f"no finished run in {options.models} meets {' and '.join(options.where)}"
                   if options.where else f"no finished runs in {options.models}")
        print(lacking + (f"; {options.csv} is not written" if options.csv else ""))
        return 0
    print(text_table([COLUMNS, *(one.row(base) for one in runs)], left=(0, len(COLUMNS) - 1)))
    if options.csv:
        records = [one.record(base) for one in runs]
        write_csv(options.csv, tuple(records[0]), (record.values() for record in records))
        print(f"written: {options.csv}")
    return 0


if __name__ == "__main__":
    run(main)
