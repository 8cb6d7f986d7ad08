"""From a request's papers to its answer: the model in use, the queue, signals and log."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from nej.predicting.labels import Labelling, ranked
from nej.predicting.prediction_log import PredictionLog, summarize
from nej.web.batcher import Answer, Batcher
from nej.web.model_in_use import ModelInUse, ServedModel
from nej.web.schemas import Category, Class, ModelDescription, Paper, Prediction, Predictions
from nej.web.serving import Settings
from nej.web.signals import Signals


class Gone(Exception):
    """The client went away."""


class Service:
    """What the requests share."""

    def __init__(self, settings: Settings):
        """Load the model.

        Raises:
            InputError: no model that can be served, or a log that cannot be written.
        """
        self.settings, self.signals = settings, Signals()
        self.model = ModelInUse(settings.model, wanted_accuracy=settings.wanted_accuracy,
                                signals=self.signals, backend=settings.backend)
        self.log = PredictionLog(settings.log, size_bytes=settings.log_megabytes << 20,
                                 lost=self.signals.log_lost.inc) if settings.log else None
        self.batcher = Batcher(
            queue_papers=settings.queue_papers, observe=self.signals.batch,
            observe_waiting=self.signals.waiting.set)

    def close(self) -> None:
        """Answer what waits, and end."""
        self.batcher.close()
        if self.log:
            self.log.close()

    async def predict(self, papers: list[Paper], *, top_k: int,
                      disconnected: Callable[[], Awaitable[None]]) -> Predictions:
        """Return the predictions for a request's papers, all by the same model.

        Args:
            disconnected: returns when the client went away.

        Raises:
            Full, Closed: they are not taken.
            TimeoutError: there was no answer before the deadline.
            Gone: nobody waits for it any more.
        """
        served = self.model.current
        work = asyncio.ensure_future(self.batcher.answer(
            served.classifier, [paper.summary for paper in papers],
            [paper.title or "" for paper in papers],
            patience_seconds=self.settings.deadline_seconds / 2))
        leaving = asyncio.ensure_future(disconnected())
        try:
            await asyncio.wait({work, leaving}, timeout=self.settings.deadline_seconds,
                               return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Gone if leaving.done() else TimeoutError
            answer = work.result()
        finally:
            leaving.cancel()
            work.cancel()  # which takes the papers out of the queue
        predictions = _predictions(served, answer, top_k)
        self._note(served, papers, answer, predictions)
        return Predictions(model=served.name, version=served.version, threshold=served.threshold,
                           predictions=predictions)

    def describe(self) -> ModelDescription:
        """Return which model answers, and what is known of it."""
        served, manifest = self.model.current, self.model.current.manifest
        classifier = served.classifier
        return ModelDescription(
            model=served.name, version=served.version, threshold=served.threshold,
            wanted_accuracy=self.settings.wanted_accuracy if served.threshold is not None else None,
            classes=[Class(code=name, name=served.name_of(name)) for name in classifier.names],
            reads=classifier.config.text_fields, max_length=classifier.config.max_length,
            trained=manifest["finished"], commit=(manifest["git"] or {}).get("commit"),
            data=manifest["data"], papers=manifest["papers"], metrics=served.metrics,
            card=served.card)

    def _note(self, served: ServedModel, papers: list[Paper], answer: Answer,
              predictions: list[Prediction]) -> None:
        """Count what was predicted, and write it into the log if there is one."""
        seen = [{
            "category": prediction.categories[0].code,
            "probability": round(prediction.categories[0].probability, 4),
            "abstained": prediction.abstained, "truncated": prediction.truncated,
            "tokens": read["length"],
            "unknown_words": round(served.unknown_words.share(read["input_ids"]), 4)}
            for read, prediction in zip(answer.papers, predictions)]
        for one in seen:
            self.signals.paper(**one)
        if self.log:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            directions = summarize(answer.embeddings).round(3).tolist()
            self.log.write([{
                "time": now, "model": served.name, "version": served.version,
                "title_characters": len(paper.title or ""),
                "summary_characters": len(paper.summary), **one, "embedding": embedding,
                **(paper.model_dump() if self.settings.log_texts else {})}
                for paper, one, embedding in zip(papers, seen, directions)])


def _predictions(served: ServedModel, answer: Answer, top_k: int) -> list[Prediction]:
    how = Labelling(served.classifier, served.threshold, top_k)
    return [Prediction(
        categories=[Category(code=code, name=name, probability=probability)
                    for code, name, probability in label.categories],
        abstained=label.abstained, truncated=read["truncated"])
        for label, read in zip(ranked(answer.logits, how), answer.papers)]
