"""Which papers a model has seen: in its own training, and in that of what it was started from."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nej import InputError
from nej.config import load_config
from nej.dataset import load_dataset
from nej.files import CONFIG_FILE, checksum
from nej.model import STARTER, load_tokenizer
from nej.splits import SPLITS, assign, positions


def lineage(model_dir: Path) -> list[Path]:
    """Return the model directory and those that it was started from in turn, newest first.

    Raises:
        InputError: one of them cannot be known any more: it is gone, or holds another model now.
    """
    found = [model_dir]
    while True:
        start = _read(found[-1], "manifest.json", {}).get("starting_checkpoint", {})
        # the manifest has where a link led, which the config names
        name = start.get("name") or _read(found[-1], CONFIG_FILE)["model_name_or_path"]
        folder = Path(name)
        lost = f"{found[-1]} was started from {name}, which "
        if not folder.is_dir():
            if _was_a_folder(folder):
                raise InputError(f"{lost}is not there any more, so that the papers it has seen "
                                 "cannot be known; put it back")
            return found
        if not any((folder / file).exists() for file in ("manifest.json", CONFIG_FILE)):
            return found  # no model of nej's: it has seen none of the papers with their classes
        if folder.resolve() in [link.resolve() for link in found] or (
                start and checksum(folder / "model.safetensors") != start["sha256"]):
            raise InputError(f"{lost}holds another model now, so that the papers the former one "
                             "has seen cannot be known; put that one back")
        found.append(folder)


def papers_seen(model_dir: Path, ids: Collection[str]) -> int:
    """Return how many papers are on the training or validation side of a model's own split.

    By the hash of their ids, whether or not they were in its data; by date, those that were.

    Raises:
        InputError: the split is by date, and the data that it was trained on are not there.
    """
    config = _read(model_dir, CONFIG_FILE)
    if not ids:
        return 0
    if config["test_from"] is None:
        split = assign(positions(ids), validation_fraction=config["validation_fraction"],
                       test_fraction=config["test_fraction"])
        return int(np.sum(split != SPLITS.index("test")))
    try:
        dataset = own_dataset(model_dir)
    except InputError as error:
        raise InputError(f"{model_dir} was trained on the papers before a day, and whether it has "
                         f"seen the test papers cannot be known: {error}") from error
    asked = pa.array(ids, pa.string())
    return sum(pc.sum(pc.is_in(dataset[split].data.column("id"), value_set=asked)).as_py() or 0
               for split in SPLITS if split != "test")


def own_dataset(model_dir: Path) -> datasets.DatasetDict:
    """Return the papers that a model was trained and judged on, tokenized as it reads them.

    Raises:
        InputError: the data are not where its config says, or are another version.
    """
    config = load_config(model_dir / CONFIG_FILE)
    path, trained = Path(config.data_path), _read(model_dir, "manifest.json")["data"]["md5"]
    if not path.is_file() or checksum(path, "md5") != trained:
        raise InputError(f"{path} is not there with the md5 {trained} that {model_dir} was trained "
                         "on; go back to that version of the data (docs/data.md)")
    return load_dataset(config, load_tokenizer(str(model_dir)))


def _read(model_dir: Path, name: str, default: Any = None) -> dict[str, Any]:
    try:
        return json.loads((model_dir / name).read_text("utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        raise InputError(f"{model_dir} is not a finished model directory: no {name} in it; train "
                         "one with scripts/train.py, or name another") from None


def _was_a_folder(path: Path) -> bool:
    """Return whether a name that is no folder now was one, and not a model on the hub.

    'models/x' could be both; it was a folder if there is still a folder 'models'.
    """
    if path.parts[-len(STARTER.parts):] == STARTER.parts:
        return False  # the starter can be made again, and has seen no paper with its class
    return path.is_absolute() or len(path.parts) > 2 or (
        len(path.parts) == 2 and path.parent.is_dir())
