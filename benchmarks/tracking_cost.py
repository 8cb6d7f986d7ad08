"""Measure what tracking a run by W&B costs: time of a step, start and end, and memory.

    python benchmarks/tracking_cost.py
    python benchmarks/tracking_cost.py --steps 50 --rounds 5 --memory_steps 4000

Time: a model of the starter's size learns the same papers tracked and not, in turn, in one process;
every step is logged, which by default only runs of up to 100 steps do. Each figure is the median of
the rounds, the ratio that of the medians. Memory: a very small model takes many steps, each of them
logged, and this process and W&B's are looked at after a tenth and at the end. Tracking is offline:
what goes over a network, W&B's own process sends beside the training.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)
STARTER = {"dim": 384, "n_layers": 6, "n_heads": 12, "hidden_dim": 1536}
MIB = 2 ** 20


def memory(name: str) -> int:
    """Return the resident bytes of this process ("self"), or of its child that has this name."""
    found = [Path("/proc/self")]
    if name != "self":
        children = {child for file in Path("/proc/self/task").glob("*/children")
                    for child in file.read_text().split()}
        found = [path for path in (Path("/proc", child) for child in children)
                 if (path / "comm").read_text().strip() == name]
    return sum(int((path / "statm").read_text().split()[1]) for path in found) * os.sysconf(
        "SC_PAGESIZE")


def run(config, *, tracked: bool) -> dict:
    """Train once; return the seconds of a step, of start and end, and the memory on the way."""
    import wandb
    from transformers import TrainerCallback

    from nej.experiments.tracking import Tracker
    from nej.manifest import origin
    from nej.training import train

    class Watch(TrainerCallback):
        """The last of the callbacks: it sees steps with all that the tracker does in them."""

        def __init__(self):
            self.times, self.memory = [], []

        def on_step_begin(self, args, state, control, **kwargs):
            self.times.append(time.perf_counter())
            if state.global_step in (state.max_steps // 10, state.max_steps - 1):
                self.memory.append({name: memory(name) for name in ("self", "wandb-core")})

    watch, trackers = Watch(), [Tracker(config, origin(config))] if tracked else []
    seconds = {}
    for tracker in trackers:
        begin = tracker.on_train_begin

        def timed(*arguments, **others):
            before = time.perf_counter()
            begin(*arguments, **others)
            seconds["start"] = time.perf_counter() - before
        tracker.on_train_begin = timed
    with open(os.devnull, "w") as nothing, redirect_stdout(nothing):  # Trainer prints its logs
        result = train(config, callbacks=[*trackers, watch], finish=write_what_tracking_reads)
    before = time.perf_counter()
    for tracker in trackers:
        tracker.finish(result.model_dir)
    wandb.teardown()
    steps = [b - a for a, b in zip(watch.times[3:], watch.times[4:])]  # the first warm up
    return seconds | {"step": statistics.mean(steps), "end": time.perf_counter() - before,
                      "memory": watch.memory}


def write_what_tracking_reads(folder: Path, result) -> None:
    """Write a manifest, with nothing in it."""
    from nej.files import write_json
    write_json(folder / "manifest.json", {})


def main() -> int:
    """Measure and print; exit code 0 if the steps took less than 2 % more."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="of each run (40)")
    parser.add_argument("--rounds", type=int, default=5, help="of both (5)")
    parser.add_argument("--memory_steps", type=int, default=4000)
    options = parser.parse_args()
    os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1",
                   "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryDirectory(prefix="nej-tracking-") as scratch:
        folder = Path(scratch)
        for name in ("CACHE", "DATA", "CONFIG"):
            os.environ[f"WANDB_{name}_DIR"] = str(folder / name.lower())
        os.environ |= {"HF_HOME": str(folder / "cache"), "WANDB_DIR": str(folder)}
        from benchmarks.kill_test import make_project
        from nej.config import load_config

        def config(name: str, steps: int, **sizes: int):
            (folder / name).mkdir()
            found = load_config(make_project(folder / name, steps, **sizes))
            return replace(found, output_dir=str(folder / name / "model"), eval_steps=steps,
                           overwrite_output_dir=True, logging_steps=1)
        large = config("large", options.steps, max_length=128, **STARTER)
        found = {tracked: [] for tracked in (False, True)}
        for number in range(options.rounds):
            for tracked in (False, True) if number % 2 == 0 else (True, False):
                found[tracked].append(run(large, tracked=tracked))
        off, on = (statistics.median(one["step"] for one in found[tracked])
                   for tracked in (False, True))
        start, end = (statistics.median(one[key] for one in found[True])
                      for key in ("start", "end"))
        print(f"step: {off * 1e3:.1f} ms not tracked, {on * 1e3:.1f} ms tracked, ratio "
              f"{on / off:.4f}; once: {start:.1f} s at the start, {end:.1f} s at the end")
        small = config("small", options.memory_steps)
        for tracked in (False, True):
            first, last = run(small, tracked=tracked)["memory"]
            grown = (f"{name} {first[name] / MIB:.0f} to {last[name] / MIB:.0f} MiB"
                     for name in ("self", "wandb-core") if last[name])
            print(f"memory, {'tracked' if tracked else 'not tracked'}, after "
                  f"{options.memory_steps // 10:,} and {options.memory_steps:,} steps: "
                  f"{', '.join(grown)}")
    return int(on / off > 1.02)


if __name__ == "__main__":
    sys.exit(main())
