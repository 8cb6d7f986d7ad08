"""Requests share batches, none waits for nothing, and none can harm another."""

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from nej.prediction import Classifier, Outputs
from nej.web.batcher import Batcher, Closed, Full
from scripts.make_sample import generate


class Reader:
    """Stands in for a Classifier: a text's number is its logit; `go` lets it compute."""

    def __init__(self, *, waits: bool = False, batch_tokens: int = 320):
        self.batch_tokens = batch_tokens
        self.go, self.began, self.batches = threading.Event(), threading.Event(), []
        if not waits:
            self.go.set()

    def read(self, summaries, titles):
        return [{"length": len(text), "number": int(text.split()[0])} for text in summaries]

    def run(self, papers):
        self.began.set()
        assert self.go.wait(10)
        self.batches.append([paper["number"] for paper in papers])
        if 666 in self.batches[-1]:
            raise RuntimeError("this paper breaks the model")
        numbers = np.array(self.batches[-1], np.float32)[:, None]
        return Outputs(numbers, numbers * 2)


@pytest.fixture
def batcher():
    """Return a queue for 100 papers, and close it at the end."""
    made = Batcher(queue_papers=100)
    yield made
    made.close()


def ask(batcher: Batcher, reader, *texts: str) -> asyncio.Task:
    """Send a request of some texts."""
    return asyncio.ensure_future(batcher.answer(reader, texts, [""] * len(texts)))


async def held(batcher: Batcher, reader: Reader) -> asyncio.Task:
    """Send a first request and return when the model works at it, waiting for `go`."""
    first = ask(batcher, reader, "1")
    await asyncio.to_thread(reader.began.wait, 10)
    return first


def numbers(answer) -> list[int]:
    """Return the numbers of an answer's papers."""
    assert np.array_equal(answer.embeddings, answer.logits * 2)
    return answer.logits[:, 0].astype(int).tolist()


def test_a_lone_request_is_answered_at_once(batcher):
    async def one():
        return await asyncio.wait_for(ask(batcher, reader, "7"), 5)
    reader = Reader()
    assert numbers(asyncio.run(one())) == [7] and reader.batches == [[7]]


def test_what_comes_in_meanwhile_shares_batches_of_like_length(batcher):
    reader = Reader(waits=True)

    async def several():
        asked = [await held(batcher, reader), ask(batcher, reader, "2" + " " * 99, "3", "4" * 3),
                 ask(batcher, reader, "5" + " " * 98)]
        await asyncio.sleep(0)
        assert batcher.waiting == 4
        reader.go.set()
        return [numbers(answer) for answer in await asyncio.gather(*asked)]
    assert asyncio.run(several()) == [[1], [2, 3, 444], [5]]
    assert reader.batches == [[1], [2, 5, 444], [3]]  # 320 tokens are three of the longest
    assert batcher.waiting == 0


def test_a_model_that_wants_much_at_a_time_gets_it():
    made = []

    async def batches_of(reader: Reader) -> int:
        made.append(Batcher(queue_papers=100))
        await ask(made[-1], reader, *(f"{n}".ljust(512) for n in range(32)))
        return len(reader.batches)
    cpu, gpu = (Reader(batch_tokens=tokens) for tokens in (4096, 65_536))
    assert asyncio.run(batches_of(cpu)) == 4 and asyncio.run(batches_of(gpu)) == 1
    for batcher in made:
        batcher.close()


def test_the_logits_are_those_of_the_classifier_alone(served_model, batcher):
    classifier = Classifier.load(served_model)
    papers = list(generate(40, 3))
    summaries = [paper["summary"] for paper in papers]
    titles = [paper["title"] for paper in papers]
    alone = classifier.run(classifier.read(summaries, titles))

    async def each_by_itself():
        return await asyncio.gather(*(
            batcher.answer(classifier, [summary], [title])
            for summary, title in zip(summaries, titles)))
    answers = asyncio.run(each_by_itself())
    np.testing.assert_allclose(np.concatenate([a.logits for a in answers]), alone.logits, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([a.embeddings for a in answers]), alone.embeddings,
                               atol=1e-5)
    assert np.ptp(alone.logits, axis=0).min() > 1e-3  # or any answer would do


