"""Write a CSV of SYNTHETIC papers that has the form and the faults of Kaggle's arXiv file.

    python scripts/make_sample.py --papers 4000 --seed 1 --output data/sample.csv [--version 1]

Nothing in the output is real: titles, summaries, authors, ids, dates, data sets and numbers are
put together at random from the phrases in data/sample_vocabulary.json.  The bytes depend on the
number of papers and on the seed alone, and the first n rows are the same for every number of
papers.  Rows are streamed, so the memory in use does not grow with their number.

How the labels are hidden: a paper takes its phrases from one topic of its category, or from a
topic that a related category shares with it.  VEILED papers speak mostly in common terms and give
away their category by rare objects; CROSSED papers mention a second category as a method or an
application; BLAND is the chance that a single phrase is a common one; and NOISE is the share of
labels that are those of a related category.
"""

import argparse
import csv
import errno
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

COLUMNS = ("id", "title", "category", "category_code", "published_date", "updated_date",
           "authors", "first_author", "summary", "summary_word_count")
VOCABULARY = Path(__file__).resolve().parent.parent / "data" / "sample_vocabulary.json"
MAX_PAPERS = 5_000_000  # a month holds 100,000 new style ids, and the last gets 1/60 of the rows

# Shares of all rows that are made from one of the WINDOW most recent ones.
DUPLICATES = 0.005  # the same row again
NEW_VERSIONS = 0.010  # the same id with the next version and a reworded summary
NEW_IDS = 0.003  # the same text under another id
WINDOW = 256

# Shares of the other rows.
LINE_BREAKS = 0.05  # line breaks inside the summary
DOUBLE_SPACES = 0.03
OLD_IDS = 0.005  # ids such as cs-9308101v1
NOISE = 0.04
VEILED = 0.2
CROSSED = 0.45
ADOPTED = 0.03  # topics that a related category shares

# Shares of phrases and sentences.
BLAND = 0.12
VEILED_BLAND = 0.7
RARE = 0.15  # rare objects of the category in papers that are not veiled
RELATED = 0.6  # second topics that come from a related category
PLAIN = {"open": 0.15, "gap": 0.4, "method": 0.1, "detail": 0.45, "result": 0.4, "close": 0.5,
         "title": 0.1}
MIXED = 0.4  # sentences of crossed papers, plain ones aside, that mention the second topic
ANGLED = 0.12  # details and closings that show the view of the category
SKIPPED = 0.25  # summaries without a gap, and as many without a closing

STAGES = ("open", "gap", "method", "detail", "result", "close")
TABLE = 512
REWORDED = (("We propose", "We present"), ("Experiments on", "Tests on"), ("However, ", "Yet, "),
            ("data sets", "collections"), ("In addition, ", "Moreover, "), ("approach", "method"))
ADDED = " This version contains additional results."
Row = dict[str, str | int]
Random = Callable[[], float]  # random() alone is promised to be the same in all Python versions


@cache
def _article(phrase: str) -> str:
    """Put "a" or "an" before the phrase, by its sound as far as the vocabulary needs it."""
    vowel = phrase[0].lower() in "aeiou" and not phrase.startswith(("uni", "use", "one"))
    return ("an " if vowel else "a ") + phrase


