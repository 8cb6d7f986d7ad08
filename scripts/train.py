"""Train a classifier as a config says, and judge it on the test papers.

    accelerate launch scripts/train.py --config configs/base.json
    accelerate launch scripts/train.py --config configs/base.json --learning_rate 3e-5

Every key of docs/configuration.md can be given as --key value or --key=value. The same command
goes on with a run that was stopped. The model directory is the config's output_dir.
"""

import argparse
import sys
from pathlib import Path

from _run import Parser, importing, run


def main(arguments: list[str]) -> int:
    """Train, save, judge; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="a JSON file of keys; see configs/")
    options, overrides = parser.parse_known_args(arguments)
    with importing():
        from nej.config import load_config
    config = load_config(options.config, overrides)
    with importing():  # only now what takes seconds
        from accelerate import PartialState

        from nej.judging.card import write_card
        from nej.manifest import origin, write_manifest
        from nej.training import train

    made_from = origin(config)

    def finish(folder, result):
        write_manifest(folder, config, result, made_from)
        write_card(folder)

    trackers = []
    if config.report_to == "wandb":
        from nej.experiments.tracking import Tracker
        trackers.append(Tracker(config, made_from))
    result = train(config, callbacks=trackers, finish=finish)
    if result.interrupted:
        print(f"stopped after step {result.steps}; the same command goes on from there",
              file=sys.stderr)
        return 130
    if not PartialState().is_main_process:
        return 0
    with importing():
        from nej.judging.figures import draw_model
    if config.do_predict:
        with importing():
            from nej.judging.evaluation import evaluate
        report = evaluate(result.model_dir)
        print(f"{report.table()}\nreport: {result.model_dir}/report.html")
    pictures = draw_model(result.model_dir, Path(config.reports_dir) / "figures")
    for tracker in trackers:
        tracker.finish(result.model_dir)
    print(f"trained {result.papers['train']:,} papers in {result.seconds:.0f} s\n"
          f"model: {result.model_dir}\nfigures: {', '.join(map(str, pictures))}")
    return 0


if __name__ == "__main__":
    run(main)
