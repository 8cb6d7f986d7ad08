"""The service as a program meets it: answers, refusals in a sentence, nothing given away."""

import asyncio
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.testclient import TestClient
from uvicorn.protocols.http import h11_impl

from nej.prediction import Classifier
from nej.web.api import create_app
from nej.web.schemas import BODY_BYTES, MOST_PAPERS
from nej.web.serving import Settings
from scripts.make_sample import generate

TOKEN = "a-token-that-nobody-guesses"
PAPERS = [{"title": paper["title"], "summary": paper["summary"]} for paper in generate(12, 5)]


@pytest.fixture(scope="module")
def app(served_model):
    """Return the application."""
    return create_app(Settings(model=served_model))


@pytest.fixture(scope="module")
def client(app):
    """Return who asks it."""
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def make_client(served_model):
    """Return a function that makes a client of a service with other settings."""
    clients = []

    def make(**settings) -> TestClient:
        clients.append(TestClient(create_app(Settings(model=served_model, **settings)),
                                  raise_server_exceptions=False))
        return clients[-1].__enter__()
    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def slow(monkeypatch):
    """Return an event that the model waits for before it answers."""
    go, run = threading.Event(), Classifier.run

    def wait(self, papers, **kwargs):
        assert "title" not in papers[0] and go.wait(10)
        return run(self, papers, **kwargs)
    yield go, lambda: monkeypatch.setattr(Classifier, "run", wait)
    go.set()


def test_the_answers_are_the_classifiers_probabilities(client, served_model):
    classifier = Classifier.load(served_model)
    expected = classifier.probabilities([paper["summary"] for paper in PAPERS],
                                        [paper["title"] for paper in PAPERS])
    assert client.post("/predict", json={"summary": "image", "title": None}).status_code == 200
    for papers in (PAPERS, PAPERS[0]):
        answer = client.post("/predict", json=papers).json()
        assert len(answer["predictions"]) == (12 if papers is PAPERS else 1)
        for prediction, row in zip(answer["predictions"], expected):
            best = np.argsort(-row)
            assert [c["code"] for c in prediction["categories"]] == [
                classifier.names[i] for i in best]
            np.testing.assert_allclose([c["probability"] for c in prediction["categories"]],
                                       row[best], atol=1e-6)
            assert prediction["abstained"] == (row.max() < answer["threshold"])
    assert answer["model"] == "tiny" and len(answer["version"]) == 12
    names = {c["code"]: c["name"] for c in prediction["categories"]}
    assert names["cs.CV"] == "Computer Vision and Pattern Recognition"


def test_as_many_categories_as_are_wanted(client):
    for wanted, given in ((1, 1), (3, 3), (1000, 4)):
        found = client.post(f"/predict?top_k={wanted}", json=PAPERS[0]).json()["predictions"]
        assert len(found[0]["categories"]) == given
    assert client.post("/predict?top_k=0", json=PAPERS[0]).status_code == 422


def test_a_text_that_the_model_cannot_read_wholly_is_told(client):
    texts = [{"summary": "image"}, {"summary": "image " * 70}]
    found = client.post("/predict", json=texts).json()["predictions"]
    assert [prediction["truncated"] for prediction in found] == [False, True]


def test_it_abstains_under_the_models_threshold(make_served, tmp_path):
    for threshold, abstained in ((0.0, False), (1.0, True), (None, False)):
        model = make_served(tmp_path / f"at-{threshold}", threshold=threshold)
        with TestClient(create_app(Settings(model=model))) as client:
            answer = client.post("/predict", json=PAPERS[0]).json()
        assert answer["threshold"] == threshold
        assert answer["predictions"][0]["abstained"] is abstained


