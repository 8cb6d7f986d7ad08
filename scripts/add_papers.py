"""Add papers to data/arxiv.csv: from CSV, JSON Lines (as of an arXiv feed), Parquet, or arXiv.

    python scripts/add_papers.py new_papers.jsonl
    python scripts/add_papers.py june.csv july.parquet --to data/sample.csv --rejects rejects.csv
    python scripts/add_papers.py --from-arxiv "cat:cs.LG OR cat:cs.CV" --since 2026-10-01

Of a paper that is there already the newest version stays. The data set is replaced as a whole or
stays as it was; then its .dvc file pins the new version, and DVC's cache has both.
"""

import argparse
from datetime import date
from pathlib import Path

from _run import Parser, run


def main(arguments: list[str]) -> int:
    """Merge, pin, say what became of each row; return the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="what to add")
    parser.add_argument("--to", type=Path, default=Path("data/arxiv.csv"), help="the data set")
    parser.add_argument("--from-arxiv", metavar="QUERY", help="ask arXiv's API")
    parser.add_argument("--since", type=_day, metavar="DATE",
                        help="with --from-arxiv: submitted on this day or later, 2026-10-01")
    parser.add_argument("--rejects", type=Path, help="write each rejected row's place and reason")
    options = parser.parse_args(arguments)
    if not options.files and not options.from_arxiv:
        parser.error("name files to add, or --from-arxiv QUERY --since DATE")
    if bool(options.from_arxiv) != bool(options.since):
        parser.error("--from-arxiv and --since belong together")
    from nej.data.additions import add_papers
    from nej.data.sources import keep_version, pin_version, require_repository
    from nej.files import require, write_csv
    _check_rejects(options.rejects, [options.to, *options.files])
    require_repository(require(options.to))
    fetched = []
    if options.from_arxiv:
        from nej.data.feed import fetch_feed
        fetched = [fetch_feed(options.from_arxiv, options.since, options.to.parent)]
    keep_version(options.to)
    result = add_papers(options.to, [*options.files, *fetched])
    if result.added or result.updated:  # before anything else that can fail
        pin_version(options.to)
    print(result.text())
    if options.rejects:
        write_csv(options.rejects, ("place", "reason"), result.rejected)
    for path in fetched:
        path.unlink()
    return 0


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a day such as 2026-10-01"
                                         ) from None


def _check_rejects(rejects: Path | None, read: list[Path]) -> None:
    """Raise InputError if the rejects would overwrite one of the files that are read."""
    from nej import InputError
    for path in read:
        if rejects and rejects.exists() and path.exists() and rejects.samefile(path):
            raise InputError(f"--rejects: {rejects} would overwrite {path}, which is read; name "
                             "another file")


if __name__ == "__main__":
    run(main)
