"""The page as a person meets it, in a headless Chromium."""

import json
import shutil
import socket
import threading

import pytest
import uvicorn

from nej.web.api import create_app
from nej.web.serving import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
playwright = pytest.importorskip("playwright.sync_api")

TOKEN = "a-token-that-nobody-guesses"
SUMMARY = "We propose a robot that sees its image in a mirror."
CONTRAST = """([text, back]) => {
  const channel = (value) => (value /= 255) <= .03928 ? value / 12.92
    : ((value + .055) / 1.055) ** 2.4;
  const light = (name) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(--${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map(Number).map(channel);
    probe.remove();
    return .2126 * r + .7152 * g + .0722 * b + .05;
  };
  return Math.max(light(text), light(back)) / Math.min(light(text), light(back));
}"""


@pytest.fixture(scope="module")
def serve(served_model):
    """Return a function that serves the model and returns the address."""
    running = []

    def start(**settings) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(
            create_app(Settings(model=served_model, **settings)), log_level="error"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join()


@pytest.fixture(scope="module")
def address(serve):
    """Return where the service is."""
    return serve()


@pytest.fixture(scope="module")
def browser():
    """Return a Chromium."""
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    """Return the page, loaded; asks for anything elsewhere and complaints fail the test."""
    context = browser.new_context()
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text)
            if "Content Security" in message.text else None)
    page.on("request", lambda request: complaints.append(request.url)
            if not request.url.startswith(address) else None)
    page.goto(address)
    page.get_by_text("Model", exact=True).wait_for()
    yield page
    context.close()
    assert complaints == []


def test_type_send_and_see_the_bars(page):
    page.get_by_label("Title").fill("Mirrors")
    page.get_by_label("Summary").fill(SUMMARY)
    page.get_by_role("button", name="Propose categories").click()
    bars = page.locator("#bars li")
    bars.first.wait_for()
    assert bars.count() == 4
    shares = [float(text.removesuffix(" %")) for text in bars.locator(".percent").all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and 99 < sum(shares) < 101
    page.wait_for_timeout(400)  # the bars grow
    track = bars.locator(".track").first.bounding_box()["width"]
    for bar, share in zip(bars.locator(".bar").all(), shares):
        assert bar.bounding_box()["width"] == pytest.approx(track * share / 100, abs=4)
    first = bars.first.locator(".name").inner_text()
    assert first in page.get_by_role("status").inner_text()


def test_an_example_by_keyboard_alone(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "title"
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "example"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.locator("#bars li").first.wait_for()
    assert len(page.get_by_label("Summary").input_value()) > 200
    page.get_by_label("Summary").fill(SUMMARY)
    with page.expect_response("**/predict") as answered:
        page.keyboard.press("Control+Enter")
    assert json.loads(answered.value.request.post_data)["summary"] == SUMMARY


def test_an_empty_summary_is_told_where_it_is(page):
    page.get_by_role("button", name="Propose categories").click()
    assert "There is no summary yet" in page.get_by_role("alert").inner_text()
    assert page.evaluate("document.activeElement.id") == "summary"
    assert page.get_by_label("Summary").get_attribute("aria-invalid") == "true"
    page.get_by_role("button", name="Try an example").click()
    page.locator("#bars li").first.wait_for()
    assert page.locator("#problem").is_hidden()


def test_what_the_service_refuses_is_told_in_its_words(page):
    page.get_by_label("Summary").fill("a\0b")
    page.route("**/predict", lambda route: route.fulfill(
        status=429, json={"detail": "300 papers wait; try again in 7 s"}))
    page.get_by_role("button", name="Propose categories").click()
    alert = page.get_by_role("alert")
    playwright.expect(alert).to_have_text("300 papers wait; try again in 7 s.")
    page.unroute("**/predict")
    page.route("**/predict", lambda route: route.abort())
    page.get_by_role("button", name="Propose categories").click()
    playwright.expect(alert).to_contain_text("cannot be reached")
    page.unroute("**/predict")
    page.get_by_role("button", name="Propose categories").click()
    playwright.expect(alert).to_contain_text("Summary has no text, or a NUL character.")
    page.get_by_label("Summary").fill("image " * 100)
    page.get_by_role("button", name="Propose categories").click()
    playwright.expect(page.get_by_text("its end played no part")).to_be_visible()
    assert alert.is_hidden()


def test_the_model_and_its_limits_are_told(page):
    facts = page.locator("#facts").inner_text()
    for part in ("tiny, version", "cs.CL, cs.CV, cs.LG, cs.RO", "title and summary",
                 "80.0 % on 400 test papers", "under 26.0 %", "data/sample.csv"):
        assert part in facts
    page.get_by_text("The model card").first.click()
    assert page.locator("#card-text").inner_text() == "# The card\n"


def test_a_service_with_a_token_asks_for_it(browser, serve):
    page = browser.new_page()
    page.goto(serve(token=TOKEN))
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Try an example").click()
    playwright.expect(page.get_by_role("alert")).to_contain_text("A valid token is needed")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Propose categories").click()
    page.locator("#bars li").first.wait_for()
    page.get_by_text("tiny, version").wait_for()
    page.close()


def test_a_summary_that_is_emptied_while_a_request_runs_leaves_the_button_free(page):
    page.route("**/predict", lambda route: None)  # no answer comes
    page.get_by_role("button", name="Try an example").click()
    button = page.locator("#send")
    playwright.expect(button).to_have_attribute("aria-disabled", "true")
    page.get_by_label("Summary").fill(" ")
    page.get_by_label("Title").press("Enter")
    playwright.expect(page.get_by_role("alert")).to_contain_text("There is no summary yet")
    playwright.expect(button).not_to_have_attribute("aria-disabled", "true")
    assert "stale" not in (page.locator("#result").get_attribute("class") or "")


def test_the_model_is_asked_for_until_it_is_known_and_the_token_field_stays(browser, serve):
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url.rsplit("/")[-1]))
    page.goto(serve(token=TOKEN))
    token = page.get_by_label("Token")
    token.fill(TOKEN)
    page.route("**/model", lambda route: route.fulfill(status=500, json={"detail": "an error"}))
    page.get_by_role("button", name="Try an example").click()
    page.locator("#bars li").first.wait_for()
    send = page.get_by_role("button", name="Propose categories")
    send.click()
    page.get_by_text("An error.").wait_for()
    playwright.expect(token).to_be_visible()
    page.unroute("**/model")
    send.click()
    page.get_by_text("tiny, version").wait_for()
    assert asked.count("model") == 3
    with page.expect_response("**/predict"):
        send.click()
    page.wait_for_timeout(100)
    assert asked.count("model") == 3
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_phone_light_and_dark(browser, address, scheme):
    page = browser.new_page(viewport={"width": 320, "height": 640}, color_scheme=scheme)
    page.goto(address)
    page.get_by_role("button", name="Try an example").click()
    page.locator("#bars li").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    for control in page.locator("button, input:visible, textarea").all():
        assert control.bounding_box()["height"] >= 44
    playwright.expect(page.get_by_role("status")).to_be_in_viewport()
    for pair in (("ink", "paper"), ("ink", "card"), ("soft", "paper"), ("soft", "card"),
                 ("accent", "card"), ("on-accent", "accent"), ("warn", "warn-back"),
                 ("ink", "note-back")):
        assert page.evaluate(CONTRAST, pair) >= 4.5, pair  # WCAG AA
    for pair in (("bar", "track"), ("edge", "card"), ("mark", "track")):
        assert page.evaluate(CONTRAST, pair) >= 3, pair
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(21, 24, 27)") == (scheme == "dark")
    page.close()
