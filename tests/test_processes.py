"""One process, two or four: the same papers in the same steps, and what is learned from them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.system
STOP = 9


def train_in_several_ways(folder: Path, papers_csv: Path, tiny_model: str) -> dict:
    """Train in several ways; return of each run its model directory and what each process saw."""
    from nej.config import load_config
    config = dataclasses.asdict(dataclasses.replace(
        load_config(), data_path=str(papers_csv), model_name_or_path=tiny_model, max_length=64,
        micro_batch_tokens=400, report_to="none", num_train_epochs=1.2, learning_rate=1e-3,
        eval_steps=0.25, dropout=0.0, bf16=False))
    plan = []

    def add(name: str, output: str, world_size: int, *, stop_at: int | None = None,
            tracked: bool = False, **settings):
        plan.append({"name": name, "world_size": world_size, "stop_at": stop_at, "tracked": tracked,
                     "config": config | settings | {"output_dir": str(folder / output)}})
    for world_size in (1, 2, 4):
        add("whole", f"whole-{world_size}", world_size)
    add("begun", "one-to-two", 1, stop_at=STOP)
    add("ended", "one-to-two", 2)
    add("begun", "four-to-one", 4, stop_at=STOP)
    add("ended", "four-to-one", 1)
    bf16 = {"bf16": True, "dropout": 0.1}
    add("whole", "bf16", 2, tracked=True, **bf16)
    add("begun", "bf16-stopped", 2, stop_at=STOP, **bf16)
    add("ended", "bf16-stopped", 2, **bf16)
    (folder / "runs.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "launch.py"), str(folder / "runs.json")],
        capture_output=True, text=True, env={
            **os.environ, "OMP_NUM_THREADS": "1", "WANDB_DIR": str(folder)})
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for run in plan:
        output = Path(run["config"]["output_dir"])
        found[output.name, run["name"]] = output, [
            json.loads(Path(f"{output}.{run['name']}.{rank}.json").read_text())
            for rank in range(run["world_size"])]
    return found


def papers_by_step(processes: list[dict]) -> dict[int, list[str]]:
    """Return the papers of each step, over all processes."""
    return {int(step): sorted(sum((process["steps"].get(step, []) for process in processes), []))
            for step in processes[0]["steps"]}


def largest_difference(one: Path, other: Path) -> float:
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    return max((one[name] - other[name]).abs().max().item() for name in one)


def check_the_same_papers_meet_in_the_same_steps(runs, world_size):
    alone, several = (papers_by_step(runs[f"whole-{size}", "whole"][1]) for size in (1, world_size))
    assert alone == several
    epoch = sum((alone[step] for step in range(15)), [])
    assert len(epoch) == len(set(epoch)) and len(alone) == 18  # a step of the last papers too
    sizes = {len(papers) for papers in alone.values()}
    assert max(sizes) == 32 and len(sizes) == 2
    shares = [sum(map(len, process["steps"].values()))
              for process in runs[f"whole-{world_size}", "whole"][1]]
    assert min(shares) > 0.5 * sum(shares) / world_size


def check_they_learn_the_same_up_to_rounding(runs, world_size):
    alone, several = runs["whole-1", "whole"][0], runs[f"whole-{world_size}", "whole"][0]
    assert largest_difference(alone, several) < 2e-5


def check_each_paper_is_validated_once(runs, world_size):
    output, processes = runs[f"whole-{world_size}", "whole"]
    assert {count for process in processes for count in process["validated"]} == {
        runs["whole-1", "whole"][1][0]["validated"][0]}
    metrics = [json.loads((runs[f"whole-{size}", "whole"][0] / "metrics.json").read_text())
               for size in (1, world_size)]
    assert metrics[0]["validation"]["accuracy"] == metrics[1]["validation"]["accuracy"]


def check_a_run_goes_on_with_another_number_of_processes(runs, output):
    begun, ended = (papers_by_step(runs[output, part][1]) for part in ("begun", "ended"))
    assert all(process["interrupted"] for process in runs[output, "begun"][1])
    assert begun | ended == papers_by_step(runs["whole-1", "whole"][1])
    assert list(begun) == list(range(STOP)) and min(ended) == STOP
    assert largest_difference(runs["whole-1", "whole"][0], runs[output, "ended"][0]) < 2e-5


def check_two_processes_in_bf16_go_on_to_the_same_bits(runs):
    assert largest_difference(runs["bf16", "whole"][0], runs["bf16-stopped", "ended"][0]) == 0


def check_only_the_first_process_talks_to_wandb(folder):
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1


def test_one_two_and_four_processes(tmp_path, papers_csv, tiny_model):
    """One test, as the runs are made once."""
    runs = train_in_several_ways(tmp_path, papers_csv, tiny_model)
    for world_size in (2, 4):
        check_the_same_papers_meet_in_the_same_steps(runs, world_size)
        check_they_learn_the_same_up_to_rounding(runs, world_size)
        check_each_paper_is_validated_once(runs, world_size)
    for output in ("one-to-two", "four-to-one"):
        check_a_run_goes_on_with_another_number_of_processes(runs, output)
    check_two_processes_in_bf16_go_on_to_the_same_bits(runs)
    check_only_the_first_process_talks_to_wandb(tmp_path)
