"""The service does what its OpenAPI description says, whatever is sent."""

import pytest
import schemathesis
from schemathesis.engine import Status, events, from_schema

from nej.web.api import create_app
from nej.web.serving import Settings

TOKEN = "a-token-that-nobody-guesses"


def findings(app) -> tuple[set[str], int, list[str]]:
    """Return the operations that schemathesis tried, how many requests, and what it found."""
    config = schemathesis.Config.from_dict({
        "seed": 1, "headers": {"Authorization": f"Bearer {TOKEN}"},
        "generation": {"max-examples": 5, "database": "none"}, "phases": {
            "stateful": {"enabled": False}},
        "checks": {  # what is too large is refused, right or wrong
            "negative_data_rejection": {"expected-statuses": [400, 401, 405, 413, 422, 429]},
            "positive_data_acceptance": {"expected-statuses": ["2xx", 401, 413, 429]}}})
    tried, requests, found = set(), 0, []
    for event in from_schema(schemathesis.openapi.from_asgi(
            "/openapi.json", app, config=config)).execute():
        if isinstance(event, (events.NonFatalError, events.FatalError)):
            found.append(str(event))
        if isinstance(event, events.ScenarioFinished) and event.status != Status.SKIP:
            tried.add(event.label)
            requests += len(event.recorder.cases)
            found += [f"{event.label}: {check.failure_info.failure}"
                      for checks in event.recorder.checks.values() for check in checks
                      if check.failure_info]
    return tried, requests, found


@pytest.mark.system
def test_nothing_differs_from_the_description(served_model):
    app = create_app(Settings(model=served_model, token=TOKEN))
    tried, requests, found = findings(app)
    assert not found, "\n".join(found)
    assert requests > 100 and tried == {"POST /predict", "GET /model", "GET /metrics",
                                        "GET /health", "GET /ready"}


def test_a_difference_would_be_found(served_model, monkeypatch):
    monkeypatch.setattr("nej.web.api.sentence", lambda errors: 1 / 0)
    assert any("ZeroDivisionError" in text for text in findings(
        create_app(Settings(model=served_model, token=TOKEN)))[2])
