"""The web server's processes: settings, one process or several, signals."""

import json
import logging
import math
import os
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import uvicorn
from tqdm import tqdm
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from nej import InputError
from nej.files import require_model
from nej.workers import cores

SETTINGS = "NEJ_SERVICE"  # how worker processes get the settings, as JSON
TOKEN = "NEJ_TOKEN"
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # a folder of the workers of one service; Prometheus' name
MISTAKE, STARTED = "mistake", "started"  # files there: why none started, and that one did
MOST_CONNECTIONS = 1000  # of a process; each may hold a body
# On a CPU torch keeps a kernel of its own for each number of tokens that a batch had, 1,024 of them
# by default, which take hundreds of MB. Few are ever used again: keeping 16 is as fast. These are
# read when torch is loaded.
FEW_KERNELS = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
LOGGING: dict[str, Any] = {
    "version": 1, "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(process)d %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How to serve; scripts/serve.py --help explains each."""

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    backend: str | None = None
    wanted_accuracy: float | None = 0.9
    queue_papers: int = 256
    deadline_seconds: float = 10.0
    log: Path | None = None
    log_texts: bool = False
    log_megabytes: int = 100
    cors_origins: tuple[str, ...] = ()
    token: str | None = None

    def check(self) -> None:
        """Raise InputError if something cannot be so."""
        from nej.web.schemas import MOST_PAPERS
        for name, least in (("workers", 1), ("queue_papers", MOST_PAPERS), ("log_megabytes", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.deadline_seconds < math.inf:
            raise InputError(f"--deadline_seconds is {self.deadline_seconds}; it must be over 0")
        if self.log_texts and not self.log:
            raise InputError("--log_texts needs --log FILE")
        if self.token is not None and len(self.token) < 16:
            raise InputError(f"{TOKEN} has {len(self.token)} characters, and a token that nobody "
                             "guesses at least 16; `openssl rand -hex 32` makes one")
        if self.token is not None and not self.token.isascii():
            raise InputError(f"{TOKEN} has characters that clients send in different ways; take "
                             "letters and digits of ASCII, as `openssl rand -hex 32` makes them")


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C, answer what was taken, and return the exit code.

    Raises:
        InputError: a setting that cannot be, no model that can be served, a port that is taken.
    """
    settings.check()
    os.environ.update(FEW_KERNELS | os.environ)
    _ignore_hup()
    with _bound(settings) as listener, tempfile.TemporaryDirectory(prefix="nej-serve-") as folder:
        if settings.workers > 1:
            return _serve_with_workers(settings, listener, folder)
        from nej.web.api import create_app
        server = uvicorn.Server(_config(create_app(settings), settings))
        for stop in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises it again when all is done
            signal.signal(stop, lambda *_: None)
        logger.info("http://%s:%d", settings.host, listener.getsockname()[1])
        server.run([listener])
        return 0


def _serve_with_workers(settings: Settings, listener: socket.socket, folder: str) -> int:
    require_model(settings.model)  # the workers look closer
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // settings.workers)))
    os.environ[SHARED] = folder
    os.environ[SETTINGS] = json.dumps(asdict(settings) | {"token": None}, default=str)
    os.environ.pop(TOKEN, None)
    if settings.token:
        os.environ[TOKEN] = settings.token
    supervisor = Supervisor(_config("nej.web.serving:create", settings), [listener])
    logger.info("http://%s:%d, %d workers", settings.host, listener.getsockname()[1],
                settings.workers)
    supervisor.run()
    mistake = Path(folder, MISTAKE)
    if mistake.exists() and not Path(folder, STARTED).exists():
        raise InputError(mistake.read_text("utf-8"))
    return 0


def create():
    """Return a worker process' application."""
    _ignore_hup()
    tqdm.set_lock(RLock())  # its own is for several processes, and a leak when this one is ended
    found = json.loads(os.environ[SETTINGS])
    settings = Settings(**found | {
        "model": Path(found["model"]), "log": found["log"] and Path(found["log"]),
        "cors_origins": tuple(found["cors_origins"]), "token": os.environ.get(TOKEN)})
    from nej.web.api import create_app
    folder = Path(os.environ[SHARED])
    try:
        app = create_app(settings)
    except InputError as error:
        logger.error("%s", error)
        (folder / MISTAKE).write_text(str(error), "utf-8")
        # the first workers' mistake ends the service; a later one, of a worker that was started
        # again while its model was away, does not: it is started once more
        sys.exit(1 if (folder / STARTED).exists() else STARTUP_FAILURE)
    (folder / STARTED).touch()
    return app


def _ignore_hup() -> None:
    """Let SIGHUP do nothing until there is a model to replace; by itself it ends a process."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


class Supervisor(Multiprocess):
    """uvicorn's, which starts a worker again that dies; SIGHUP lets each load its model anew."""

    def handle_hup(self) -> None:
        """Pass the signal on: a worker takes another model into use without closing anything."""
        for process in self.processes:
            if process.pid is not None:
                with suppress(ProcessLookupError):  # it died, and is started again soon
                    os.kill(process.pid, signal.SIGHUP)

    def keep_subprocess_alive(self) -> None:
        """Start dead workers again, and take what they measured last out of the sums."""
        from prometheus_client.multiprocess import mark_process_dead
        before = {process.pid for process in self.processes}
        for process in self.processes:  # with this end open, too, a death while one waits for a
            process.child_conn.close()  # sign of life is seen only when the time for it is over
        super().keep_subprocess_alive()
        for pid in before - {process.pid for process in self.processes}:
            mark_process_dead(pid)


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app, factory=isinstance(app, str), workers=settings.workers, log_config=LOGGING,
        # the same everywhere, whatever else is installed
        loop="asyncio", http="h11", ws="none", lifespan="on", access_log=False,
        server_header=False, limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.deadline_seconds) + 5,
        timeout_worker_healthcheck=30)


def _bound(settings: Settings) -> socket.socket:
    """Return a socket at the address; it listens when there is a model."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # with the protocol named, or asyncio leaves Nagle's algorithm on, and the second part of an
    # answer waits 40 ms for the client's word that it has the first
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise InputError(f"cannot listen at {settings.host}, port {settings.port}: "
                         f"{getattr(error, 'strerror', None) or error}; name another --port or "
                         "--host") from error
    listener.set_inheritable(True)
    return listener