@pytest.mark.parametrize("body, sentence", [
    ("{", "the body, from character 1 on, is not JSON"),
    ("", "the body is missing"),
    ("[]", "the list must be at least one paper"),
    ("null", "the body must be an object with a summary"),
    ("7", "the body must be an object with a summary"),
    ("NaN", "the body must be an object with a summary"),
    ("{}", "summary is missing"),
    ('{"summary": ""}', "summary is empty"),
    ('{"summary": " \\n\\t "}', "summary has no text"),
    ('{"summary": NaN}', "summary must be a text"),
    ('{"summary": 7}', "summary must be a text"),
    ('{"summary": null}', "summary must be a text"),
    ('{"summary": ["a"]}', "summary must be a text"),
    ('{"summary": "a\\u0000b"}', "summary has no text, or a NUL character"),
    ('{"summary": "a", "title": "\\u0000"}', "title has a NUL character"),
    ('{"summary": "a", "title": "%s"}' % ("a" * 2001), "title is over 2,000 characters long"),
    ('{"summary": "%s"}' % ("a" * 20001), "summary is over 20,000 characters long"),
    ('{"summary": "a", "abstract": NaN}', "abstract is unknown"),
    ('[{"summary": "a"}, {"title": "b"}]', "summary of paper 2 is missing"),
    ('[{"summary": "a"}, []]', "paper 2 must be an object"),
    (json.dumps([{"summary": "a"}] * (MOST_PAPERS + 1)), "the list must be at most 128 papers"),
    ('{"summary": "\\ud800"}', "half of a surrogate pair"),
])
def test_a_mistake_gets_a_sentence(client, body, sentence):
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert sentence in answer.json()["detail"]


@pytest.mark.parametrize("body", ["[" * 100_000, '{"summary": %s}' % ("9" * 5000),
                                  b'{"summary": "\xff\xfe"}'])
def test_what_json_cannot_hold_is_refused(client, body):
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and answer.json()["detail"]


def test_a_long_text_that_does_not_fit_the_pattern_is_refused_fast(client):
    text = " " * 9_999 + "a" * 9_999 + "\0"
    answer = client.post("/predict", json={"summary": text})
    assert answer.status_code == 422 and answer.elapsed.total_seconds() < 1


def test_control_characters_are_read_as_in_training(client):
    plain = client.post("/predict", json={"summary": "an image of a robot"}).json()
    odd = client.post("/predict", json={"summary": "an\x0cimage \x1bof\r\na\u200b robot\x07"})
    assert odd.json() == plain


