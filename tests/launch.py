"""Train by several processes that are forked from one, which imports the libraries only once.

    python tests/launch.py runs.json

runs.json is a list of {"name", "world_size", "config"}; they run one after the other. More keys:
"stop_at", a step; "tracked", whether by W&B; "hosts", for each process a network namespace and the
name of its cable, the first of which has the address "master"; "before", a command to run first;
"exit_code", what each process must end with. Each process writes <output_dir>.<name>.<rank>.json:
the papers of each of its steps, how many were validated, and whether the run was stopped.
"""

import ctypes
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from nej import InputError, training  # noqa: E402
from nej.config import Config  # noqa: E402


class StopAt(TrainerCallback):
    """Ask the first process alone to stop after a step."""

    def __init__(self, step: int | None):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step and state.is_world_process_zero:
            signal.raise_signal(signal.SIGTERM)


def process(run: dict, rank: int, port: int) -> None:
    """Be one process of a run."""
    os.environ.update({
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(run["world_size"]),
        "LOCAL_WORLD_SIZE": str(run["world_size"]), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port)})
    if "hosts" in run:
        name, cable = run["hosts"][rank]
        enter_host(name)
        os.environ.update({"MASTER_ADDR": run["master"], "GLOO_SOCKET_IFNAME": cable})
    steps, validated = defaultdict(list), []
    training_step, validate = training.PaperTrainer.training_step, training._validate

    def recorded_step(trainer, model, inputs, *args, **kwargs):
        papers = inputs["input_ids"].split(inputs["lengths"].tolist())
        steps[trainer.state.global_step] += [
            hashlib.md5(paper.numpy().tobytes()).hexdigest()
            for paper, label in zip(papers, inputs["labels"].tolist()) if label != -100]
        return training_step(trainer, model, inputs, *args, **kwargs)

    def recorded_validation(prediction, **settings):
        validated.append(len(prediction.label_ids))
        return validate(prediction, **settings)

    training.PaperTrainer.training_step = recorded_step
    training._validate = recorded_validation
    config = Config(**run["config"])
    callbacks = [StopAt(run.get("stop_at"))]
    if run.get("tracked"):
        from nej.experiments.tracking import Tracker
        from nej.manifest import origin
        callbacks.append(Tracker(config, origin(config)))
    result = training.train(config, callbacks=callbacks)
    Path(f"{run['config']['output_dir']}.{run['name']}.{rank}.json").write_text(json.dumps({
        "steps": steps, "validated": validated, "interrupted": result.interrupted}))


def enter_host(name: str) -> None:
    """Move this process into a network namespace."""
    with open(f"/run/netns/{name}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000) != 0:  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), f"no way into {name}")


def main() -> None:
    """Run them all; stop at the first that fails."""
    torch.set_num_threads(1)
    for run in json.loads(Path(sys.argv[1]).read_text()):
        subprocess.run(run.get("before", ["true"]), check=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(run["world_size"]):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    process(run, rank, port)
                    code = 0
                except InputError as error:
                    code = 2
                    print(f"{run['name']}, process {rank}: {error}", file=sys.stderr)
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if set(codes) != {run.get("exit_code", 0)}:
            sys.exit(f"{run['name']}: exit codes {codes}")


if __name__ == "__main__":
    main()
