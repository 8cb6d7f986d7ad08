"""Windows of a file's papers: so many at a time are read, checked and labelled."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from nej.data.records import ALIASES, LONGEST, Records
from nej.fields import is_text

WINDOW_PAPERS = 2048
WINDOW_CHARACTERS = 16 << 20  # after which a window has no more papers
SUMMARIES = ("summary", *(alias for alias, name in ALIASES.items() if name == "summary"))


@dataclass(frozen=True)
class Window:
    """Neighbouring papers of a file."""

    number: int
    first_row: int  # the file's papers are counted from 1
    papers: list[tuple[str, str, str]]  # id, title, summary
    faults: dict[int, str]  # why a paper cannot be labelled, by its place
    total: int | None  # of all papers of the file, as far as one can tell by now

    @property
    def good(self) -> dict[int, tuple[str, str, str]]:
        """Return the papers that can be labelled, by their places."""
        return {place: paper for place, paper in enumerate(self.papers)
                if place not in self.faults}


def cut(records: Records) -> Iterator[Window]:
    """Yield the windows of a file, the same whenever it is read."""
    number, first_row, characters = 0, 1, 0
    papers: list[tuple[str, str, str]] = []
    faults: dict[int, str] = {}

    def window() -> Window:
        share = records.share_read()
        total = round((first_row + len(papers) - 1) / share) if share else None
        return Window(number, first_row, papers, faults, total)
    for line, record in records.rows:
        paper, fault = as_paper(record, line)
        if fault:
            faults[len(papers)] = fault
        papers.append(paper)
        characters += sum(map(len, paper))
        if len(papers) == WINDOW_PAPERS or characters > WINDOW_CHARACTERS:
            yield window()
            number, first_row = number + 1, first_row + len(papers)
            papers, faults, characters = [], {}, 0
    if papers:
        yield window()


def as_paper(record: dict[str, Any] | None, line: int
             ) -> tuple[tuple[str, str, str], str | None]:
    """Return id, title and summary of a record, and why it cannot be labelled (None if it can)."""
    if record is None:
        return ("", "", ""), f"cannot be parsed (line {line})"
    identity = "" if record.get("id") is None else str(record["id"])[:1000]
    identity = identity.encode("utf-8", "backslashreplace").decode()
    summaries = (record.get(name) for name in SUMMARIES)
    texts = {"title": record.get("title"), "summary": next(
        (text for text in summaries if text is not None and str(text).strip()), None)}
    for name, text in texts.items():
        if name == "summary" and text is None:
            return (identity, "", ""), "has no summary"
        text = "" if text is None else text
        fault = None
        if not isinstance(text, str):
            fault = f"its {name} is no text"
        elif len(text) > LONGEST:
            fault = f"has a {name} of over {LONGEST:,} characters"
        elif "\0" in text:
            fault = f"has a NUL character in its {name}"
        elif not is_text(text):
            fault = f"its {name} is not UTF-8"
        if fault:
            return (identity, "", ""), fault
    return (identity, texts["title"] or "", str(texts["summary"])), None


def in_advance(items: Iterator[tuple]) -> Iterator[tuple]:
    """Yield the items; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
