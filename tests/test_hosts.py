"""Two hosts: network namespaces with addresses of their own, one of which is cut off."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.system
TIMEOUT = 8  # seconds that a process waits for the other


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Return the names of two network namespaces that a cable joins; skip where none can be."""
    names = [f"nej-{os.getpid()}-{side}" for side in "ab"]
    cables = [f"nej{os.getpid() % 100000}{side}" for side in "ab"]
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command ip")
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "delete", name)
            ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
            for number, (name, cable) in enumerate(zip(names, cables), 1):
                ip("link", "set", cable, "netns", name)
                ip("-n", name, "address", "add", f"10.213.7.{number}/24", "dev", cable)
                ip("-n", name, "link", "set", cable, "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        yield list(zip(names, cables))


def wait_for_a_checkpoint(partial: Path, launcher: subprocess.Popen) -> None:
    while not list((partial / "checkpoints").glob("checkpoint-*")):
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.05)


def test_one_of_two_hosts_is_cut_off(hosts, make_config, tmp_path):
    """Both stop in time and say why; the run goes on with one host, then with two."""
    output = tmp_path / "model"
    config = dataclasses.asdict(make_config(
        output_dir=str(output), max_steps=3000, eval_steps=20, dropout=0.0, ddp_timeout=TIMEOUT))
    (name, cable) = hosts[1]
    both = {"world_size": 2, "hosts": hosts, "master": "10.213.7.1"}
    (tmp_path / "runs.json").write_text(json.dumps([
        {"name": "cut", "config": config, "exit_code": 2, **both},
        {"name": "alone", "config": config, "world_size": 1, "stop_at": 500},
        {"name": "again", "config": config | {"max_steps": 520, "allow_changes": True}, **both,
         "before": ["ip", "-n", name, "link", "set", cable, "up"]}]))
    launcher = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "launch.py"), str(tmp_path / "runs.json")],
        stderr=subprocess.PIPE, text=True)
    wait_for_a_checkpoint(output.with_name("model.partial"), launcher)
    ip("-n", name, "link", "set", cable, "down")
    said = ""
    cut = time.monotonic()
    # not line by line: both may write at once, and print() writes the line's end by itself
    while said.count("cut, process") < 2 and (line := launcher.stderr.readline()):
        said += line
    assert time.monotonic() - cut < 3 * TIMEOUT
    assert said.count("another process of this run does not answer any more") == 2, said
    assert said.count("goes on from its last checkpoint") == 2, said
    _, rest = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, said + rest
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["global_step"] == 520
    steps = {name: [int(step) for rank in range(size) for step in json.loads(
        Path(f"{output}.{name}.{rank}.json").read_text())["steps"]]
        for name, size in (("alone", 1), ("again", 2))}
    assert 20 <= min(steps["alone"]) and max(steps["alone"]) == 499
    assert sorted(steps["again"]) == sorted(2 * list(range(500, 520)))
