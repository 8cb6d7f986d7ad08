"""Draw the way of the data through nej, docs/architecture.svg, from the modules' own first lines.

    python scripts/draw_architecture.py
"""

import argparse
import ast
import textwrap
from html import escape
from pathlib import Path

from _run import Parser, run

# top to bottom; a name with a capital letter is a file, others are modules of nej/ and its packages
COLUMNS = (
    ("Versions of the data", ("sources", "feed", "additions", "difference", "gate")),
    ("From papers to a model", (
        "CSV of papers", "rows", "duplicates", "papers", "splits", "text", "dataset", "batching",
        "packing", "training", "checkpoints", "Model directory")),
    ("What hangs off the model", ("manifest", "reproduction", "evaluation", "report", "figures",
                                  "comparison", "promotion", "tracking", "sweep", "prediction",
                                  "bulk", "drift", "export", "api")),
)
WIDTH, HEIGHT, GAP, CHARACTERS = 330, 64, 22, 46
STYLE = """text{font-family:system-ui,sans-serif;font-size:13px;fill:#222}.name{font-weight:600}
.head{font-size:15px;font-weight:600}.module{fill:#fff;stroke:#4663a6;stroke-width:1.5}
.file{fill:#e3e9f6;stroke:#4663a6;stroke-width:1.5}line{stroke:#4663a6;stroke-width:1.5}"""


def main(arguments: list[str]) -> int:
    """Draw; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    height = 60 + max(len(names) for _, names in COLUMNS) * (HEIGHT + GAP)
    width = len(COLUMNS) * (WIDTH + 40) + 20
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
             f'role="img"><title>The way of the data through nej</title><style>{STYLE}</style>'
             f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for column, (title, names) in enumerate(COLUMNS):
        x = 20 + column * (WIDTH + 40)
        parts.append(f'<text class="head" x="{x}" y="30">{title}</text>')
        for row, name in enumerate(names):
            y = 48 + row * (HEIGHT + GAP)
            if column == 1 and row:
                parts.append(f'<line x1="{x + 40}" y1="{y - GAP}" x2="{x + 40}" y2="{y}"/>')
            parts += _box(name, x, y)
    Path("docs/architecture.svg").write_text("\n".join([*parts, "</svg>", ""]), "utf-8")
    return 0


def _path(name: str) -> Path:
    return next(path for path in Path("nej").rglob(f"{name}.py"))


def _box(name: str, x: int, y: int) -> list[str]:
    lines = []
    if name[0].islower():
        first = ast.get_docstring(ast.parse(_path(name).read_text("utf-8"))).partition("\n")[0]
        lines = textwrap.wrap(first, CHARACTERS, max_lines=2, placeholder=" ...")
    kind = "module" if lines else "file"
    return [f'<rect class="{kind}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="4"/>',
            f'<text class="name" x="{x + 12}" y="{y + 20}">{name}</text>',
            *(f'<text x="{x + 12}" y="{y + 38 + 16 * number}">{escape(line)}</text>'
              for number, line in enumerate(lines))]


if __name__ == "__main__":
    run(main)