def test_a_full_queue_refuses_and_has_room_again(batcher):
    reader = Reader(waits=True)

    async def too_many():
        asked = [await held(batcher, reader), ask(batcher, reader, *["2"] * 99)]
        await asyncio.sleep(0)
        with pytest.raises(Full) as refused:
            await ask(batcher, reader, "3", "4")
        assert refused.value.seconds >= 1
        asked.append(ask(batcher, reader, "5"))  # but one has room
        await asyncio.sleep(0)
        reader.go.set()
        await asyncio.gather(*asked)
        return numbers(await ask(batcher, reader, "6", "7"))
    assert asyncio.run(too_many()) == [6, 7]
    assert 3 not in sum(reader.batches, [])


def test_who_would_wait_in_vain_is_refused_at_once(batcher):
    reader = Reader(waits=True)
    batcher.seconds_per_paper = 0.5

    async def wait():
        asked = [await held(batcher, reader), ask(batcher, reader, "2", "3", "4")]
        await asyncio.sleep(0)
        with pytest.raises(Full) as refused:  # four papers are before it
            await batcher.answer(reader, ["5"], [""], patience_seconds=1.9)
        assert refused.value.seconds == 2
        asked.append(asyncio.ensure_future(
            batcher.answer(reader, ["6"], [""], patience_seconds=2.1)))
        await asyncio.sleep(0)
        reader.go.set()
        return [numbers(answer) for answer in await asyncio.gather(*asked)]
    assert asyncio.run(wait()) == [[1], [2, 3, 4], [6]]
    assert batcher.seconds_per_paper < 0.5  # it learns, and has nothing in hand any more
    assert batcher.working == batcher.waiting == 0


def test_who_goes_away_is_not_computed(batcher):
    reader = Reader(waits=True)

    async def leave():
        first, gone, last = (await held(batcher, reader), ask(batcher, reader, "2", "3"),
                             ask(batcher, reader, "4"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        assert batcher.waiting == 1
        reader.go.set()
        return numbers(await last), numbers(await first)
    assert asyncio.run(leave()) == ([4], [1])
    assert reader.batches == [[1], [4]]


def test_a_paper_that_breaks_the_model_fails_its_own_request_alone(batcher):
    reader = Reader(waits=True)

    async def with_a_bad_one():
        asked = [await held(batcher, reader), ask(batcher, reader, "2"),
                 ask(batcher, reader, "3", "666"), ask(batcher, reader, "4")]
        await asyncio.sleep(0)
        reader.go.set()
        return await asyncio.gather(*asked, return_exceptions=True)
    first, second, bad, last = asyncio.run(with_a_bad_one())
    assert [numbers(answer) for answer in (first, second, last)] == [[1], [2], [4]]
    assert "breaks the model" in str(bad) and batcher.works


def test_closing_answers_what_was_taken_and_takes_no_more():
    batcher, reader = Batcher(queue_papers=100), Reader(waits=True)

    async def close():
        asked = [await held(batcher, reader), ask(batcher, reader, "2"), ask(batcher, reader, "3")]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(batcher.close))
        while batcher.works:
            await asyncio.sleep(0.01)
        with pytest.raises(Closed):
            await ask(batcher, reader, "4")
        reader.go.set()
        await closing
        return [numbers(answer) for answer in await asyncio.gather(*asked)]
    assert asyncio.run(close()) == [[1], [2], [3]]


def test_each_request_is_answered_by_the_model_that_was_in_use_when_it_came(batcher):
    first, second = Reader(waits=True), Reader()

    async def replaced():
        asked = [await held(batcher, first), ask(batcher, first, "2"), ask(batcher, second, "3"),
                 ask(batcher, first, "4")]
        await asyncio.sleep(0)
        first.go.set()
        await asyncio.gather(*asked)
    asyncio.run(replaced())
    assert sum(first.batches, []) == [1, 2, 4] and second.batches == [[3]]


def test_many_lists_at_once_come_back_whole(batcher):
    lists = [[f"{100 * i + j} " + "x" * (7 * i * j % 90) for j in range(i + 1)] for i in range(12)]

    async def all_of_them():
        return await asyncio.gather(*(ask(batcher, SimpleNamespace(
            read=reader.read, run=reader.run, batch_tokens=320), *texts) for texts in lists))
    reader = Reader()
    answers = asyncio.run(all_of_them())
    assert [numbers(answer) for answer in answers] == [
        [100 * i + j for j in range(i + 1)] for i in range(12)]
