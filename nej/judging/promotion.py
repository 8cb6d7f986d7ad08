"""Which model is in use: the link models/production, what it takes to get there, and the log."""

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nej import InputError
from nej.files import checksum, read_manifest, replacing
from nej.judging.comparison import BETTER, Judged, compare
from nej.judging.evaluation import EvaluationReport

LINK = "production"
LOG = "promotions.jsonl"
MAX_CLASS_LOSS = 0.02


@dataclass(frozen=True)
class Promotion:
    """What came of it: promoted, refused for `reasons`, or in use already (neither)."""

    model_dir: Path
    promoted: bool
    verdict: str  # one sentence
    reasons: list[str]  # why it was refused, one line each

    def text(self) -> str:
        """Return what a person wants to read."""
        if self.reasons:
            return "\n".join([f"{self.model_dir} is not promoted:",
                              *(f"  {reason}" for reason in self.reasons)])
        if self.promoted:
            return f"{self.model_dir} is promoted: {self.verdict}"
        return f"{self.model_dir} is {self.verdict}"


def promote(model_dir: Path, *, models: Path = Path("models"),
            max_class_loss: float = MAX_CLASS_LOSS) -> Promotion:
    """Let `models`/production point to a model, if it is better than the one in use.

    It must be better beyond noise (see `comparison.compare`), with no class's F1 lower by more than
    `max_class_loss`, in points (0.02: from 0.80 to 0.78), and pass the behaviour tests. The first
    one must be above the strongest baseline in macro F1, noise or not, and pass them.

    The line in promotions.jsonl is written before the link is replaced, each whole or not at all:
    a kill between them leaves a line about a model that was not put in use, which the link tells;
    the other way round a model would be in use and nothing would say why. The same command then
    writes a second line and the link. A refusal changes nothing.

    Raises:
        InputError: not a judged model inside `models`, one that cannot be compared with that in
            use, weights that are not those of the manifest, or a link that cannot be made.
    """
    if not 0 <= max_class_loss <= 1:
        raise InputError(f"max_class_loss is {max_class_loss}; it must be from 0 to 1")
    link = models / LINK
    candidate = _inside(models, model_dir, "copy the model to there")
    Judged.load(candidate)
    manifest = read_manifest(candidate)
    if checksum(candidate / "model.safetensors") != manifest["weights_sha256"]:
        raise InputError(f"{model_dir}: its weights are not those of its manifest, and were not "
                         "judged; train the model again")
    current = _current(link)
    if current == candidate:
        return Promotion(model_dir, False, f"what {link} points to already", [])
    reasons, figures = [], {}
    if current is None:
        report = EvaluationReport.load(candidate)
        name, baseline = max(report.baselines.items(), key=lambda item: item[1]["macro_f1"])
        own, least = report.test["macro_f1"], baseline["macro_f1"]
        verdict = f"the first one, with macro F1 {own:.4f} against the {least:.4f} of {name}."
        figures = {"macro_f1": own, "baseline": name, "baseline_macro_f1": least}
        if own <= least:
            reasons.append(f"macro F1 is {own:.4f}, not above the {least:.4f} of the strongest "
                           f"baseline, {name}")
    else:
        found = compare(current, candidate)
        verdict, figures = found.sentence(), found.as_json()
        if found.verdict != BETTER:
            reasons.append(verdict)
        reasons += [f"F1 of {name} is {-change.difference:.4f} lower ({change.before:.4f} to "
                    f"{change.after:.4f}), and {max_class_loss} is allowed"
                    for name, change in found.classes.items()
                    if round(change.difference, 9) < -max_class_loss]
    reasons += _misbehaviour(candidate)
    if reasons:
        return Promotion(model_dir, False, verdict, reasons)
    _append(models / LOG, {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": candidate.relative_to(models).as_posix(),
        "weights_sha256": manifest["weights_sha256"], "data_md5": manifest["data"]["md5"],
        "commit": (manifest["git"] or {}).get("commit"),
        "replaced": current and current.relative_to(models).as_posix(),
        "verdict": verdict, "figures": figures})
    _point(link, candidate.relative_to(models))
    return Promotion(model_dir, True, verdict, [])


def _current(link: Path) -> Path | None:
    """Return the model that is in use, inside the link's folder; None if there is none.

    Raises:
        InputError: no link is there but something else, a link to nothing, or to a model that
            was trained again in its place since it was promoted.
    """
    models = link.parent
    if not link.is_symlink():
        if link.exists():
            raise InputError(f"{link} is no link but a file or folder of its own; move it to "
                             f"another name in {models}")
        return None
    anew = f"remove {link} to begin anew"
    if not link.exists():
        raise InputError(f"{link} points to {os.readlink(link)}, which is not there; put it back, "
                         f"or {anew}")
    current = _inside(models, link, anew)
    promoted = [line["weights_sha256"] for line in _log(models / LOG)
                if models / line["model"] == current]
    if promoted and promoted[-1] != read_manifest(current)["weights_sha256"]:
        raise InputError(f"{current} was trained again in its place since it was promoted, so that "
                         f"what {link} points to was never judged against anything; {anew}, and "
                         "give each model a directory of its own")
    return current


def _inside(models: Path, path: Path, remedy: str) -> Path:
    """Return where a model really lies, as a path that begins with `models`."""
    try:
        return models / path.resolve().relative_to(models.resolve())
    except ValueError:
        raise InputError(f"{path} is not inside {models}, so that {models / LINK} could not be "
                         f"moved together with it; {remedy}") from None


def _misbehaviour(model_dir: Path) -> list[str]:
    """Return a line for each behaviour test that fails; a warning is none."""
    from nej.judging import behaviour
    from nej.prediction import Classifier
    return [f"behaviour test {finding.name!r} fails: {finding.detail}"
            for finding in behaviour.check(Classifier.load(model_dir))
            if not finding.passed]


def _log(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def _append(path: Path, line: dict[str, Any]) -> None:
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in [*_log(path), line])
    with replacing(path) as aside:
        aside.write_text(text, "utf-8")


def _point(link: Path, target: Path) -> None:
    """Make or replace the link in one step; `target` is relative to the link's folder."""
    aside = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        aside.unlink(missing_ok=True)  # of a process that was killed; in a container all are alike
        aside.symlink_to(target, target_is_directory=True)
        os.replace(aside, link)
    except (OSError, NotImplementedError) as error:
        raise InputError(f"cannot make the link {link}: {error}; it needs a disk and an account "
                         "that may have symbolic links (on Windows, developer mode)") from error
    finally:
        aside.unlink(missing_ok=True)
