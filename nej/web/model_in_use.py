"""The model that answers: loaded and checked, and replaced by another while it works."""

import asyncio
import json
import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nej import InputError
from nej.files import checksum, read_manifest, require_model
from nej.predicting.backends import EXPORT, load_backend
from nej.predicting.labels import abstaining_under
from nej.predicting.unknown_words import UnknownWords
from nej.prediction import Backend, category_names
from nej.web.signals import Signals

WATCH_SECONDS = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """A model directory, ready to answer."""

    classifier: Backend
    unknown_words: UnknownWords
    name: str
    version: str  # the first 12 digits of the weights' sha256
    threshold: float | None  # under this probability it abstains
    manifest: dict[str, Any]
    metrics: dict[str, Any]
    card: str  # Markdown

    @classmethod
    def load(cls, model_dir: Path, wanted_accuracy: float | None, backend: str | None = None
             ) -> "ServedModel":
        """Load a model and let it answer once.

        Args:
            wanted_accuracy: abstain where answers would be right less often than this, by the
                thresholds in calibration.json; None never abstains.
            backend: see load_backend.

        Raises:
            InputError: no finished model, weights that are not those of its manifest, or not the
                back end that is asked for.
        """
        model_dir = model_dir.resolve()  # a link may be moved meanwhile
        require_model(model_dir, file="model.safetensors")  # nothing that needs pickle is tried
        classifier = load_backend(model_dir, backend)
        manifest = read_manifest(model_dir)
        found = checksum(model_dir / "model.safetensors")
        if found != manifest["weights_sha256"]:
            raise InputError(f"{model_dir}: its weights (sha256 {found[:12]}) are not those of its "
                             f"manifest ({manifest['weights_sha256'][:12]}); copy it again, or "
                             "train it again")
        classifier.run(classifier.read(["Whether all is well."]))
        return cls(classifier=classifier, unknown_words=UnknownWords(classifier.tokenizer),
                   name=model_dir.name, version=found[:12],
                   threshold=abstaining_under(classifier, wanted_accuracy), manifest=manifest,
                   metrics=json.loads((model_dir / "metrics.json").read_text("utf-8")),
                   card=(model_dir / "README.md").read_text("utf-8"))

    def name_of(self, code: str) -> str:
        """Return the name of a class, itself if arXiv has no such category."""
        return category_names().get(code, code)


class ModelInUse:
    """What lies at a place, a model directory or a link to one, and what comes there later."""

    def __init__(self, place: Path, *, wanted_accuracy: float | None, signals: Signals,
                 backend: str | None = None):
        """Load what is there; raises what ServedModel.load does."""
        self.place, self.signals = place, signals
        self._how = wanted_accuracy, backend
        self._one_at_a_time = asyncio.Lock()
        self._seen = self._mark()
        self.current = self._load()
        self._use(self.current)

    async def reload(self) -> bool:
        """Load what is at the place now and let it answer the requests from then on.

        What cannot be loaded is logged, and the model that was there goes on.
        """
        async with self._one_at_a_time:
            self._seen = self._mark() or self._seen
            try:
                loaded = await asyncio.to_thread(self._load)
            except Exception as error:
                logger.error("%s cannot be taken into use, and %s, version %s, goes on: %s",
                             self.place, self.current.name, self.current.version, error)
                self.signals.loads.labels("refused").inc()
                return False
            self._use(loaded)
            return True

    async def watch(self) -> None:
        """Reload for ever when something else is at the place."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._mark() not in (None, self._seen):
                await self.reload()

    def _load(self) -> ServedModel:
        """Load what is at the place in a thread that ends.

        Each thread that has computed keeps OpenMP's helpers. Where these and the model's thread's
        are more than there are cores, they fall asleep after every operation, and a lone paper
        takes two and a half times as long.
        """
        with ThreadPoolExecutor(1) as alone:
            return alone.submit(ServedModel.load, self.place, *self._how).result()

    def _use(self, loaded: ServedModel) -> None:
        self.signals.model.labels(self.current.name, self.current.version).set(0)
        self.signals.model.labels(loaded.name, loaded.version).set(1)
        self.signals.loads.labels("used").inc()
        self.current = loaded
        logger.info("%s answers, version %s", loaded.name, loaded.version)

    def _mark(self) -> tuple | None:
        """Return what tells one model at the place from the next, None if there is none."""
        try:
            folder = self.place.resolve(strict=True)
            (folder / "manifest.json").stat()
            there = [(str(file), file.stat()) for file in (
                *folder.glob("[!.]*"), *(folder / EXPORT).glob("*"))]  # copied one after the other
        except OSError:  # it is being replaced in this moment
            return None
        return folder, *sorted((name, file.st_ino, file.st_mtime_ns, file.st_size)
                               for name, file in there if stat.S_ISREG(file.st_mode))
