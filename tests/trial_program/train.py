"""A trial that costs nothing: it writes what scripts/train.py writes, as far as a sweep reads it.

Its score is the better the nearer learning_rate is to 1e-3, and rises with each of five
validations; over 0.5 it fails. Each start appends its id, first validation and process to
starts.txt.
"""

import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from filelock import FileLock

VALIDATIONS = 5


def main() -> None:
    """Go on with what lies there, one validation after the other."""
    given = dict(item[2:].split("=", 1) for item in sys.argv[1:] if item.startswith("--") and (
        "=" in item))
    rate, model_dir = float(given["learning_rate"]), Path(
        os.path.expandvars(given["output_dir"]))
    if rate > 0.5:
        print(f"error: learning_rate is {rate}; that is too much", file=sys.stderr)
        sys.exit(2)
    checkpoints = model_dir.with_name(model_dir.name + ".partial") / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    with FileLock(model_dir.with_name(model_dir.name + ".lock"), timeout=0):
        first = len(list(checkpoints.glob("checkpoint-*"))) + 1
        with open(model_dir.parent / "starts.txt", "a") as starts:
            starts.write(f"{os.environ['WANDB_RUN_ID']} {first} {os.getpid()}\n")
        final = 1 - abs(math.log10(rate / 1e-3)) / 4
        scores = [final * (0.5 + 0.1 * number) for number in range(1, VALIDATIONS + 1)]
        for number in range(first, VALIDATIONS + 1):
            time.sleep(float(os.environ.get("TRIAL_SECONDS", 0)))
            if stop:
                sys.exit(130)
            write(checkpoints / f"checkpoint-{number}", scores[:number])
        write(model_dir, scores)
        (model_dir / "metrics.json").write_text(json.dumps(
            {"validation": {"macro_f1": scores[-1]}}))
        (model_dir / "training_config.json").write_text("{}")
        shutil.rmtree(checkpoints.parent)


def write(folder: Path, scores: list[float]) -> None:
    """Write a trainer_state.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".state"
    aside.write_text(json.dumps({"log_history": [{"eval_macro_f1": score} for score in scores]}))
    aside.rename(folder / "trainer_state.json")


if __name__ == "__main__":
    main()
