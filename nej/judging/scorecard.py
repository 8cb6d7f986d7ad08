"""Two models side by side, in the terminal or in a pull request; their size and speed."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from nej.judging.comparison import SAME, Change, Comparison
from nej.judging.lineage import own_dataset
from nej.prediction import BATCH_PAPERS, Classifier
from nej.tables import markdown_table, text_table

Table = list[tuple[str, ...]]  # the first row is the header


def text(found: Comparison, speed: Sequence[float] | None = None) -> str:
    """Return a comparison for the terminal; `speed` as of `measure_speed`."""
    parts = [f"{found.before.model_dir} (before) and {found.after.model_dir} (after)"]
    parts += [text_table(table) for table in _tables(found, speed)]
    return "\n\n".join([*parts, *_notes(found), found.sentence()])


def markdown(found: Comparison, speed: Sequence[float] | None = None) -> str:
    """Return a comparison as Markdown, the verdict first; `speed` as of `measure_speed`."""
    parts = [f"### `{found.before.model_dir}` (before) and `{found.after.model_dir}` (after)",
             f"**{found.sentence()}**"]
    parts += [markdown_table(table[0], table[1:]) for table in _tables(found, speed)]
    return "\n\n".join([*parts, *_notes(found)]) + "\n"


def measure_speed(model_dirs: Sequence[Path], *, seconds: float = 10.0) -> list[float]:
    """Return the papers per second of models on the same papers, measured in turn, twice each.

    The papers are tokenized before, as each model reads them. A rough figure: whatever else the
    machine does in these seconds counts.

    Args:
        seconds: what it may take in all, loading and warming up left out.

    Raises:
        InputError: the data that a model was judged on are not there.
    """
    papers = [own_dataset(folder)["test"].sort("id") for folder in model_dirs]
    models = [Classifier.load(folder) for folder in model_dirs]

    def measure(index: int, most: int) -> float:
        some = papers[index].select(range(most)).select_columns(["input_ids", "length"]).to_list()
        start = time.perf_counter()
        models[index].run(some, description=f"Speed of {model_dirs[index]}")
        return time.perf_counter() - start
    few, turns = min(BATCH_PAPERS, len(papers[0])), list(range(len(models)))
    for index in turns:  # what is done first takes longer
        measure(index, few)
    a_turn = sum(measure(index, few) for index in turns)
    most = int(np.clip(few * (seconds / a_turn - 1) / 2, few, len(papers[0])))
    times = np.array([[measure(index, most) for index in turns] for _ in range(2)])
    return (2 * most / times.sum(0)).tolist()


def size(model_dir: Path) -> tuple[int, float]:
    """Return a model's parameters and the MiB of its weights' file."""
    path = model_dir / "model.safetensors"
    with safe_open(path, "np") as weights:
        parameters = sum(int(np.prod(weights.get_slice(key).get_shape()))
                         for key in weights.keys())
    return parameters, path.stat().st_size / 2**20


def _tables(found: Comparison, speed: Sequence[float] | None) -> list[Table]:
    header = ("before", "after", "difference", "95 % interval", "beyond noise")
    figures: Table = [("", *header),
                      *(_row(change.name, change) for change in found.figures.values())]
    classes: Table = [("F1 of", "papers", *header)]
    for name, change in found.classes.items():
        first, *others = _row(name, change)
        classes.append((first, f"{change.papers:,}", *others))
    models = (found.before, found.after)
    sizes = [size(model.model_dir) for model in models]
    errors = [model.calibration_error for model in models]
    rest: Table = [("", "before", "after")]
    if None not in errors:
        rest.append(("expected calibration error", *(f"{error:.4f}" for error in errors)))
    rest += [("temperature", *(f"{model.temperature:.3f}" for model in models)),
             ("parameters", *(f"{parameters:,}" for parameters, _ in sizes)),
             ("weights, MiB", *(f"{mib:.1f}" for _, mib in sizes))]
    if speed:
        rest.append(("papers/s, roughly", *(f"{papers:,.0f}" for papers in speed)))
    return [figures, classes, rest]


def _row(name: str, change: Change) -> tuple[str, ...]:
    low, high = change.interval
    return (name, f"{change.before:.4f}", f"{change.after:.4f}", f"{change.difference:+z.4f}",
            f"{low:+z.4f} to {high:+z.4f}",
            "no" if change.verdict == SAME else change.verdict)


def _notes(found: Comparison) -> list[str]:
    return [
        f"Papers that one of them alone has right: before {found.lost:,}, after {found.won:,}; "
        f"p = {found.p_value:.2g} (McNemar's exact test). Of log loss, less is better.",
        "The intervals are of a paired bootstrap over the test papers: the luck of the draw of "
        "papers, not that of another seed of training. Of the classes, about one in twenty is "
        "beyond noise by chance alone."]
