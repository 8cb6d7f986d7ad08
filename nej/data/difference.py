"""What changed between two versions of the papers."""

from collections import Counter
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

EXAMPLES = 5


@dataclass(frozen=True)
class Difference:
    """Two versions compared, by arXiv id without its version."""

    papers: tuple[int, int]  # before, after
    added: list[str]  # ids
    removed: list[str]
    relabelled: dict[str, tuple[str, str]]  # id -> label before, label after
    reworded: list[str]  # another title or summary
    categories: dict[str, tuple[int, int]]  # label -> papers before, papers after

    def as_json(self) -> dict:
        """Return everything, with the counts first."""
        counts = {name: len(getattr(self, name)) for name in
                  ("added", "removed", "relabelled", "reworded")}
        return {"counts": {"before": self.papers[0], "after": self.papers[1]} | counts} | asdict(
            self)

    def text(self) -> str:
        """Return what a person wants to read: counts, some examples, the categories."""
        lines = [f"{self.papers[0]:,} papers before, {self.papers[1]:,} after"]
        for name, found in (("added", self.added), ("removed", self.removed),
                            ("relabelled", [f"{i} {a} -> {b}" for i, (a, b) in
                                            self.relabelled.items()]),
                            ("reworded", self.reworded)):
            examples = ", ".join(found[:EXAMPLES]) + ", ..." * (len(found) > EXAMPLES)
            lines.append(f"{name:<14}{len(found):>9,}  {examples}".rstrip())
        wide = max(map(len, self.categories), default=0)
        changed = {name: (before, after) for name, (before, after) in self.categories.items()
                   if before != after}
        lines.append(f"{len(changed)} of {len(self.categories)} categories have more or fewer "
                     "papers" + ":" * bool(changed))
        lines += [f"  {name:<{wide}} {before:>9,} -> {after:>9,}  {after - before:+,}"
                  for name, (before, after) in changed.items()]
        return "\n".join(lines)


def compare(old: pa.Table, new: pa.Table, *, label_column: str = "category_code") -> Difference:
    """Compare two tables of `read_papers`.

    No paper of both can have changed its split, which follows from the id.
    """
    columns = ["id", "title", "summary", label_column]
    both = old.select(columns).join(
        new.select(columns), "id", join_type="inner", right_suffix=" after").sort_by("id")
    relabelled = both.filter(pc.not_equal(both[label_column], both[f"{label_column} after"]))
    reworded = both.filter(pc.or_(pc.not_equal(both["title"], both["title after"]),
                                  pc.not_equal(both["summary"], both["summary after"])))
    counts = [Counter(table[label_column].to_pylist()) for table in (old, new)]
    names = sorted(counts[0] | counts[1], key=lambda name: (-counts[1][name], name))
    return Difference(
        papers=(len(old), len(new)),
        added=_without(new, old), removed=_without(old, new),
        relabelled={row["id"]: (row[label_column], row[f"{label_column} after"])
                    for row in relabelled.to_pylist()},
        reworded=reworded["id"].to_pylist(),
        categories={name: (counts[0][name], counts[1][name]) for name in names})


def _without(table: pa.Table, other: pa.Table) -> list[str]:
    return sorted(table.filter(pc.invert(pc.is_in(
        table["id"], value_set=other["id"].combine_chunks())))["id"].to_pylist())
