"""The processes of the service: one that is killed comes back, a signal changes or ends them."""

import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from uvicorn.config import STARTUP_FAILURE

from nej import InputError
from nej.judging.promotion import _point
from nej.web.serving import SETTINGS, TOKEN, Settings, Supervisor, _bound, create, serve

ROOT = Path(__file__).resolve().parent.parent
PAPER = {"title": "Mirrors", "summary": "We propose a robot that sees its image in a mirror."}


@pytest.fixture(autouse=True)
def process():
    """Let SIGHUP do what it does by itself; after the test it and the log are as before."""
    before, root = signal.signal(signal.SIGHUP, signal.SIG_DFL), logging.getLogger()
    level = root.level
    yield
    signal.signal(signal.SIGHUP, before)
    root.setLevel(level)
    root.handlers = [handler for handler in root.handlers
                     if type(handler) is not logging.StreamHandler]


class Server:
    """scripts/serve.py, and what it says."""

    def __init__(self, *arguments):
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "serve.py"), *map(str, arguments),
             "--port", "0"], stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self.reading = threading.Thread(target=self._read)
        self.reading.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)

    def wait_for(self, text: str, times: int = 1) -> str:
        """Return the line that has the text, when it has come so many times."""
        for _ in range(1200):
            found = [line for line in self.lines if text in line]
            if len(found) >= times:
                return found[-1]
            assert self.process.poll() is None, "".join(self.lines)
            time.sleep(0.05)
        raise AssertionError("".join(self.lines))

    def workers(self) -> list[int]:
        """Return the processes that answer."""
        return [child.pid for child in psutil.Process(self.process.pid).children()
                if "spawn_main" in " ".join(child.cmdline())]

    def ask(self, body=None, path="/predict"):
        """Return status and answer of a request in a connection of its own."""
        port = int(re.search(r"http://127.0.0.1:(\d+)", "".join(self.lines))[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("POST" if body else "GET", path, body and json.dumps(body),
                               {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def test_an_answer_does_not_wait_for_the_client_to_confirm_its_first_part():
    with _bound(Settings(Path("model"), port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # what asyncio looks at for TCP_NODELAY


@pytest.fixture
def start():
    """Return a function that starts a server, which ends with the test."""
    servers = []

    def make(*arguments) -> Server:
        servers.append(Server(*arguments))
        return servers[-1]
    yield make
    for server in servers:
        for pid in server.workers() if server.process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        server.process.kill()
        server.process.wait()
        server.reading.join()


@pytest.mark.system
def test_kill_another_model_and_an_end_in_order(start, served_model, make_served, tmp_path):
    link = tmp_path / "production"
    link.symlink_to(served_model)
    new = make_served(tmp_path / "new", seed=5)
    server = start(link, "--workers", 2)
    server.wait_for("Application startup complete", 2)
    found, stop = [], threading.Event()

    def load():
        while not stop.is_set():
            try:
                status, text = server.ask(PAPER)
                found.append(json.loads(text)["model"] if status == 200 else text)
            except OSError as error:  # http.client's are such
                found.append(type(error).__name__)
    clients = [threading.Thread(target=load) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        while len(found) < 20:
            time.sleep(0.01)
        first, second = server.workers()
        # or torch would keep hundreds of MB of kernels
        assert psutil.Process(first).environ()["LRU_CACHE_CAPACITY"] == "16"
        os.kill(first, signal.SIGKILL)
        server.wait_for("Application startup complete", 3)
        assert second in server.workers() and first not in server.workers()
        lost = [one for one in found if one != "tiny"]
        assert len(lost) <= len(clients)  # what the dead one had in its hands
        after = len(found)
        assert after > 60  # the other one answered meanwhile
        _point(link, new)
        server.process.send_signal(signal.SIGHUP)
        while found[-20:] != ["new"] * 20:
            assert set(found[after:]) <= {"tiny", "new"}
            time.sleep(0.01)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert set(found[after:]) == {"tiny", "new"}
    counted = re.search(r'nej_requests_total\{path="/predict",status="200"\} (\d+)',
                        server.ask(path="/metrics")[1])
    assert int(counted[1]) >= sum(one in ("tiny", "new") for one in found)
    answers = []
    last = threading.Thread(target=lambda: answers.append(server.ask([PAPER] * 128)))
    last.start()
    time.sleep(0.05)
    server.process.send_signal(signal.SIGTERM)
    last.join()
    assert answers[0][0] == 200 and len(json.loads(answers[0][1])["predictions"]) == 128
    assert server.process.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        server.ask(PAPER)


@pytest.mark.system
def test_one_process_ends_in_order(start, served_model):
    server = start(served_model)
    server.wait_for("Application startup complete")
    assert server.ask(path="/ready") == (200, '{"status":"ready"}')
    assert "nej_requests_total" in server.ask(path="/metrics")[1]
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0
    assert "Traceback" not in "".join(server.lines)


def test_a_worker_that_cannot_start_ends_the_service_unless_one_ran(
        make_served, tmp_path, monkeypatch):
    model, shared = make_served(tmp_path / "model"), tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv(SETTINGS, json.dumps(asdict(Settings(model=model)), default=str))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    (model / "model.safetensors").rename(model / "away")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(shared))

    def code() -> int:
        with pytest.raises(SystemExit) as left:
            create()
        return left.value.code
    assert code() == STARTUP_FAILURE and "no model.safetensors" in (shared / "mistake").read_text()
    (model / "away").rename(model / "model.safetensors")
    create().state.service.close()
    (model / "model.safetensors").rename(model / "away")
    assert code() == 1


def test_a_hangup_while_the_model_loads_does_not_end_the_service(served_model, monkeypatch):
    hangups = []
    signal.signal(signal.SIGHUP, lambda *_: hangups.append(1))

    def load(settings):
        os.kill(os.getpid(), signal.SIGHUP)
        raise InputError("loaded")
    monkeypatch.setattr("nej.web.api.create_app", load)
    with pytest.raises(InputError, match="loaded"):
        serve(Settings(model=served_model, port=0))
    assert hangups == []


@pytest.mark.parametrize("token", [None, "a-token-that-nobody-guesses"])
def test_workers_have_the_token_of_the_settings(served_model, monkeypatch, token):
    monkeypatch.setattr(os, "environ", os.environ | {TOKEN: "another-one-of-the-environment"})
    monkeypatch.setattr("nej.web.serving.Supervisor", lambda *_: SimpleNamespace(run=lambda: None))
    serve(Settings(model=served_model, port=0, workers=2, token=token))
    assert os.environ.get(TOKEN) == token


def test_a_hangup_reaches_the_living_workers_past_a_dead_one():
    dead, living = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    dead.kill()
    dead.wait()
    Supervisor.handle_hup(SimpleNamespace(processes=[dead, living]))
    assert living.wait(10) == -signal.SIGHUP


def test_mistakes_end_with_a_sentence(served_model, tmp_path):
    with pytest.raises(InputError, match="no manifest.json"):
        serve(Settings(model=tmp_path, workers=2, port=0))
    with pytest.raises(InputError, match="cannot listen at 127.0.0.1, port 99999"):
        serve(Settings(model=served_model, port=99999))
    for settings, sentence in (
            ({"workers": 0}, "--workers is 0; it must be at least 1"),
            ({"queue_papers": 9}, "--queue_papers is 9; it must be at least 128"),
            ({"deadline_seconds": 0}, "it must be over 0"),
            ({"deadline_seconds": float("nan")}, "--deadline_seconds is nan; it must be over 0"),
            ({"deadline_seconds": float("inf")}, "--deadline_seconds is inf; it must be over 0"),
            ({"wanted_accuracy": float("nan")}, "--wanted_accuracy is nan; it must be from 0 to 1"),
            ({"wanted_accuracy": 7.0}, "--wanted_accuracy is 7; it must be from 0 to 1"),
            ({"log_texts": True}, "--log_texts needs --log FILE"),
            ({"token": "short"}, "NEJ_TOKEN has 5 characters"),
            ({"token": "clé-secrète-0123456789"}, "letters and digits of ASCII")):
        with pytest.raises(InputError, match=sentence):
            serve(Settings(model=served_model, **settings))


def test_a_port_that_is_taken_is_told(served_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1, port {port}: Address"):
            serve(Settings(model=served_model, port=port))
