"""Scripts in processes that are forked from one which has the imports behind it.

To import torch, transformers and datasets takes seconds, and the tests run some dozens of scripts.
What they do, print and return is the same; what Python does before is left to the tests that start
Python itself.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["nej.judging.evaluation", "nej.judging.figures", "nej.training"])


def run_script(script: str, *arguments, cwd: Path | None = None, env: dict[str, str] | None = None
               ) -> subprocess.CompletedProcess:
    """Run a file of scripts/ and return its exit code and what it wrote, as subprocess.run does.

    Args:
        env: read when it runs; what libraries read when they are imported stays as conftest.py has
            it.
    """
    with tempfile.TemporaryDirectory(prefix="nej-tests-forked-") as folder:
        written = [Path(folder, name) for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_run, args=(
            ROOT / "scripts" / script, [*map(str, arguments)], cwd or Path.cwd(),
            dict(os.environ if env is None else env), written))
        process.start()
        process.join(300)
        if process.is_alive():
            process.kill()
            process.join()
        return subprocess.CompletedProcess(
            [script, *arguments], process.exitcode, *(path.read_text("utf-8") for path in written))


def _run(path: Path, arguments: list[str], cwd: Path, env: dict[str, str], written: list[Path]
         ) -> None:
    for number, file in enumerate(written, 1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
