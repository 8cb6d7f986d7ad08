"""Search for better settings without W&B, with Optuna and as many agents as wanted.

    python scripts/sweep.py configs/sweep.yaml --count 20
    python scripts/sweep.py configs/sweep.yaml --count 20 --config configs/starter.json

The yaml is the one that `wandb sweep` takes. Every key of docs/configuration.md can be given for
all trials, as --key value. The same command goes on with a search that was stopped or killed, and
takes part in one that runs, also from another machine that sees the same folders.
"""

import argparse
import signal
import sys
import threading
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Search, report; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="configs/sweep.yaml, or another")
    parser.add_argument("--count", type=int, help="trials in all, of all agents (the yaml's "
                                                  "run_cap, or 20, or all of a grid)")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time, here (1)")
    parser.add_argument("--folder", type=Path,
                        help="where the search is kept (reports/sweep/NAME, the yaml's name)")
    options, overrides = parser.parse_known_args(arguments)
    from nej import InputError
    for name in ("count", "jobs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} is {value}; it must be at least 1")

    # only now what takes seconds to import
    from nej.experiments.search import search
    from nej.experiments.sweep import load_sweep
    from nej.experiments.sweep_report import write_report

    sweep = load_sweep(options.sweep, overrides)
    count = options.count or sweep.run_cap or (len(sweep.grid()) if sweep.method == "grid" else 20)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    done = search(sweep, options.folder or Path("reports/sweep") / sweep.name,
                  count=count, jobs=options.jobs, stop=stop)
    if stop.is_set():
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130
    print(write_report(done))
    return 0


if __name__ == "__main__":
    run(main)
