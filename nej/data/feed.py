"""New papers from arXiv's API, through its usual client and at its pace."""

import hashlib
import json
import logging
from datetime import date
from pathlib import Path

from requests.exceptions import ConnectionError
from tqdm import tqdm

from nej import InputError
from nej.files import explained_writes

logger = logging.getLogger(__name__)

PAGE = 100  # papers per request; the client waits three seconds between them, as arXiv asks


def fetch_feed(query: str, since: date, folder: Path) -> Path:
    """Fetch the papers of `query` that were first submitted on `since` or later.

    Each paper is appended to a file in `folder` as it comes. If the file is there from a fetch
    that was stopped, this one goes on after its last paper (they come by date of submission).

    Args:
        query: in arXiv's language, `cat:cs.LG AND ti:transformer` for one.

    Returns:
        JSON Lines for `add_papers`; who has added them deletes the file.

    Raises:
        InputError: arXiv cannot be reached, or refuses; or the disk does.
    """
    import arxiv
    digest = hashlib.sha256(f"{query} {since}".encode()).hexdigest()[:12]
    path = folder / f".arxiv-{digest}.jsonl"
    there = _whole_lines(path)
    if there:
        logger.info("going on after %d papers that are fetched already", there)
    search = arxiv.Search(
        f"({query}) AND submittedDate:[{since:%Y%m%d}0000 TO 999912312359]",
        max_results=None,  # it would be 100
        sort_by=arxiv.SortCriterion.SubmittedDate, sort_order=arxiv.SortOrder.Ascending)
    client = arxiv.Client(page_size=PAGE)
    try:
        with explained_writes(path), open(path, "a", encoding="utf-8") as file:
            for paper in tqdm(client.results(search, offset=there), desc="arXiv", initial=there,
                              unit=" papers", disable=None):
                file.write(json.dumps(_record(paper), ensure_ascii=False) + "\n")
    except Exception as error:  # the client's own, requests', the parser's, the disk's
        fetched = _whole_lines(path)
        if not fetched:
            path.unlink(missing_ok=True)
        if isinstance(error, InputError):
            raise
        reason = "cannot be reached" if isinstance(error, ConnectionError) else str(error)[:200]
        raise InputError(f"arXiv's API: {reason}; the same command goes on after the {fetched} "
                         "papers that are fetched") from error
    return path


def _record(paper) -> dict:
    codes = [paper.primary_category, *paper.categories]
    return {
        "id": paper.get_short_id(), "title": paper.title, "summary": paper.summary,
        "categories": list(dict.fromkeys(codes)), "authors": [str(a) for a in paper.authors],
        "published_date": _kaggles_date(paper.published),
        "updated_date": _kaggles_date(paper.updated)}


def _kaggles_date(day: date) -> str:
    """Return 3/7/21 for March 7, 2021."""
    return f"{day.month}/{day.day}/{day:%y}"


def _whole_lines(path: Path) -> int:
    """Return how many papers a file holds, after cutting off a line that is not whole."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content[:content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return whole.count(b"\n")
