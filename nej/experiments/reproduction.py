"""Make a model again from its manifest, and say whether it is the same."""

import importlib.metadata
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nej import InputError
from nej.data.revisions import cache_folder, pull, work_tree
from nej.files import CONFIG_FILE, TRACE, checksum, read_manifest

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reproduction:
    """What came of training again."""

    weights_sha256: str
    differences: list[str]  # what differs, in the order in which it matters; empty if identical

    def text(self) -> str:
        """Return the verdict."""
        if not self.differences:
            return f"identical: weights {self.weights_sha256}"
        return "\n".join(["different, and this is what differs, first things first:",
                          *(f"  {difference}" for difference in self.differences)])


def reproduce(model_dir: Path) -> Reproduction:
    """Train again as the manifest of `model_dir` says, aside, and compare.

    The code is that of the manifest's commit, in a work tree of its own, the data that of its md5,
    from its place, DVC's cache or remote. The environment is the present one, and is compared.

    Raises:
        InputError: no manifest, or the commit, data or starting checkpoint cannot be had.
    """
    manifest = read_manifest(model_dir)
    config = json.loads((model_dir / CONFIG_FILE).read_text("utf-8"))
    if not manifest["git"]:
        raise InputError(f"{model_dir}: its manifest names no commit; it was made outside git")
    with tempfile.TemporaryDirectory(prefix="nej-reproduce-") as scratch, \
            work_tree(manifest["git"]["commit"], Path(scratch) / "tree",
                      repository=REPOSITORY) as tree:
        data = _find_data(manifest, Path(config["data_path"]), tree)
        off_pins = _off_pins(tree)  # what it warns of is better known before the hours
        again = Path(scratch) / "model"
        command = [sys.executable]
        if manifest["processes"] > 1:
            command += ["-m", "torch.distributed.run", "--nproc_per_node",
                        str(manifest["processes"])]
        command += [str(tree / "scripts" / "train.py"), "--config", str(model_dir / CONFIG_FILE),
                    "--output_dir", str(again), "--data_path", str(data), "--report_to", "none",
                    "--do_predict", "false", "--reports_dir", str(Path(scratch) / "reports")]
        logger.info("training again at commit %s, with %d threads", manifest["git"]["commit"][:12],
                    manifest["threads"])
        done = subprocess.run(command, stdout=sys.stderr, env=os.environ | dict.fromkeys(
            ("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(manifest["threads"])))
        if done.returncode:
            raise InputError(f"training again ended with exit code {done.returncode}; its own "
                             "message above says why")
        return _compare(model_dir, manifest, again, read_manifest(again), off_pins)


def _find_data(manifest: dict[str, Any], path: Path, tree: Path) -> Path:
    """Return a file that has the md5 of the manifest's data."""
    md5 = manifest["data"]["md5"]
    places, cache = [path], cache_folder(tree)
    if cache is not None:
        places.append(cache / "files" / "md5" / md5[:2] / md5[2:])
    for place in places:
        if place.is_file() and checksum(place, "md5") == md5:
            return place.resolve()
    with suppress(InputError):
        if checksum(pulled := pull(tree, path, repository=REPOSITORY), "md5") == md5:
            return pulled
    raise InputError(f"{path}: no file with md5 {md5} there, in DVC's cache or in a remote; go "
                     "back to that version of the data (docs/data.md)")


def _off_pins(tree: Path) -> list[str]:
    """Return what is installed in other versions than that commit pins."""
    found = []
    for name, pinned in re.findall(r"^([\w-]+)==([\w.+-]+)",
                                   (tree / "requirements.txt").read_text("utf-8"), re.M):
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "none"
        if installed.split("+")[0] != pinned.split("+")[0]:
            found.append(f"environment: {name} {pinned} is pinned, {installed} installed")
    for line in found:
        logger.warning(line)
    return found


def _compare(model_dir: Path, before: dict[str, Any], again: Path, after: dict[str, Any],
             off_pins: list[str]) -> Reproduction:
    """Compare two runs by their manifests and, step by step, by loss and gradient norm."""
    weights = after["weights_sha256"]
    if before["weights_sha256"] == weights:
        return Reproduction(weights, [])
    found = [f"settings, changed while the run was stopped: {change}"
             for change in before.get("settings_changed", [])]
    if before["git"]["dirty"]:
        found.append("code: the model was made from files that differ from its commit "
                     f"{before['git']['commit'][:12]}")
    flat = [_flat({key: run.get(key) for key in (
        "data", "split_sha256", "starting_checkpoint", "python", "packages", "threads",
        "processes", "device", "precision", "platform")}) for run in (before, after)]
    found += [f"{key}: {flat[0][key]} then, {flat[1].get(key)} now" for key in flat[0]
              if flat[0][key] not in (None, flat[1].get(key))
              # where things lie, and who pinned the data, does not matter
              and not key.endswith((".path", ".name", ".dvc_revision"))]
    found += off_pins
    traces = [(folder / TRACE).read_text("utf-8").splitlines()
              for folder in (model_dir, again) if (folder / TRACE).exists()]
    if len(traces) == 2:
        step = next((number for number, pair in enumerate(zip(*traces)) if pair[0] != pair[1]),
                    min(map(len, traces)))
        if step < max(map(len, traces)):
            found.append(f"first differing step: {step} (loss and gradient norm in {TRACE})")
    for name in ("macro_f1", "accuracy"):
        values = [run["validation"][name] for run in (before, after) if "validation" in run]
        if len(values) == 2:
            found.append(f"validation {name}: {values[0]:.4f} then, {values[1]:.4f} now")
    if len(values) == 2:
        # a share of papers: the standard error of a difference, as if of other papers each time
        error = math.sqrt(2 * values[0] * (1 - values[0]) / before["papers"]["validation"])
        agree = abs(values[1] - values[0]) <= 1.96 * error
        found[-1] += (f", which {'is' if agree else 'is NOT'} within ±{1.96 * error:.4f}, a rough "
                      "95 % interval of what chance does")
    return Reproduction(weights, found or ["weights: nothing else that the manifest knows of"])


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {
            f"{prefix}{key}": value}
    return leaves