def test_a_body_that_is_too_large_is_refused(client):
    def piecewise():
        for _ in range(3):
            yield b" " * (BODY_BYTES // 2)
    for content in (b" " * (BODY_BYTES + 1), piecewise()):
        answer = client.post("/predict", content=content,
                             headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "1,048,576 bytes" in answer.json()["detail"]
    assert client.post("/predict", content=json.dumps(PAPERS[0]) + " " * 100_000, headers={
        "Content-Type": "application/json"}).status_code == 200


def test_a_form_is_refused(client):
    answer = client.post("/predict", data={"summary": "a"})
    assert answer.status_code == 422 and "Content-Type: application/json" in answer.json()["detail"]


def test_with_a_token_only_who_has_it_is_answered(make_client):
    client = make_client(token=TOKEN)
    for given in (None, "Bearer wrong", "Bearer ", "Basic " + TOKEN, f"Bearer {TOKEN}x",
                  "Bearer \xff"):
        headers = {"Authorization": given.encode("latin-1")} if given else {}
        answers = [client.post("/predict", json=PAPERS[0], headers=headers),
                   client.get("/model", headers=headers), client.get("/metrics", headers=headers)]
        assert [answer.status_code for answer in answers] == [401] * 3
        assert answers[0].headers["www-authenticate"] == "Bearer"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert client.post("/predict", json=PAPERS[0], headers=headers).status_code == 200
    for path in ("/", "/health", "/ready", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200


def test_other_sites_may_not_ask_unless_they_are_named(client, make_client):
    for asking, allowed in ((client, None), (make_client(cors_origins=("https://a.org",)),
                                             "https://a.org")):
        for origin in ("https://a.org", "https://b.org"):
            answer = asking.post("/predict", json=PAPERS[0], headers={"Origin": origin})
            found = answer.headers.get("access-control-allow-origin")
            assert found == (allowed if origin == allowed else None)


def test_every_answer_has_the_security_headers(client, monkeypatch):
    monkeypatch.setattr("nej.web.service.ranked", lambda *_: 1 / 0)
    answers = [client.get("/"), client.get("/page.js"), client.get("/nowhere"),
               client.post("/predict", json={}), client.delete("/predict"),
               client.post("/predict", json=PAPERS[0])]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 422, 405, 500]
    for answer in answers:
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
    assert answers[-1].json() == {"detail": "an error in nej; the service's log has it"}


def test_a_request_that_takes_too_long_is_told_when_to_come_again(make_client, slow):
    client = make_client(deadline_seconds=0.1)
    slow[1]()
    answer = client.post("/predict", json=PAPERS)
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    assert "no answer within 0.1 s" in answer.json()["detail"]


def test_a_full_queue_refuses_politely(make_client, slow):
    client = make_client(queue_papers=150)
    slow[1]()
    statuses, papers = [], [{"summary": "image"}] * 100
    asking = [threading.Thread(target=lambda: statuses.append(
        client.post("/predict", json=papers).status_code)) for _ in range(2)]
    for thread, waiting in zip(asking, (36, 136)):  # the model has 64
        thread.start()
        while client.app.state.service.batcher.waiting != waiting:
            thread.join(0.01)
    refused = client.post("/predict", json=papers)
    slow[0].set()
    for thread in asking:
        thread.join()
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert "papers wait" in refused.json()["detail"]
    assert statuses == [200, 200]
    assert client.post("/predict", json=papers).status_code == 200


async def call(app, receive) -> list[dict]:
    """Return what the application sends to a client that is no more than `receive`."""
    sent = []

    async def send(message):
        sent.append(message)
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"",
             "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
             "scheme": "http", "server": ("testserver", 80), "client": ("here", 1),
             "root_path": "", "asgi": {"version": "3.0"}}
    await asyncio.wait_for(app(scope, receive, send), 5)
    return sent


def test_one_connection_too_many_is_refused_as_politely():
    answer = TestClient(h11_impl.service_unavailable).get("/")  # what uvicorn calls then
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.headers["connection"] == "close" and "come again" in answer.json()["detail"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_client_that_goes_away_leaves_the_queue(app, client, slow):
    slow[1]()

    async def go_away() -> list[dict]:
        came = [{"type": "http.request", "body": json.dumps(PAPERS[0]).encode()}]

        async def receive():
            if came:
                return came.pop()
            await asyncio.sleep(0.05)  # the model works at it
            return {"type": "http.disconnect"}
        return await call(app, receive)
    assert asyncio.run(go_away())[0]["status"] == 499
    assert app.state.service.batcher.waiting == 0
    slow[0].set()
    assert client.post("/predict", json=PAPERS[0]).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(app, client, monkeypatch):
    monkeypatch.setattr("nej.web.guard.BODY_SECONDS", 0.05)

    async def dawdle() -> list[dict]:
        async def receive():
            await asyncio.sleep(0.03)
            return {"type": "http.request", "body": b"[", "more_body": True}
        return await call(app, receive)
    sent = asyncio.run(dawdle())
    assert sent[0]["status"] == 408 and (b"connection", b"close") in sent[0]["headers"]


def test_ready_until_it_is_stopped(served_model):
    app = create_app(Settings(model=served_model))
    with TestClient(app) as client:
        assert client.get("/health").json() == {"status": "alive"}
        assert client.get("/ready").json() == {"status": "ready"}
        app.state.service.batcher.close()
        assert client.get("/ready").status_code == 503
        stopped = client.post("/predict", json=PAPERS[0])
        assert stopped.status_code == 503 and stopped.headers["retry-after"] == "5"


def test_the_model_describes_itself(client, served_model):
    found = client.get("/model").json()
    assert found["model"] == "tiny" and found["card"] == "# The card\n"
    assert found["classes"][0] == {"code": "cs.CL", "name": "Computation and Language"}
    assert found["metrics"]["test"]["accuracy"] == 0.8 and found["data"]["md5"] == "1234"
    assert (found["threshold"], found["wanted_accuracy"]) == (0.26, 0.9)
    assert (found["reads"], found["max_length"]) == ("title+summary", 64)


def test_prometheus_sees_load_and_papers(make_client):
    client = make_client()
    client.post("/predict", json=[{"summary": "image zxqv"}, {"summary": "image " * 70}])
    client.post("/predict", json={})
    client.get("/some/path/of/mine")
    text = client.get("/metrics").text
    for line in ('nej_requests_total{path="/predict",status="200"} 1.0',
                 'nej_requests_total{path="/predict",status="422"} 1.0',
                 'nej_requests_total{path="other",status="404"} 1.0',
                 "nej_batch_papers_count 1.0", "nej_paper_tokens_count 2.0",
                 "nej_truncated_total 1.0", "nej_unknown_word_share_count 2.0",
                 "nej_unknown_word_share_sum 0.5", "nej_waiting_papers 0.0",
                 'nej_model_loads_total{outcome="used"} 1.0'):
        assert line in text.splitlines()
    assert re.search(r'^nej_model\{name="tiny",version="\w{12}"\} 1.0$', text, re.M)
    shares = re.findall(r'^nej_predictions_total\{category="cs.\w+"\} (\d)', text, re.M)
    assert sum(map(int, shares)) == 2
    assert "/some/path" not in text and "zxqv" not in text


def test_prometheus_sees_what_waits_and_what_is_given_up(make_client, slow):
    client = make_client(deadline_seconds=1)
    slow[1]()

    def waiting() -> int:
        return int(float(re.search(r"^nej_waiting_papers (\S+)$", client.get("/metrics").text,
                                   re.M)[1]))
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(client.post, "/predict", json=PAPERS[0])
        while not client.app.state.service.batcher.working:
            time.sleep(0.01)
        second = clients.submit(client.post, "/predict", json=PAPERS[:3])
        while not client.app.state.service.batcher.waiting:
            time.sleep(0.01)
        assert waiting() == 3
        assert [first.result().status_code, second.result().status_code] == [503, 503]
    assert waiting() == 0
    slow[0].set()


def test_the_log_has_no_texts_unless_asked(make_client, tmp_path, caplog):
    caplog.set_level(0)
    for texts in (False, True):
        log = tmp_path / f"{texts}.jsonl"
        client = make_client(log=log, log_texts=texts)
        paper = {"title": "Quarks", "summary": "of a zebra"}
        client.post("/predict", json=[paper, {"summary": "image"}])
        client.post("/predict", content=b'{"summary": "\\ud800 zebra"}')
        client.app.state.service.log.close()
        first, second = map(json.loads, log.read_text("utf-8").splitlines())
        assert (first.get("title"), first.get("summary")) == (
            ("Quarks", "of a zebra") if texts else (None, None))
        assert (first["title_characters"], first["summary_characters"]) == (6, 10)
        assert set(second) >= {"time", "model", "version", "tokens", "unknown_words", "category",
                               "probability", "abstained", "truncated", "embedding"}
        assert len(second["embedding"]) == 8
    assert "zebra" not in caplog.text


def test_the_reference_shows_what_the_description_has_and_loads_nothing(client):
    description = client.get("/openapi.json").json()
    page = client.get("/docs").text
    for path, methods in description["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page
    for name in description["components"]["schemas"]:
        assert f"id='{name}'" in page
    for target in re.findall(r"(?:src|href)=[\"']([^\"']+)", page):
        assert target.startswith("#") or client.get(target).status_code == 200
