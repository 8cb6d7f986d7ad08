"""A run that is killed with SIGKILL, also while it saves, ends as if it had never been killed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.system


def test_two_kills_change_nothing():
    """The short form of `python benchmarks/kill_test.py --kills 50`."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "kill_test.py"), "--kills", "2", "--steps",
         "80"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "2 kills, " in done.stdout and "weights identical" in done.stdout
    assert "left over: nothing" in done.stdout
