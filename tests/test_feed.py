"""arXiv's API through its real client, against a server that answers as arXiv's does."""

import errno
import http.server
import io
import json
import os
import threading
import urllib.parse
from datetime import date

import arxiv
import pytest
from test_papers import paper, write_papers

from nej import InputError
from nej.data.additions import add_papers
from nej.data.feed import fetch_feed

ENTRY = """<entry><id>http://arxiv.org/abs/2506.{number:05}v1</id>
<published>2025-06-02T10:00:00Z</published><updated>2025-06-03T10:00:00Z</updated>
<title>Paper {number}</title><summary>  Summary of
 paper {number}. </summary><author><name>A. Né</name></author><author><name>B</name></author>
<arxiv:primary_category term="cs.LG"/><category term="cs.AI"/><category term="cs.LG"/></entry>"""


class Arxiv(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = {key: value[0] for key, value in urllib.parse.parse_qs(
            urllib.parse.urlsplit(self.path).query).items()}
        self.server.queries.append(query)
        start, most = int(query["start"]), int(query["max_results"])
        if self.server.fails_from is not None and start >= self.server.fails_from:
            self.send_error(503)
            return
        entries = "".join(ENTRY.format(number=number) for number in range(
            start, min(start + most, self.server.papers)))
        body = f"""<?xml version="1.0" encoding="UTF-8"?><feed xmlns="http://www.w3.org/2005/Atom"
            xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/"
            xmlns:arxiv="http://arxiv.org/schemas/atom"><id>x</id><title>q</title>
            <updated>2025-06-03T00:00:00Z</updated>
            <opensearch:totalResults>{self.server.papers}</opensearch:totalResults>
            <opensearch:startIndex>{start}</opensearch:startIndex>
            <opensearch:itemsPerPage>{most}</opensearch:itemsPerPage>{entries}</feed>""".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/atom+xml")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Arxiv)
    server.papers, server.fails_from, server.queries, server.waits = 250, None, [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(arxiv.Client, "query_url_format",
                        f"http://127.0.0.1:{server.server_port}/api/query?{{}}")
    monkeypatch.setattr("time.sleep", server.waits.append)
    yield server
    server.shutdown()
    server.server_close()


def test_papers_are_fetched_at_arxivs_pace_and_added(server, tmp_path):
    path = fetch_feed("cat:cs.LG", date(2025, 6, 1), tmp_path)
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [record["id"] for record in records] == [f"2506.{n:05}v1" for n in range(250)]
    assert records[7]["categories"] == ["cs.LG", "cs.AI"]  # the primary one first
    assert records[7]["published_date"] == "6/2/25"
    assert [query["start"] for query in server.queries] == ["0", "100", "200"]
    assert len(server.waits) == 2 and all(2 < seconds <= 3 for seconds in server.waits)
    query = server.queries[0]
    assert query["search_query"] == (
        "(cat:cs.LG) AND submittedDate:[202506010000 TO 999912312359]")
    assert (query["sortBy"], query["sortOrder"]) == ("submittedDate", "ascending")
    target = write_papers(tmp_path / "arxiv.csv", [paper()])
    assert add_papers(target, [path]).added == 250


def test_a_fetch_that_was_stopped_goes_on(server, tmp_path):
    server.fails_from = 200
    with pytest.raises(InputError, match="arXiv's API: .*503.* goes on after the 200 papers"):
        fetch_feed("cat:cs.LG", date(2025, 6, 1), tmp_path)
    path, = tmp_path.iterdir()
    with open(path, "a") as file:
        file.write('{"id": "cut o')  # as a kill in the middle of a line leaves it
    server.fails_from, server.queries[:] = None, []
    assert fetch_feed("cat:cs.LG", date(2025, 6, 1), tmp_path) == path
    assert [query["start"] for query in server.queries] == ["200"]
    ids = [json.loads(line)["id"] for line in path.read_text("utf-8").splitlines()]
    assert ids == [f"2506.{n:05}v1" for n in range(250)]


def test_nothing_new(server, tmp_path):
    server.papers = 0
    assert fetch_feed("cat:cs.LG", date(2025, 6, 1), tmp_path).read_text() == ""


def test_no_way_to_arxiv(monkeypatch, tmp_path):
    monkeypatch.setattr(arxiv.Client, "query_url_format", "http://127.0.0.1:9/?{}")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(InputError, match="arXiv's API: cannot be reached; .* after the 0 papers"):
        fetch_feed("cat:cs.LG", date(2025, 6, 1), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_disk_that_cannot_be_written_is_not_arxivs_fault(server, monkeypatch, tmp_path, code):
    class Disk(io.StringIO):
        def write(self, text):
            raise OSError(code, os.strerror(code))

    def opened(*arguments, **options):
        if code == errno.EROFS:
            raise OSError(code, os.strerror(code))
        return Disk()
    monkeypatch.setattr("nej.data.feed.open", opened, raising=False)
    with pytest.raises(InputError, match=f"^cannot write .*jsonl: {os.strerror(code)}"):
        fetch_feed("cat:cs.LG", date(2025, 6, 1), tmp_path)
    assert list(tmp_path.iterdir()) == []
