"""Two hosts: network namespaces with addresses of their own, one of which is cut off."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
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


def start(host: tuple[str, str], rank: int, config: Path, *, hosts: int = 2) -> subprocess.Popen:
    """Start the one process of a host, with what a launcher tells it."""
    name, cable = host
    return subprocess.Popen(
        ["ip", "netns", "exec", name, sys.executable, str(ROOT / "scripts" / "train.py"),
         "--config", str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(hosts),
             "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.213.7.1", "MASTER_PORT": "29500",
             "GLOO_SOCKET_IFNAME": cable})


def wait_for_checkpoint(partial: Path, processes: list[subprocess.Popen], after: int = 0) -> int:
    for _ in range(1200):
        steps = [int(path.name.split("-")[1])
                 for path in (partial / "checkpoints").glob("checkpoint-*")]
        if steps and max(steps) > after:
            return max(steps)
        assert all(process.poll() is None for process in processes), processes[0].stdout.read()
        time.sleep(0.05)
    raise AssertionError("no checkpoint")


def test_one_of_two_hosts_is_cut_off(hosts, make_config, tmp_path):
    """Both stop in time and say why; the run goes on with one host, then with two."""
    output = tmp_path / "model"
    keys = {key: getattr(make_config(), key) for key in (
        "data_path", "model_name_or_path", "max_length", "learning_rate", "report_to", "bf16",
        "reports_dir")} | {
            "output_dir": str(output), "max_steps": 3000, "eval_steps": 20, "dropout": 0.0,
            "do_predict": False, "ddp_timeout": TIMEOUT, "near_duplicate_threshold": None}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(keys))
    processes = [start(host, rank, config) for rank, host in enumerate(hosts)]
    partial = output.with_name("model.partial")
    reached = wait_for_checkpoint(partial, processes)
    ip("-n", hosts[1][0], "link", "set", hosts[1][1], "down")
    cut = time.monotonic()
    for process in processes:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 2, said
        assert "another process of this run does not answer any more" in said
        assert "goes on from its last checkpoint" in said and "Traceback" not in said
    assert time.monotonic() - cut < 3 * TIMEOUT

    alone = start(hosts[0], 0, config, hosts=1)
    reached = wait_for_checkpoint(partial, [alone], after=reached)
    alone.terminate()
    said, _ = alone.communicate(timeout=60)
    assert alone.returncode == 130 and "going on from" in said

    ip("-n", hosts[1][0], "link", "set", hosts[1][1], "up")
    keys |= {"max_steps": reached + 200, "allow_changes": True}
    config.write_text(json.dumps(keys))
    processes = [start(host, rank, config) for rank, host in enumerate(hosts)]
    for process in processes:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert (output / "model.safetensors").exists() and load_file(output / "model.safetensors")
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["processes"] == 2 and manifest["steps"] == reached + 200
