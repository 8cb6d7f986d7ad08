"""Papers of many requests, gathered into batches for a model that one thread runs.

An idle model begins with whatever is there, so that a lone request waits for nobody; what comes
in meanwhile forms the next batches. The event loop only ever puts requests into the queue.
"""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nej.batching import fill
from nej.prediction import BATCH_PAPERS, Backend

WINDOW_PAPERS = 64  # read together and sorted by length; later ones wait for these

logger = logging.getLogger(__name__)


class Full(Exception):
    """The queue has no room, or it would take too long; ask again after `seconds`."""

    def __init__(self, seconds: int):
        super().__init__(f"the queue is full; try again in {seconds} s")
        self.seconds = seconds


class Closed(Exception):
    """The service is being stopped and takes no more."""


@dataclass(frozen=True)
class Answer:
    """What a model makes of one request's papers, in their order."""

    papers: list[dict[str, Any]]  # as Backend.read returns them
    logits: np.ndarray  # float32 (papers, classes)
    embeddings: np.ndarray  # float32 (papers, width)


@dataclass(eq=False)
class _Job:
    """A request: its papers, and what is known of each so far."""

    classifier: Backend
    summaries: Sequence[str]
    titles: Sequence[str]
    future: asyncio.Future
    taken: int = 0  # papers that left the queue
    gone: bool = False  # nobody waits for it any more
    found: dict[int, tuple] = field(default_factory=dict)  # paper, logits, embedding by place

    def finish(self, result: Any, *, failed: bool = False) -> None:
        """Hand over what came of it, in the event loop's own thread."""
        def settle() -> None:
            if not self.future.done():
                (self.future.set_exception if failed else self.future.set_result)(result)
        if not self.gone:
            self.gone = True
            self.future.get_loop().call_soon_threadsafe(settle)


class Batcher:
    """A queue of requests, and the thread that answers them, the oldest first.

    Args:
        queue_papers: papers that may wait; more are refused.
        observe: called with papers, tokens and seconds of each batch, in the model's thread.
        observe_waiting: called with the papers that wait, whenever these change.
    """

    def __init__(self, *, queue_papers: int,
                 observe: Callable[[int, int, float], None] = lambda *_: None,
                 observe_waiting: Callable[[int], None] = lambda _: None):
        self.queue_papers, self.observe = queue_papers, observe
        self.observe_waiting = observe_waiting
        self.waiting = 0  # papers
        self.working = 0  # papers that left the queue and are not done
        self.seconds_per_paper = 0.0  # of late
        self._jobs: deque[_Job] = deque()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def works(self) -> bool:
        """Return whether a new request would be answered."""
        return self._thread.is_alive() and not self._closing

    def seconds_to_wait(self) -> int:
        """Return after how many seconds what waits now should be done, at least 1."""
        return max(1, math.ceil((self.waiting + self.working) * self.seconds_per_paper))

    async def answer(self, classifier: Backend, summaries: Sequence[str],
                     titles: Sequence[str], *, patience_seconds: float = math.inf) -> Answer:
        """Return what the model makes of the papers; if cancelled, they leave the queue.

        Raises:
            Full: they do not fit into the queue, or what is before them takes longer than their
                patience lasts. Refused at once, they cost nothing; let in, they would be given up
                when the model has worked at them already.
            Closed: the queue takes no more.
        """
        job = _Job(classifier, summaries, titles, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._closing:
                raise Closed
            before = (self.waiting + self.working) * self.seconds_per_paper
            if self.waiting + len(summaries) > self.queue_papers or before > patience_seconds:
                raise Full(self.seconds_to_wait())
            self._jobs.append(job)
            self._add_waiting(len(summaries))
            self._changed.notify()
        try:
            return await job.future
        finally:
            job.gone = True
            self._drop(job)

    def close(self) -> None:
        """Take no more, answer what is there, and return when that is done."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _drop(self, job: _Job) -> None:
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)
                self._add_waiting(job.taken - len(job.summaries))

    def _add_waiting(self, papers: int) -> None:
        self.waiting += papers
        self.observe_waiting(self.waiting)

    def _work(self) -> None:
        while window := self._take():
            started = time.perf_counter()
            self._serve(window)
            took = (time.perf_counter() - started) / len(window)
            # a lone paper says less about what a full window takes
            weight = 1 - 0.98 ** len(window) if self.seconds_per_paper else 1
            self.seconds_per_paper += weight * (took - self.seconds_per_paper)
            self.working = 0

    def _take(self) -> list[tuple[_Job, int]]:
        """Wait for papers and return the oldest that one model is to read; none at the end."""
        window: list[tuple[_Job, int]] = []
        with self._changed:
            while not self._jobs and not self._closing:
                self._changed.wait()
            while self._jobs and len(window) < WINDOW_PAPERS:
                job = self._jobs[0]
                if window and job.classifier is not window[0][0].classifier:
                    break
                end = min(len(job.summaries), job.taken + WINDOW_PAPERS - len(window))
                window += [(job, place) for place in range(job.taken, end)]
                self._add_waiting(job.taken - end)
                self.working += end - job.taken
                job.taken = end
                if end == len(job.summaries):
                    self._jobs.popleft()
        return window

    def _serve(self, window: list[tuple[_Job, int]]) -> None:
        """Answer the papers; one that breaks the model fails its own request alone."""
        try:
            self._compute(window)
        except Exception as error:
            jobs = dict.fromkeys(job for job, _ in window)
            if len(jobs) == 1:
                window[0][0].finish(error, failed=True)
                self._drop(window[0][0])
                return
            logger.warning("a batch of %d requests failed (%s); each is tried alone", len(jobs),
                           type(error).__name__)
            for job in jobs:
                self._serve([(other, place) for other, place in window if other is job])

    def _compute(self, window: list[tuple[_Job, int]]) -> None:
        classifier = window[0][0].classifier
        papers = classifier.read([job.summaries[place] for job, place in window],
                                 [job.titles[place] for job, place in window])
        order = sorted(range(len(window)), key=lambda index: -papers[index]["length"])
        # a short paper counts as a BATCH_PAPERS-th of the budget, so that no batch has more of them
        most = classifier.batch_tokens
        least = most // BATCH_PAPERS
        start = 0
        for end in fill([max(papers[i]["length"], least) for i in order], most):
            rows = [i for i in order[start:end] if not window[i][0].gone]
            start = end
            if rows:
                self._run(classifier, [(*window[i], papers[i]) for i in rows])

    def _run(self, classifier: Backend, batch: list[tuple[_Job, int, dict]]) -> None:
        started = time.perf_counter()
        papers = [paper for *_, paper in batch]
        outputs = classifier.run(papers)
        self.observe(len(papers), sum(paper["length"] for paper in papers),
                     time.perf_counter() - started)
        for (job, place, paper), *arrays in zip(batch, outputs.logits, outputs.embeddings):
            job.found[place] = (paper, *arrays)
            if len(job.found) == len(job.summaries):
                papers_of, logits, embeddings = zip(*(
                    job.found[place] for place in range(len(job.found))))
                job.finish(Answer(list(papers_of), np.stack(logits), np.stack(embeddings)))
