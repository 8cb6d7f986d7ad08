"""Is a new model really better: two models on the same test papers, with paired intervals."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from nej import InputError
from nej.files import read_json, require_model
from nej.judging.intervals import Bootstrap, beyond_noise, interval, whole_and_drawn
from nej.judging.judgement import COMPARED, LEAST_PROBABILITY
from nej.judging.lineage import lineage, papers_seen

COLUMNS = ["id", "actual", "predicted", "actual_probability", "actual_rank"]
TOP = 3
BETTER, SAME, WORSE = "better", "no different", "worse"
WORDS = {BETTER: "is better than {}, beyond noise", WORSE: "is worse than {}, beyond noise",
         SAME: "is neither better nor worse than {} beyond noise"}


@dataclass(frozen=True)
class Judged:
    """A finished model and what it made of its test papers, in the order of their ids."""

    model_dir: Path
    names: list[str]  # of the classes, sorted
    ids: list[str]
    labels: np.ndarray  # int64 (papers,): places in `names`
    predicted: np.ndarray  # the same
    surprise: np.ndarray  # float64 (papers,): -log of the probability that the true class was given
    rank: np.ndarray  # int64 (papers,): of the true class, 1 for the model's first choice
    calibration_error: float | None  # None if it was not measured
    temperature: float

    @classmethod
    def load(cls, model_dir: Path) -> "Judged":
        """Read what training and judging wrote.

        Raises:
            InputError: no finished model there, not judged, or by a version of nej that was
                before ranks.
        """
        require_model(model_dir)
        config, metrics, calibration = (read_json(model_dir / f"{name}.json") for name in (
            "config", "metrics", "calibration"))
        path = model_dir / "predictions.csv"
        again = f"judge the model with `python scripts/evaluate.py {model_dir}`"
        if "test" not in metrics or not path.exists():
            raise InputError(f"{model_dir}: it was not judged on its test papers; {again}")
        table = pd.read_csv(path, keep_default_na=False,  # a class may be called NA
                            dtype=dict.fromkeys(("id", "actual", "predicted"), str))
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}; {again}")
        table = table.sort_values("id")
        names = sorted(config["id2label"].values())
        labels, predicted = (pd.Categorical(table[name], names).codes.astype(np.int64)
                             for name in ("actual", "predicted"))
        if min(labels.min(), predicted.min()) < 0 or table["id"].duplicated().any():
            raise InputError(f"{path} has classes that are not the model's, or a paper twice; "
                             f"{again}")
        return cls(
            model_dir, names, table["id"].tolist(), labels, predicted,
            surprise=-np.log(table["actual_probability"].clip(LEAST_PROBABILITY).to_numpy()),
            rank=table["actual_rank"].to_numpy(),
            calibration_error=metrics["test"].get("expected_calibration_error"),
            temperature=calibration.get("temperature", 1.0))


@dataclass(frozen=True)
class Change:
    """One figure of two models on the same papers."""

    name: str
    before: float
    after: float
    interval: list[float]  # 95 %, of the difference: paired bootstrap over the test papers
    papers: int
    lower_is_better: bool = False

    @property
    def difference(self) -> float:
        """The second model's figure less the first one's."""
        return self.after - self.before

    @property
    def verdict(self) -> str:
        """BETTER or WORSE if the interval of the difference is clear of zero, else SAME."""
        if not beyond_noise(self.interval):
            return SAME
        return WORSE if (self.interval[0] > 0) == self.lower_is_better else BETTER


@dataclass(frozen=True)
class Comparison:
    """A candidate `after` against `before`, the model to beat."""

    before: Judged
    after: Judged
    figures: dict[str, Change]  # accuracy, macro_f1, weighted_f1, log_loss; top_3 of over 3 classes
    classes: dict[str, Change]  # F1 of each class
    lost: int  # papers that only `before` has right
    won: int  # papers that only `after` has right
    p_value: float  # of McNemar's exact test: as unlike as that by chance, were both as accurate

    @property
    def verdict(self) -> str:
        """BETTER, SAME or WORSE, by macro F1."""
        return self.figures["macro_f1"].verdict

    def sentence(self) -> str:
        """Return the verdict as one sentence."""
        change = self.figures["macro_f1"]
        low, high = change.interval
        return (f"{self.after.model_dir} {WORDS[self.verdict].format(self.before.model_dir)}: "
                f"macro F1 {change.difference:+z.4f}, 95 % interval {low:+z.4f} to {high:+z.4f}, "
                f"on {len(self.after.ids):,} test papers.")

    def as_json(self) -> dict[str, Any]:
        """Return the overall figures: before, after, difference and its interval."""
        return {name: {"before": change.before, "after": change.after,
                       "difference": change.difference, "interval": change.interval}
                for name, change in self.figures.items()}


def compare(before: Path, after: Path) -> Comparison:
    """Compare two judged model directories: is `after` better than `before`?

    Raises:
        InputError: not judged, other classes, or test papers that are not the same, or that one
            of them, or what it was started from, has seen.
    """
    a, b = Judged.load(before), Judged.load(after)
    if a.names != b.names:
        raise InputError(
            f"{before} and {after} do not have the same classes (only {before}: "
            f"{', '.join(sorted({*a.names} - {*b.names})) or 'none'}; only {after}: "
            f"{', '.join(sorted({*b.names} - {*a.names})) or 'none'}); compare models of one task")
    _check_unseen(a, b)
    if a.ids != b.ids:
        raise InputError(
            f"{before} and {after} were tested on different papers ({len(a.ids):,} and "
            f"{len(b.ids):,}, {len({*a.ids} & {*b.ids}):,} of them common); train both on the same "
            "version of the data, with the same split")
    if not np.array_equal(a.labels, b.labels):
        raise InputError(
            f"{before} and {after}: {int(np.sum(a.labels != b.labels)):,} of their test papers "
            "have another class in the one than in the other; train both on the same version of "
            "the data")
    boot, papers = Bootstrap(len(a.ids)), len(a.ids)
    whole, drawn = zip(*(whole_and_drawn(boot, model.labels, model.predicted, len(a.names))
                         for model in (a, b)))
    figures = {name: Change(
        name.replace("_f1", " F1"), float(whole[0][name]), float(whole[1][name]),
        interval(drawn[1][name] - drawn[0][name]), papers) for name in COMPARED}
    values = {"log_loss": (a.surprise, b.surprise)}
    if len(a.names) > TOP:
        values[f"top_{TOP}"] = ((a.rank <= TOP).astype(float), (b.rank <= TOP).astype(float))
    for name, (one, other) in values.items():
        figures[name] = Change(
            name.replace("_", " "), float(one.mean()), float(other.mean()),
            interval(boot.means(other - one)), papers, lower_is_better=name == "log_loss")
    classes = {name: Change(
        name, float(whole[0]["f1"][index]), float(whole[1]["f1"][index]),
        interval(drawn[1]["f1"][:, index] - drawn[0]["f1"][:, index]),
        int(np.sum(a.labels == index))) for index, name in enumerate(a.names)}
    right = [model.predicted == model.labels for model in (a, b)]
    lost, won = int(np.sum(right[0] & ~right[1])), int(np.sum(right[1] & ~right[0]))
    # McNemar, 1947, exact: of the papers that one alone has right, a coin decides which
    p_value = float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return Comparison(a, b, figures, classes, lost, won, p_value)


def _check_unseen(a: Judged, b: Judged) -> None:
    """Raise InputError if one model, or what it was started from, has seen test papers."""
    for model, other in ((a, b), (b, a)):
        for link in lineage(model.model_dir):
            own = link == model.model_dir
            # its own test papers are those that it has not seen; what it was started from may have
            asked = sorted({*other.ids} - {*model.ids} if own else {*other.ids} | {*model.ids})
            count = papers_seen(link, asked)
            if count:
                came = "" if own else f"{model.model_dir} was started from {link}, and "
                whose = f"the {len(other.ids):,} of {other.model_dir}" if own else (
                    f"the {len(asked):,} of this comparison")
                raise InputError(
                    f"{came}{link} has seen test papers: {count:,} of {whose} are on the training "
                    "or validation side of its split; train it again with the split of the other")
