"""Behaviour of a trained model: what holds of any good one, asked of it directly.

The kinds of check are those of Ribeiro et al. (2020), "Beyond Accuracy: Behavioral Testing of NLP
Models with CheckList": minimum functionality (plain papers), invariance, and robustness.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import relu
from tqdm import tqdm

from nej import InputError
from nej.batching import collate
from nej.prediction import Classifier, padded_first_tokens, softmax

PLAIN_PAPERS = Path(__file__).with_suffix(".json")  # by category code: its name, and papers
TOLERANCE, TOLERANCE_BF16 = 1e-4, 0.02  # of a probability; bfloat16 has 8 bits of precision
UNSURE = 0.1  # between the two best probabilities; under it a class may change
RIGHT = 3 / 4  # of the plain papers of each category
SURE = 0.9  # nonsense should be under it, and under what plain papers get
LESS_SURE = 0.1  # by which nonsense must be under plain papers, on average
SEED = 0  # of the other order
PADDED_PAPERS = 16

VARIANTS: dict[str, Callable[[str], str]] = {
    "line breaks": lambda text: text.replace(" ", "\n"),
    "double spaces": lambda text: text.replace(" ", "  "),
    "spaces around": lambda text: f" {text} ",
    "lower case": str.lower,
    "upper case": str.upper,
}
OPENINGS = ("We propose", "In this paper,")
NONSENSE = {  # nothing that a category could be told from
    "two words": "hello world",
    "German": "Der Stadtrat hat gestern beschlossen, dass die alte Brücke über den Fluss im Sommer "
              "erneuert wird. Der Verkehr wird bis zum Herbst umgeleitet.",
    "Chinese": "市政府昨天决定今年夏天修复河上的老桥。秋天以前,来往车辆将改道。",
    "only LaTeX": r"$\alpha_{i} = \frac{\beta^{2}}{\sum_{j} \gamma_{j}}$, "
                  r"$$\int_{0}^{\infty} e^{-x^{2}} \, dx = \frac{\sqrt{\pi}}{2}$$",
    "only digits": "3 14 15 92 65 35 89 79 32 38 46 26 43 38 32 79 50 28",
}
ODD = NONSENSE | {
    "50,000 characters": "one more line of text " * 2300,
    "a word of 50,000 letters": "a" * 50_000,
    "emoji": "\N{ROCKET}\N{FIRE}\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}",
    "NUL": "\0",
    "control characters": "We pro\0pose \x07\x1b[31m a \x7f network",
    "half a surrogate pair": "\ud800",
    "half a surrogate pair in a sentence": "We propose \udc00 a network",
    "right-to-left text": "\u05d4\u05d2\u05e9\u05e8 \u05d4\u05d9\u05e9\u05df \u202e\u05d9\u05d5",
    "2,000 combining accents": "e" + "\N{COMBINING ACUTE ACCENT}" * 2000,
    "a character of no plane": "\U0010ffff\uffff",
    "the tokenizer's own words": "[CLS] [SEP] [PAD] [MASK]",
}
EMPTY = {"an empty text": "", "only spaces": "   ", "only white space": " \t\r\n\u00a0\u3000 "}

Result = tuple[Literal["passed", "warned", "failed"], str]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    state: Literal["passed", "warned", "failed"]
    detail: str  # one sentence

    @property
    def passed(self) -> bool:
        """Say whether it does not speak against the model: a warning does not."""
        return self.state != "failed"


def check(classifier: Classifier) -> list[Finding]:
    """Ask a model what any good one answers, and return what was found, one Finding per check.

    Only a failure speaks against the model. Whatever a check raises is a failure of that check.

    - Alone, other order, padding, and each of VARIANTS: the same probabilities within TOLERANCE
      (TOLERANCE_BF16 if it computes in bfloat16), and the same class unless its two best are that
      close. A model whose vocabulary has capitals is only warned of upper and lower case.
    - Each of OPENINGS in front: the same class for every plain paper. Only where the two best
      probabilities were less than UNSURE apart may it change.
    - Empty texts: refused with an InputError.
    - Odd texts: probabilities that are finite and sum to 1, or an InputError.
    - Nonsense: its mean confidence (the best probability) is at least LESS_SURE under that of the
      plain papers, else a failure; a text of it that is over that of the plain papers, or over
      SURE, is a warning. The limits were chosen after two trained models had shown 0.44 and 0.41
      on nonsense, 0.97 and 0.92 on plain papers: neither of them puts the limits to the test.
    - Plain papers: in each category that the model and PLAIN_PAPERS share, RIGHT of them get it. A
      category that PLAIN_PAPERS lacks is not asked; if it lacks all, that is a warning.
    """
    plain = _Plain.of(classifier)
    checks: dict[str, Callable[[_Plain], Result]] = {
        "alone and in a batch": _alone,
        "in another order": _other_order,
        "with and without padding": _padding,
        **{name: partial(_variant, variant=name) for name in VARIANTS},
        **{f'"{opening}" in front': partial(_opening, opening=opening) for opening in OPENINGS},
        "empty texts": partial(_reactions, texts=EMPTY, allowed=("refused",)),
        "odd texts": partial(_reactions, texts=ODD, allowed=("answered", "refused")),
        "nonsense": _nonsense,
        "plain papers": _categories,
    }
    findings = []
    for name, ask in tqdm(checks.items(), desc="Test", disable=None):
        try:
            findings.append(Finding(name, *ask(plain)))
        except Exception as error:
            findings.append(Finding(name, "failed", f"{_line(error)}."))
    return findings


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as lines of text, and below them how many of each state there are."""
    width = max(len(finding.name) for finding in findings)
    lines = [f"{finding.state}  {finding.name:{width}}  {finding.detail}" for finding in findings]
    counts = Counter(finding.state for finding in findings)
    return "\n".join([*lines, ", ".join(
        f"{counts[state]} {state}" for state in ("passed", "warned", "failed"))])