def _table(items: Sequence, shift: int = 2) -> list:
    """Spread items over TABLE cells with weights 1 / (rank + shift), in whole numbers."""
    weights = [1_000_000 // (rank + shift) for rank in range(len(items))]
    table, reached = [], 0
    for item, weight in zip(items, weights):
        reached += weight
        table += [item] * (reached * TABLE // sum(weights) - len(table))
    return table


def _even(items: Sequence) -> list:
    """Spread items evenly; a table saves the choice between two kinds of lists."""
    return [items[cell * len(items) // TABLE] for cell in range(TABLE)]


def _numbers() -> dict[str, list[str]]:
    """List the written numbers that fill the slots of results."""
    percent = [f"{n / 10:.1f}{sign}" for n in range(21, 250) for sign in ("%", r"\%")]
    return {
        "pct": percent,
        "small": [f"{n / 10:.1f}%" for n in range(2, 20)],
        "value": [f"{n / 10:.1f}%" for n in range(700, 960, 2)],
        "low": [f"{n / 10:.1f}%" for n in range(420, 690, 2)],
        "tiny": [f"{n / 10:.1f}%" for n in range(110, 400, 2)],
        "times": [f"{n / 10:.1f}" for n in range(14, 120)],
        "k": [f"{n * 100:,}" for n in range(11, 480)],
        "alpha": [f"0.{n}" for n in range(1, 10)],
    }


class _Vocabulary:
    """Hold all phrases as tables of TABLE cells, so that one random number picks one."""

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        self.categories = data["categories"]
        self.common = self._topic(data["common"])
        self.templates = {name: _even(rows) for name, rows in data["templates"].items()}
        fillers = {**data["fillers"], **_numbers()}
        fillers["adj"] = [_article(phrase) for phrase in fillers["adj"]]
        self.fillers = {name: _even(items) for name, items in fillers.items()}
        self.first_names, self.last_names = (_table(data["names"][key], 9)
                                             for key in ("first", "last"))
        self.topics = {code: [self._topic(topic) for topic in entry["topics"]]
                       for code, entry in self.categories.items()}
        self.things = {code: _even(entry["things"]) for code, entry in self.categories.items()}
        self.angles = {code: _even(entry["angles"]) for code, entry in self.categories.items()}
        self.codes = [code for code, entry in self.categories.items()
                      for _ in range(round(entry["share"] * 10))]
        self._relate()

    @staticmethod
    def _topic(topic: dict) -> dict[str, list[str]]:
        slots = {"task": "tasks", "objects": "objects", "method": "methods",
                 "problem": "problems", "data": "data", "metric": "metrics"}
        return {slot: _table(topic[key]) for slot, key in slots.items()}

    def _relate(self) -> None:
        """Collect for each category the related ones and the topics they share with it."""
        self.related: dict[str, list[str]] = {code: [] for code in self.categories}
        self.adopted: dict[str, list[dict]] = {code: [] for code in self.categories}
        for code, entry in self.categories.items():
            for topic, tables in zip(entry["topics"], self.topics[code]):
                for other in topic["shared_with"]:
                    self.adopted[other].append(tables)
                    self.related[other].append(code)
                    self.related[code].append(other)


class _Context(dict):
    """Fill the slots of one paper's templates on demand.

    A phrase once chosen stays for the whole paper, {x_b} differs from {x}, {x2} belongs to the
    second topic, {a_x} has an article; all other slots are fillers and chosen anew each time.
    """

    def __init__(self, vocabulary: _Vocabulary, rnd: Random) -> None:
        super().__init__()
        self.rnd = rnd
        self.vocabulary = vocabulary
        self.code = pick(rnd, vocabulary.codes)
        self.veiled = rnd() < VEILED
        self.main = self._own_topic()
        self.second = self._second_topic() if rnd() < CROSSED else None

    def _own_topic(self) -> dict[str, list[str]]:
        adopted = self.vocabulary.adopted[self.code]
        shared = adopted and self.rnd() < ADOPTED
        return pick(self.rnd, adopted if shared else self.vocabulary.topics[self.code])

    def _second_topic(self) -> dict[str, list[str]]:
        vocabulary, code = self.vocabulary, self.code
        near = self.rnd() < RELATED
        while code == self.code:
            code = pick(self.rnd, vocabulary.related[self.code] if near else vocabulary.codes)
        return pick(self.rnd, vocabulary.topics[code])

    def __missing__(self, slot: str) -> str:
        if slot in self.vocabulary.fillers:
            return pick(self.rnd, self.vocabulary.fillers[slot])
        if slot.startswith("a_"):
            phrase = _article(self[slot[2:]])
        elif slot.endswith("2"):
            phrase = pick(self.rnd, self.second[slot[:-1]])
        elif slot.endswith("_b"):
            phrase = first = self[slot[:-2]]
            while phrase == first:
                phrase = self._phrase(slot[:-2])
        else:
            phrase = self._phrase(slot)
        self[slot] = phrase
        return phrase

    def _phrase(self, slot: str) -> str:
        if slot == "objects" and (self.veiled or self.rnd() < RARE):
            return pick(self.rnd, self.vocabulary.things[self.code])
        bland = self.rnd() < (VEILED_BLAND if self.veiled else BLAND)
        return pick(self.rnd, (self.vocabulary.common if bland else self.main)[slot])

    def sentence(self, stage: str) -> str:
        """Write one sentence of the stage (or the title), with a capital at its start."""
        if stage in ("detail", "close") and self.rnd() < ANGLED:
            return pick(self.rnd, self.vocabulary.angles[self.code])
        if self.rnd() < PLAIN[stage]:
            stage += "_plain"
        elif self.second and self.rnd() < MIXED:
            stage += "_mixed"
        text = pick(self.rnd, self.vocabulary.templates[stage]).format_map(self)
        return text[0].upper() + text[1:]

    def title(self) -> str:
        """Write a title of 5 to 12 words."""
        while True:
            title = self.sentence("title")
            if 4 <= title.count(" ") <= 11:
                return title

    def summary(self) -> str:
        """Write 5 or 6 sentences, a few with line breaks or doubled spaces between them."""
        chance = self.rnd()
        skipped = "gap" if chance < SKIPPED else "close" if chance < 2 * SKIPPED else ""
        chance = self.rnd()
        space = "\n" if chance < LINE_BREAKS else "  "
        space = space if chance < LINE_BREAKS + DOUBLE_SPACES else " "
        return space.join([self.sentence(stage) for stage in STAGES if stage != skipped])

    def label(self) -> str:
        """Return the code of the category, or for a few papers that of a related one."""
        if self.rnd() < NOISE:
            return pick(self.rnd, self.vocabulary.related[self.code])
        return self.code


class _Ids:
    """Number papers within their month, so that no id comes twice."""

    def __init__(self, rnd: Random) -> None:
        self.rnd = rnd
        self.counts: dict[int, int] = {}

    def new(self) -> tuple[str, int]:
        """Return an id without its version and the months since January 1990."""
        old = self.rnd() < OLD_IDS
        # The larger of two draws: later months get more papers, as in arXiv.
        month = 36 + int(self.rnd() * 168) if old else 300 + int(max(self.rnd(), self.rnd()) * 120)
        count = self.counts[month] = self.counts.get(month, month * 7) + 1
        stamp = f"{(90 + month // 12) % 100:02d}{month % 12 + 1:02d}"
        # A step that shares no factor with the size goes through all numbers before it repeats.
        return (f"cs-{stamp}{count * 31 % 1000:03d}" if old
                else f"abs-{stamp}.{count * 7919 % 100_000:05d}"), month


def pick(rnd: Random, items: Sequence):
    """Choose one of the items with random() alone."""
    return items[int(rnd() * len(items))]


def _date(month: int, day: int) -> str:
    return f"{month % 12 + 1}/{day}/{(90 + month // 12) % 100:02d}"


def _paper(vocabulary: _Vocabulary, rnd: Random, ids: _Ids) -> Row:
    context = _Context(vocabulary, rnd)
    number, month = ids.new()
    version = pick(rnd, (1, 1, 1, 1, 1, 1, 2, 2, 3))
    day = 1 + int(rnd() * 28)
    published = _date(month, day)
    later = published if version == 1 else _date(month + 1 + int(rnd() * 9), 29 - day)
    authors = [f"{pick(rnd, vocabulary.first_names)} {pick(rnd, vocabulary.last_names)}"
               for _ in range(1 + int(rnd() * rnd() * 8))]
    title, summary, code = context.title(), context.summary(), context.label()
    return dict(zip(COLUMNS, (
        f"{number}v{version}", title, vocabulary.categories[code]["name"], code, published, later,
        str(authors), repr(authors[0]), summary, len(summary.split()))))


def _next_version(row: Row) -> Row:
    number, _, version = row["id"].rpartition("v")
    month, day, year = row["updated_date"].split("/")
    summary = row["summary"]
    for old, new in REWORDED:
        summary = summary.replace(old, new)
    if summary == row["summary"]:
        summary += ADDED
    return {**row, "id": f"{number}v{int(version) + 1}", "summary": summary,
            "updated_date": f"{month}/{day}/{(int(year) + 1) % 100:02d}",
            "summary_word_count": len(summary.split())}


def generate(papers: int, seed: int) -> Iterator[Row]:
    """Yield rows whose keys are COLUMNS, duplicates and new versions among them."""
    vocabulary, rnd = _Vocabulary(VOCABULARY), random.Random(seed).random
    ids, window = _Ids(rnd), []
    for _ in range(papers):
        chance = rnd()
        if window and chance < DUPLICATES + NEW_VERSIONS + NEW_IDS:
            row = window.pop(int(rnd() * len(window)))
            if chance >= DUPLICATES + NEW_VERSIONS:
                number, month = ids.new()
                date = _date(month, 1 + int(rnd() * 28))
                row = {**row, "id": f"{number}v1", "published_date": date, "updated_date": date}
            elif chance >= DUPLICATES:
                row = _next_version(row)
            yield dict(row)
            continue
        row = _paper(vocabulary, rnd, ids)
        if len(window) == WINDOW:
            window[int(rnd() * WINDOW)] = row
        else:
            window.append(row)
        yield dict(row)


def _report(rows: Iterator[Row], papers: int) -> Iterator[Row]:
    """Pass rows on and show the progress on a terminal once it has taken two seconds."""
    start = time.monotonic()
    for done, row in enumerate(rows, 1):
        yield row
        if done % 10_000 == 0 and time.monotonic() - start > 2:
            print(f"\r{done:,} of {papers:,} papers", end="", file=sys.stderr, flush=True)
    if time.monotonic() - start > 2:
        print(file=sys.stderr)


def write_csv(path: str | os.PathLike, papers: int, seed: int) -> None:
    """Write the papers to a file aside and rename it, so that no half file is ever seen."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    rows = generate(papers, seed)
    if sys.stderr.isatty():
        rows = _report(rows, papers)
    try:
        with open(aside, "w", encoding="utf-8", newline="", buffering=1 << 20) as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(row.values() for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line, without the usage that argparse puts before it."""
        self.exit(2, f"make_sample: {message}\n")


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(
                f"found {text!r}, allowed is a whole number from {low} to {high}; "
                "change it and run the command again")
        return number
    return convert


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=_whole_number(1, MAX_PAPERS), required=True,
                        help="number of rows, duplicates included")
    parser.add_argument("--seed", type=_whole_number(0, 2**63 - 1), required=True)
    parser.add_argument("--output", type=Path, required=True, help="the CSV file to write")
    parser.add_argument("--version", type=_whole_number(1, 1), default=1,
                        help="version of the generator's bytes; so far there is only 1")
    options = parser.parse_args(arguments)
    if not VOCABULARY.is_file():
        parser.error(f"cannot find {str(VOCABULARY)!r}, which holds the phrases; restore this file "
                     "of the repository")
    try:
        write_csv(options.output, options.papers, options.seed)
    except OSError as error:
        parser.error(f"argument --output: cannot write {str(options.output)!r} "
                     f"({error.strerror}); it has to be a file in an existing folder that you may "
                     "write to, so create the folder or choose another file")


if __name__ == "__main__":
    main()
