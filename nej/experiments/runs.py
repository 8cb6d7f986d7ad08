"""What is in models/: every finished run with its settings and what it came to."""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nej import InputError
from nej.config import AROUND, Config, load_config
from nej.files import CONFIG_FILE
from nej.tables import interval_text

logger = logging.getLogger(__name__)

# where a run lies and how it is called says nothing of what was tried
COLUMNS = ("run", "finished", "macro F1", "accuracy", "validation macro F1", "papers", "minutes",
           "commit", "data", "settings")


@dataclass(frozen=True)
class Run:
    """A finished run, read from its model directory."""

    name: str  # of the directory
    config: dict[str, Any]
    manifest: dict[str, Any]
    metrics: dict[str, Any]

    @classmethod
    def load(cls, model_dir: Path) -> "Run":
        """Read a model directory.

        Raises:
            InputError: it is no finished one.
        """
        try:
            parts = [json.loads((model_dir / name).read_text("utf-8"))
                     for name in (CONFIG_FILE, "manifest.json", "metrics.json")]
            run = cls(model_dir.name, *parts)
            run.row(Config())  # needs what a finished one has, and so does the next
            run.record(Config())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{model_dir} is not a finished model directory ({error}); train one "
                             "with scripts/train.py, or name another") from error
        return run

    def value(self, key: str) -> Any:
        """Return a figure or a setting to sort and filter by; None if the run has none.

        macro_f1 and accuracy are those of the test papers.
        """
        figures = {
            "run": self.name, "finished": self.manifest["finished"],
            "minutes": self.manifest["training_seconds"] / 60,
            "papers": self.manifest["papers"]["train"],
            "validation_macro_f1": self.metrics["validation"].get("macro_f1"),
            **{name: self.metrics.get("test", {}).get(name) for name in ("macro_f1", "accuracy")}}
        return figures[key] if key in figures else self.config.get(key)

    def row(self, base: Config) -> tuple[str, ...]:
        """Return what COLUMNS name, as text."""
        git = self.manifest["git"]
        return (
            self.name, self.manifest["finished"][:16].replace("T", " "), self._figure("macro_f1"),
            self._figure("accuracy"), f"{self.metrics['validation'].get('macro_f1', 0):.3f}",
            f"{self.manifest['papers']['train']:,}",
            f"{self.manifest['training_seconds'] / 60:.1f}",
            "" if git is None else git["commit"][:8] + "+" * git["dirty"],
            self.manifest["data"]["md5"][:8],
            " ".join(f"{key}={_text(value)}"
                     for key, value in differences(asdict(base), self.config).items()))

    def record(self, base: Config) -> dict[str, Any]:
        """Return the same for a CSV, numbers with all their digits and the ends of intervals."""
        git, data = self.manifest["git"] or {}, self.manifest["data"]
        test = self.metrics.get("test", {})
        found = {"run": self.name, "finished": self.manifest["finished"]}
        for key in ("macro_f1", "accuracy"):
            low, high = test.get("intervals", {}).get(key) or (None, None)
            found |= {key: test.get(key), f"{key}_low": low, f"{key}_high": high}
        return found | {
            **{key: self.value(key) for key in ("validation_macro_f1", "papers")},
            "seconds": self.manifest["training_seconds"], "commit": git.get("commit"),
            "dirty": git.get("dirty"), "data_md5": data["md5"],
            "data_revision": data.get("dvc_revision"),
            "settings": json.dumps(differences(asdict(base), self.config))}

    def _figure(self, key: str) -> str:
        test = self.metrics.get("test")
        if test is None:
            return ""
        bounds = test.get("intervals", {}).get(key)
        return f"{test[key]:.3f}" + (f" ({interval_text(bounds)})" if bounds else "")


def list_runs(models: Path, *, sort: str = "finished", where: Sequence[str] = ()) -> list[Run]:
    """Return the finished runs in a folder, the largest of `sort` first.

    A directory that is broken is left out, and one line says why.

    Args:
        sort: a key of `Run.value`, a setting for one; runs that do not have it come last.
        where: conditions `key=value`, all of which a run meets.

    Raises:
        InputError: no such folder, an unknown key, a condition without `=`.
    """
    if not models.is_dir():
        raise InputError(f"no folder {models}; name the one that model directories are in")
    conditions = []
    for condition in where:
        key, equals, text = condition.partition("=")
        if not equals:
            raise InputError(f"--where {condition!r} is no condition; give key=value, "
                             "text_fields=summary for one")
        conditions.append((key, text))
    runs = []
    for folder in sorted(path.parent for path in models.glob("*/manifest.json")):
        if folder.is_symlink() or folder.suffix in (".partial", ".replaced"):
            continue  # models/production, which is one of the others; what a kill left behind
        try:
            runs.append(Run.load(folder))
        except InputError as error:
            logger.warning("left out: %s", error)
    known = {*asdict(Config()), "run", "finished", "minutes", "papers", "validation_macro_f1",
             "macro_f1", "accuracy"}
    for key in (sort, *(key for key, _ in conditions)):
        if key not in known:
            raise InputError(f"runs have no {key!r}; there are the keys of docs/configuration.md, "
                             "and run, finished, minutes, papers, macro_f1, accuracy, "
                             "validation_macro_f1")
    runs = [run for run in runs
            if all(_is(run.value(key), text) for key, text in conditions)]
    there = [run for run in runs if run.value(sort) is not None]
    there.sort(key=lambda run: (isinstance(run.value(sort), str), run.value(sort)), reverse=True)
    return there + [run for run in runs if run.value(sort) is None]


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of `other` that are not those of `one`, places and names left out."""
    return {key: value for key, value in other.items()
            if key not in AROUND and value != one.get(key)}


def compare_runs(one: Run, other: Run) -> list[tuple[str, ...]]:
    """Return settings and figures in which two runs differ: rows of name, one, other, difference.

    It says nothing of noise; scripts/compare.py does, for models tested on the same papers.
    """
    rows: list[tuple[str, ...]] = [("", one.name, other.name, "difference")]
    changed = {**differences(other.config, one.config), **differences(one.config, other.config)}
    rows += [(key, *(_text(run.config[key]) if key in run.config else "" for run in (one, other)),
              "") for key in sorted(changed)]  # an older run may lack a key
    for part in ("validation", "test"):
        figures = [run.metrics.get(part, {}) for run in (one, other)]
        for key in figures[0]:
            values = [found.get(key) for found in figures]
            if all(isinstance(value, float) for value in values):
                rows.append((f"{part} {key}", *(f"{value:.4f}" for value in values),
                             f"{values[1] - values[0]:+.4f}"))
    for key in ("papers", "minutes"):
        values = [float(run.value(key)) for run in (one, other)]
        rows.append((key, *(f"{value:,.1f}".removesuffix(".0") for value in values),
                     f"{values[1] - values[0]:+,.1f}".removesuffix(".0")))
    return rows


def _is(value: Any, text: str) -> bool:
    """Return whether a text names a value: a number in any way to write it, True as true."""
    if type(value) in (int, float):
        with suppress(ValueError):
            return value == float(text)
    return _text(value) == (text.lower() if isinstance(value, bool) else text)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def base_config() -> Config:
    """Return the config that settings are told apart from; the defaults where there is no file."""
    path = Path("configs/base.json")
    return load_config(path if path.exists() else None)
