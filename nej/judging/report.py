"""One report of what was found of a model: Markdown for a pull request, HTML for a browser."""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markdown_it import MarkdownIt

from nej.fields import arxiv_link
from nej.files import replacing
from nej.judging.mistakes import WORD
from nej.tables import escaped, interval_text, markdown_table

LOW_F1 = 0.5
LEAST_LOG_ODDS = 0.1  # a word of less changes the odds by less than a tenth
MOST_PAIRS = 10
ESCAPED_WORD = re.compile(WORD.pattern.replace("-", r"\\-"))  # the words that were left out
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }}
th, td {{ border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent);
  padding: .3rem .8rem; white-space: nowrap; }}
img {{ max-width: 100%; background: white; border-radius: 4px; }}
h2 {{ margin-top: 2.5rem; border-bottom: 2px solid; }}
blockquote {{ border-left: 4px solid #d55e00; margin-left: 0; padding-left: 1rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(folder: Path, model_dir: Path, *, pictures: Sequence[Path]) -> None:
    """Write report.md and report.html from the files that `evaluate` wrote into `folder`.

    The HTML holds its pictures, which lie in figures/, and needs nothing else.
    """
    parts = {name: json.loads((where / f"{name}.json").read_text("utf-8"))
             for name, where in (("metrics", folder), ("calibration", folder),
                                 ("mistakes", folder), ("manifest", model_dir))}
    figures = {file.stem: file for file in pictures}
    text = _markdown(folder.name, figures=figures, **parts)
    with replacing(folder / "report.md") as aside:
        aside.write_text(text, "utf-8")
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for file in figures.values():
        picture = base64.b64encode(file.read_bytes()).decode()
        body = body.replace(f'src="figures/{file.name}"', f'src="data:image/png;base64,{picture}"')
    with replacing(folder / "report.html") as aside:
        aside.write_text(PAGE.format(title=f"{folder.name}: report", body=body), "utf-8")


def _markdown(name: str, *, metrics: dict[str, Any], calibration: dict[str, Any],
              mistakes: list[dict[str, Any]], manifest: dict[str, Any], figures: dict[str, Path]
              ) -> str:
    def picture(stem: str, says: str) -> list[str]:
        return [f"![{says}](figures/{stem}.png)"] if stem in figures else []
    test = metrics["test"]
    blocks = [
        f"# {name}", *_headline(metrics),
        "## Classes", *picture("per_class", "F1 of each class"), _classes(test),
        "### Taken for one another", _confused(test),
        *picture("confusion_matrix", "Confusion matrix"),
        "## Confidence", *_confidence(calibration),
        *picture("reliability", "Reliability diagram"), *picture("coverage", "Coverage"),
        "## Parts of the papers", *picture("slices", "Accuracy of slices"),
        markdown_table(("", "papers", "accuracy", "95 % interval"), (
            (f"{found['slice']}: {found['value']}", f"{found['papers']:,}",
             _number(found["accuracy"]), interval_text(found["interval"]))
            for found in metrics["slices"])),
        "## The most confident mistakes", *_mistakes(mistakes),
        "## Labels that are probably wrong", *_labels(metrics["label_issues"]),
        "## Training", *picture("training_statistics", "Training curves"), _origin(manifest)]
    return "\n\n".join(blocks) + "\n"


def _headline(metrics: dict[str, Any]) -> list[str]:
    test = metrics["test"]
    columns = (("macro F1", "macro_f1"), ("accuracy", "accuracy"), ("weighted F1", "weighted_f1"),
               ("Matthews correlation", "matthews_correlation"))
    rows = [(title, *(f"{found[key]:.3f} ({interval_text(found['intervals'][key])})"
                      for _, key in columns))
            for title, found in (("**this model**", test), *metrics["baselines"].items())]
    more = [f"{title} {test[key]:.3f} ({interval_text(test['intervals'][key])})"
            for title, key in (("top-2 accuracy", "top_2_accuracy"),
                               ("top-3 accuracy", "top_3_accuracy"), ("log loss", "log_loss"))
            if key in test]
    blocks = [
        "\n".join(f"**{found['verdict']}**  " for found in metrics["leads"].values()),
        f"On {test['papers']:,} test papers; in brackets the 95 % interval of the bootstrap over "
        "papers.", markdown_table(("", *(title for title, _ in columns)), rows),
        "Also: " + ", ".join(more) + "."]
    low = {name: found for name, found in test["per_class"].items()
           if found["support"] and found["f1"] < LOW_F1}
    if low:
        share = sum(found["support"] for found in low.values()) / test["papers"]
        blocks.append(
            f"> **Accuracy hides {len(low)} of {len(test['per_class'])} classes**, in which F1 is "
            f"under {LOW_F1}; they have {share:.1%} of the papers: {', '.join(low)}. Macro F1 "
            "counts every class alike.")
    if metrics.get("seeds"):
        seeds = metrics["seeds"]
        blocks.append(
            f"Over {len(seeds['runs'])} seeds ({', '.join(seeds['runs'])}): " + ", ".join(
                f"{title} {seeds['mean'][key]:.3f} ± {seeds['standard_deviation'][key]:.3f}"
                for title, key in columns[:2]) + " (mean and standard deviation).")
    if metrics.get("cross_lists"):
        found = metrics["cross_lists"]
        blocks.append(
            f"Of {found['wrong']:,} wrong answers {found['wrong_but_listed']:,} name a category in "
            f"which the paper is cross-listed: {found['accuracy_any_listed']:.3f} of the answers "
            f"are one of the paper's categories, {found['accuracy']:.3f} the primary one.")
    return blocks


def _classes(test: dict[str, Any]) -> str:
    return markdown_table(("class", "F1", "precision", "recall", "papers"), (
        (name, *(f"{found[key]:.3f} ({interval_text(found['intervals'][key])})"
                 for key in ("f1", "precision", "recall")), f"{found['support']:,}")
        for name, found in test["per_class"].items() if found["support"]))


def _confused(test: dict[str, Any]) -> str:
    names, counts = list(test["per_class"]), np.array(test["confusion_matrix"])
    totals = counts.sum(1)
    off = counts - np.diag(np.diag(counts))
    order = np.argsort(-off, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [divmod(int(place), len(names)) for place in order if off.flat[place]]
    return markdown_table(("of class", "taken for", "papers", "share of the class"), (
        (names[row], names[column], f"{off[row, column]:,}",
         f"{off[row, column] / totals[row]:.1%}") for row, column in pairs))


def _confidence(calibration: dict[str, Any]) -> list[str]:
    test = calibration["test"]
    error = test["expected_calibration_error"]
    return [
        f"Expected calibration error {error['after']:.3f} ({error['before']:.3f} before the "
        f"temperature of {calibration['temperature']:.2f}, fitted on "
        f"{calibration['validation_papers']:,} validation papers).",
        "When the model abstains under a threshold that was chosen on validation papers:",
        markdown_table(("wanted accuracy", "threshold", "accuracy", "95 % interval", "answered"), (
            (f"{float(wanted):.2f}", f"{found['threshold']:.3f}", _number(found["accuracy"]),
             interval_text(found["interval"]), f"{found['coverage']:.1%}")
            for wanted, found in test["wanted"].items()))]


def _mistakes(mistakes: list[dict[str, Any]]) -> list[str]:
    blocks = ["In bold the words that decided: without one of them, the log-odds of the wrong "
              "class against the right one fall by so much."]
    for found in mistakes:
        words = [word for word in found["words"] if word["log_odds"] >= LEAST_LOG_ODDS]
        blocks += [
            f"### {escaped(found['title']) or 'Untitled'}",
            f"{_linked(found['id'])}: **{found['predicted']}** with {found['confidence']:.1%}, "
            f"labelled **{found['actual']}** (given {found['probability_of_actual']:.1%}). "
            + ("Deciding: " + ", ".join(
                f"{escaped(word['word'])} ({word['log_odds']:+.1f})" for word in words) + "."
               if words else "No single word decided."),
            _bold(found["summary"], {word["word"] for word in words})]
    return blocks


def _bold(text: str, words: set[str]) -> str:
    """Return text from a paper as Markdown, in bold its words that are among `words`."""
    def one(match: re.Match[str]) -> str:
        word = match[0].replace("\\", "").casefold()
        return f"**{match[0]}**" if word in words else match[0]
    return ESCAPED_WORD.sub(one, escaped(text))


def _labels(found: dict[str, Any]) -> list[str]:
    if not found["issues"]:
        return ["Confident learning (Northcutt et al., 2021) finds none."]
    blocks = [
        f"Confident learning (Northcutt et al., 2021) doubts the labels of {found['issues']:,} "
        f"test papers, and estimates that {found['wrong_share']:.1%} of all are wrong. The model's "
        "own confident errors are among them, so that this is too many: a person has to judge. "
        "`label_issues.csv` lists them for review, the most doubtful first."]
    if found["pairs"]:
        blocks.append(markdown_table(
            ("labelled", "belongs to", "papers, estimated", "share of the label"), (
                (pair["given"], pair["belongs"], f"{pair['papers']:,}", f"{pair['share']:.1%}")
                for pair in found["pairs"][:MOST_PAIRS])))
    return blocks


def _origin(manifest: dict[str, Any]) -> str:
    data, git = manifest["data"], manifest["git"] or {"commit": "unknown", "dirty": False}
    return (f"Trained on {manifest['papers']['train']:,} papers of `{data['path']}` (md5 "
            f"{data['md5']}) at commit {git['commit'][:12]}{' with changes' * git['dirty']}, seed "
            f"{manifest['seed']}, {manifest['steps']:,} steps in "
            f"{manifest['training_seconds'] / 60:.1f} minutes on {manifest['device']}. "
            "`scripts/reproduce.py` makes it again.")


def _linked(paper: str) -> str:
    link = arxiv_link(paper)
    return f"[{escaped(paper)}]({link})" if link else escaped(paper)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