@dataclass(frozen=True)
class _Plain:
    """A model, and plain papers of the classes that it has."""

    classifier: Classifier
    labels: list[str]  # as the model names them; "" if it has no such class
    titles: list[str]
    summaries: list[str]

    @classmethod
    def of(cls, classifier: Classifier) -> "_Plain":
        """Return the papers of the model's classes, or all papers if there are none."""
        papers = []
        for code, category in json.loads(PLAIN_PAPERS.read_text("utf-8")).items():
            known = [label for label in (code, category["name"]) if label in classifier.names]
            papers += [(known[0] if known else "", paper["title"], paper["summary"])
                       for paper in category["papers"]]
        papers = [paper for paper in papers if paper[0]] or papers
        return cls(classifier, *(list(column) for column in zip(*papers)))

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The model's, in one batch, (papers, classes)."""
        return self.classifier.probabilities(self.summaries, self.titles)

    @cached_property
    def mixed(self) -> tuple[list[str], list[str]]:
        """Summaries and titles of very different lengths: two words, the papers, all in one."""
        return ([NONSENSE["two words"], *self.summaries, " ".join(self.summaries)],
                ["", *self.titles, ""])

    @cached_property
    def alone(self) -> np.ndarray:
        """Probabilities of `mixed`, each paper by itself, so without padding."""
        return np.concatenate([self.classifier.probabilities([summary], [title])
                               for summary, title in zip(*self.mixed)])


def _alone(plain: _Plain) -> Result:
    return _same(plain, plain.alone, plain.classifier.probabilities(*plain.mixed))


def _other_order(plain: _Plain) -> Result:
    order = np.random.default_rng(SEED).permutation(len(plain.alone))
    found = plain.classifier.probabilities(*([texts[row] for row in order]
                                             for texts in plain.mixed))
    return _same(plain, plain.alone[order], found)


def _padding(plain: _Plain) -> Result:
    classifier, model = plain.classifier, plain.classifier.model
    rows = np.unique(np.linspace(0, len(plain.alone) - 1, PADDED_PAPERS).astype(int))
    papers = classifier.read(*plain.mixed)
    batch = collate([{"input_ids": papers[row]["input_ids"], "label": 0} for row in rows],
                    pad_token_id=classifier.tokenizer.pad_token_id)
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16,
                                                enabled=classifier.bf16):
        first = padded_first_tokens(model, batch["input_ids"].to(model.device),
                                    batch["attention_mask"].to(model.device))
        logits = model.classifier(relu(model.pre_classifier(first))).float().cpu().numpy()
    return _same(plain, plain.alone[rows], softmax(logits, classifier.temperature))


def _variant(plain: _Plain, *, variant: str) -> Result:
    change = VARIANTS[variant]
    found = plain.classifier.probabilities([change(text) for text in plain.summaries],
                                           [change(text) for text in plain.titles])
    state, detail = _same(plain, plain.probabilities, found)
    words = plain.classifier.tokenizer.tokenize
    if state == "failed" and "case" in variant and words("Network") != words("network"):
        return "warned", f"Its vocabulary has capitals: {detail}"
    return state, detail


