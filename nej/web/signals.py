"""What the service tells Prometheus: its load, and whether papers and answers change."""

import os

from prometheus_client import (
    CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from nej.web.serving import SHARED

SECONDS = (.005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10)
TOKENS = (16, 32, 64, 128, 192, 256, 320, 384, 512)
SHARES = tuple(step / 10 for step in range(1, 11))


class Signals:
    """The counters of one process, or its part of those that several processes share."""

    def __init__(self):
        disable_created_metrics()  # a second line for each counter, of no use here
        self.registry = CollectorRegistry()
        if SHARED not in os.environ:
            ProcessCollector(registry=self.registry)

        def make(kind, name, text, labels=(), **options):
            return kind(f"nej_{name}", text, labels, registry=self.registry, **options)
        self.requests = make(Counter, "requests", "Requests answered", ("path", "status"))
        self.request_seconds = make(Histogram, "request_seconds", "From request to answer",
                                    ("path",), buckets=SECONDS)
        self.waiting = make(Gauge, "waiting_papers", "Papers in the queue",
                            multiprocess_mode="livesum")
        self.batch_papers = make(Histogram, "batch_papers", "Papers in a batch",
                                 buckets=(1, 2, 4, 8, 16, 32))
        self.batch_tokens = make(Counter, "batch_tokens", "Tokens that the model read")
        self.batch_seconds = make(Histogram, "batch_seconds", "Time of a batch", buckets=SECONDS)
        self.model = make(Gauge, "model", "1 for the model that answers", ("name", "version"),
                          multiprocess_mode="livemax")
        self.loads = make(Counter, "model_loads", "Models taken into use, or refused", ("outcome",))
        self.predictions = make(Counter, "predictions", "Papers by their first category",
                                ("category",))
        self.abstained = make(Counter, "abstained", "Papers under the threshold")
        self.truncated = make(Counter, "truncated", "Papers longer than the model reads")
        self.confidence = make(Histogram, "confidence", "Probability of the first category",
                               buckets=SHARES)
        self.tokens = make(Histogram, "paper_tokens", "Tokens of a paper, after truncation",
                           buckets=TOKENS)
        self.unknown_words = make(Histogram, "unknown_word_share",
                                  "Share of a paper's words that the vocabulary has not whole",
                                  buckets=(.05, .1, .15, .2, .25, .3, .4, .5, 1))
        self.log_lost = make(Counter, "log_lost_papers", "Papers that the log could not take")

    def batch(self, papers: int, tokens: int, seconds: float) -> None:
        """Note a batch."""
        self.batch_papers.observe(papers)
        self.batch_tokens.inc(tokens)
        self.batch_seconds.observe(seconds)

    def paper(self, *, category: str, probability: float, abstained: bool, truncated: bool,
              tokens: int, unknown_words: float) -> None:
        """Note what was predicted for a paper."""
        self.predictions.labels(category).inc()
        self.confidence.observe(probability)
        self.abstained.inc(abstained)
        self.truncated.inc(truncated)
        self.tokens.observe(tokens)
        self.unknown_words.observe(unknown_words)

    def text(self) -> bytes:
        """Return all of it, of all processes, in Prometheus' text format."""
        if SHARED not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)
