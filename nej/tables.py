"""Tables in Markdown and in the terminal."""

import re
from collections.abc import Collection, Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; all columns but the first are aligned to the right."""
    rule = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
                     for row in (header, rule, *rows))


def text_table(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Return aligned columns, those of `left` to the left and the others to the right."""
    wide = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(
        cell.ljust(width) if index in left else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, wide))).rstrip() for row in rows)


def interval_text(bounds: Sequence[float]) -> str:
    """Return an interval, `0.817-0.834` for one; `no papers` for None."""
    return "no papers" if bounds is None else f"{bounds[0]:.3f}-{bounds[1]:.3f}"


def escaped(text: str) -> str:
    """Return text from a paper so that Markdown shows it as it is, on one line."""
    text = " ".join(text.split())
    for sign in "\\`*_{}[]<>()#+-!|~$&":
        text = text.replace(sign, "\\" + sign)
    return re.sub(r"^(\d+)\.", r"\1\\.", text)  # or it would begin a list