def _same(plain: _Plain, expected: np.ndarray, found: np.ndarray) -> Result:
    """Compare probabilities of the same texts, (texts, classes)."""
    tolerance = TOLERANCE_BF16 if plain.classifier.bf16 else TOLERANCE
    difference = np.abs(found - expected).max(1)
    moved = (expected.argmax(1) != found.argmax(1)) & (_lead(expected) > tolerance)
    other = ~(difference <= tolerance) | moved  # NaN too is another answer
    detail = f"probabilities differ by at most {difference.max():.1g} ({tolerance:g} is allowed)."
    if other.any():
        return "failed", f"{other.sum()} of {len(other)} texts get another answer: {detail}"
    return "passed", f"{len(other)} texts get the same answer: {detail}"


def _opening(plain: _Plain, *, opening: str) -> Result:
    names, expected = plain.classifier.names, plain.probabilities
    found = plain.classifier.probabilities([f"{opening} {text}" for text in plain.summaries],
                                           plain.titles)
    changed = expected.argmax(1) != found.argmax(1)
    sure = np.flatnonzero(changed & (_lead(expected) >= UNSURE))
    if len(sure):
        row = sure[0]
        return "failed", (f"{len(sure)} of {len(changed)} papers of which the model was sure get "
                          f"another class, {plain.titles[row]!r} {names[found[row].argmax()]} "
                          f"instead of {names[expected[row].argmax()]}.")
    return "passed", (f"{len(changed) - changed.sum()} of {len(changed)} papers keep their class"
                      f"{'; of the others the model was unsure' * bool(changed.any())}.")


def _reactions(plain: _Plain, *, texts: dict[str, str], allowed: tuple[str, ...]) -> Result:
    found = {name: _reaction(plain.classifier, text) for name, text in texts.items()}
    faults = [f"{name}: {reaction}" for name, reaction in found.items() if reaction not in allowed]
    if faults:
        return "failed", f"{'; '.join(faults)}."
    refused = [name for name, reaction in found.items() if reaction == "refused"]
    return "passed", (f"{len(texts) - len(refused)} are answered, {len(refused)} refused with a "
                      f"sentence ({', '.join(refused) or 'none'}).")


def _reaction(classifier: Classifier, text: str) -> str:
    """Return "answered", "refused", or what is wrong with what the model does with a text."""
    try:
        chances = classifier.probabilities([text], [text])
    except InputError:
        return "refused"
    except Exception as error:
        return _line(error)
    good = np.isfinite(chances).all() and abs(chances.sum() - 1) < 1e-6
    return "answered" if good else f"probabilities that sum to {chances.sum():.3g}"


def _nonsense(plain: _Plain) -> Result:
    usual = plain.probabilities.max(1).mean()
    confidence = plain.classifier.probabilities(list(NONSENSE.values())).max(1)
    detail = (f"on average {confidence.mean():.2f} sure of nonsense and {usual:.2f} of plain "
              f"papers, most of {list(NONSENSE)[confidence.argmax()]} ({confidence.max():.2f}).")
    if not confidence.mean() <= usual - LESS_SURE:
        return "failed", detail
    return "warned" if confidence.max() >= min(SURE, usual) else "passed", detail


def _categories(plain: _Plain) -> Result:
    if not any(plain.labels):
        return "warned", "there are no plain papers of any of its categories."
    answers = [plain.classifier.names[index] for index in plain.probabilities.argmax(1)]
    asked = Counter(plain.labels)
    right = Counter(label for label, answer in zip(plain.labels, answers) if label == answer)
    short = [f"{label} {right[label]} of {asked[label]}"
             for label in asked if right[label] < asked[label]]
    bad = any(right[label] < RIGHT * asked[label] for label in asked)
    return "failed" if bad else "passed", (
        f"{right.total()} of {len(answers)} right ({', '.join(short) or 'all'}); "
        f"{len(asked)} of its {len(plain.classifier.names)} categories were asked.")


def _lead(probabilities: np.ndarray) -> np.ndarray:
    """Return how far the best class is over the second, (texts,)."""
    best = np.sort(probabilities, axis=1)
    return best[:, -1] - best[:, -2]


def _line(error: Exception) -> str:
    """Return what an exception says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
