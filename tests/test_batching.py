"""Every optimizer step sees the same papers, whatever the number of processes."""

from itertools import combinations_with_replacement, pairwise

import numpy as np
import pytest
import torch

from nej.batching import IGNORED, StepBatchSampler, collate, micro_batches_per_step

PROCESSES = (1, 2, 4)


def lengths_of(papers: int, seed: int = 0) -> np.ndarray:
    """Return sorted lengths, the worst order for a sampler that would not shuffle."""
    return np.sort(np.random.default_rng(seed).integers(16, 257, papers))


def batches_of(lengths, *, epoch=0, **settings) -> list[list[int]]:
    sampler = StepBatchSampler(lengths, **settings)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


def steps_of(lengths, *, world_size=1, micro_batches=1, **settings) -> list[list[list[int]]]:
    """Return the micro-batches of all processes, grouped by optimizer step."""
    ranks = [batches_of(lengths, world_size=world_size, rank=rank, micro_batches=micro_batches,
                        **settings) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    return [[batch for batches in ranks for batch in batches[start:start + micro_batches]]
            for start in range(0, len(ranks[0]), micro_batches)]


CASES = [(papers, size, micro_batches, seed)
         for seed, (papers, size, micro_batches) in enumerate([
             (1, 32, 1), (7, 32, 4), (32, 32, 2), (33, 32, 4), (100, 8, 1), (100, 8, 3),
             (101, 24, 2), (257, 16, 5), (1000, 64, 8), (64, 1, 1)])]


@pytest.mark.parametrize("world_size", PROCESSES)
@pytest.mark.parametrize("papers, size, micro_batches, seed", CASES)
def test_each_paper_once_an_epoch(papers, size, micro_batches, seed, world_size):
    for epoch in range(2):
        steps = steps_of(lengths_of(papers), global_batch_size=size, seed=seed, epoch=epoch,
                         micro_batches=micro_batches, world_size=world_size)
        found = [paper for step in steps for batch in step for paper in batch]
        assert sorted(found) == list(range(papers))


@pytest.mark.parametrize("papers, size, micro_batches, seed", CASES)
def test_steps_are_the_same_for_all_numbers_of_processes(papers, size, micro_batches, seed):
    found = []
    for world_size in PROCESSES:
        steps = steps_of(lengths_of(papers), global_batch_size=size, seed=seed, epoch=1,
                         micro_batches=micro_batches, world_size=world_size)
        found.append([sorted(sum(step, [])) for step in steps])
    assert found[0] == found[1] == found[2]
    assert [len(step) for step in found[0][:-1]] == [size] * (-(-papers // size) - 1)


@pytest.mark.parametrize("world_size", PROCESSES)
@pytest.mark.parametrize("papers, size, micro_batches, seed", CASES)
def test_every_step_has_all_its_micro_batches(papers, size, micro_batches, seed, world_size):
    """Also the last one; else a process would wait for another, or a step take two's papers."""
    steps = -(-papers // size)
    for rank in range(world_size):
        batches = batches_of(lengths_of(papers), global_batch_size=size, seed=seed, rank=rank,
                             micro_batches=micro_batches, world_size=world_size)
        assert len(batches) == steps * micro_batches


def test_last_step_may_have_empty_micro_batches():
    last = steps_of(lengths_of(33), global_batch_size=32, seed=0, micro_batches=2, world_size=2)[-1]
    assert sorted(len(batch) for batch in last) == [0, 0, 0, 1]


@pytest.mark.parametrize("world_size", PROCESSES)
@pytest.mark.parametrize("tokens", [100, 256, 1000, 5000])
@pytest.mark.parametrize("size", [8, 30, 32])
def test_no_micro_batch_is_over_its_tokens(size, tokens, world_size):
    """Padding counts; a paper that is longer stands alone."""
    lengths = lengths_of(200)
    settings = {"global_batch_size": size, "seed": 3}
    micro_batches = micro_batches_per_step(
        lengths, micro_batch_tokens=tokens, epochs=2, world_size=world_size, **settings)
    steps = [step for epoch in range(2) for step in steps_of(
        lengths, epoch=epoch, micro_batches=micro_batches, world_size=world_size, **settings)]
    for batch in sum(steps, []):
        assert len(batch) <= 1 or len(batch) * lengths[batch].max() <= tokens
    # no fewer would do: in some step the papers, longest first, fill all of them but one's share
    most = 0
    for step in steps:
        papers, filled = sorted(lengths[sum(step, [])], reverse=True), 0
        while papers:
            papers, filled = papers[max(1, tokens // papers[0]):], filled + 1
        most = max(most, filled)
    assert micro_batches == -(-most // world_size)


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(20))
def test_the_largest_micro_batch_is_as_small_as_can_be(seed, parts):
    """Against all ways to cut ten papers, longest first."""
    lengths = np.random.default_rng(seed).integers(1, 60, 10)
    step, = steps_of(lengths, global_batch_size=10, seed=0, micro_batches=parts)
    ordered = sorted(lengths, reverse=True)
    best = min(max(run[0] * len(run) for run in runs if run) for runs in (
        [ordered[i:j] for i, j in pairwise((0, *cuts, 10))]
        for cuts in combinations_with_replacement(range(11), parts - 1)))
    assert max(lengths[batch].max() * len(batch) for batch in step if batch) == best


@pytest.mark.parametrize("seed", range(4))
def test_order_depends_on_seed_and_epoch_alone(seed):
    settings = {"global_batch_size": 16, "micro_batches": 2}
    lengths = lengths_of(200)
    sampler = StepBatchSampler(lengths, seed=seed, **settings)
    orders = []
    for epoch in (0, 1, 2, 0, 2):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[3] == orders[0] and orders[4] == orders[2]
    assert orders[1] == batches_of(lengths, seed=seed, epoch=1, **settings)
    other_seed = batches_of(lengths, seed=seed + 1, epoch=0, **settings)
    firsts = [frozenset(order[0] + order[1]) for order in (*orders[:3], other_seed)]
    assert len(set(firsts)) == 4


def test_steps_are_random_in_length():
    """Their mean lengths vary as those of random samples do, and do not drift over the epoch."""
    lengths, size = lengths_of(8000), 32
    ratios, drifts = [], []
    for seed in range(6):
        steps = steps_of(lengths, global_batch_size=size, seed=seed, micro_batches=4)
        means = np.array([lengths[sum(step, [])].mean() for step in steps])
        ratios.append(means.var() / (lengths.var() / size))
        drifts.append(np.corrcoef(np.arange(len(means)), means)[0, 1])
    assert 0.85 < np.mean(ratios) < 1.15  # its standard deviation is 0.036
    assert abs(np.mean(drifts)) < 0.1  # 0.026


def test_membership_in_steps_does_not_depend_on_the_lengths():
    settings = {"global_batch_size": 32, "seed": 5, "micro_batches": 4}
    one, other = (steps_of(lengths, **settings) for lengths in (
        lengths_of(500), lengths_of(500, seed=1)[::-1]))
    assert [set(sum(step, [])) for step in one] == [set(sum(step, [])) for step in other]
    assert one != other


def _padding_share(lengths: np.ndarray, batches: list) -> float:
    padded = sum(lengths[batch].max() * len(batch) for batch in batches if len(batch))
    return 1 - lengths.sum() / padded


@pytest.mark.parametrize("world_size", PROCESSES)
def test_there_is_much_less_padding_than_unsorted(world_size):
    lengths = lengths_of(2000)
    steps = steps_of(lengths, global_batch_size=64, seed=1, micro_batches=8 // world_size,
                     world_size=world_size)
    rng = np.random.default_rng(0)
    unsorted = [part for step in steps
                for part in np.array_split(rng.permutation(sum(step, [])), len(step))]
    sorted_share = _padding_share(lengths, sum(steps, []))
    assert sorted_share < 0.12 < 0.35 < _padding_share(lengths, unsorted)


def test_processes_get_papers_of_like_length_at_the_same_time():
    lengths = lengths_of(2000)
    ranks = [batches_of(lengths, global_batch_size=64, seed=1, micro_batches=4, rank=rank,
                        world_size=2) for rank in range(2)]
    longest = np.array([[lengths[batch].max() for batch in batches if batch] for batches in ranks])
    assert np.abs(longest[0] - longest[1]).mean() < 0.25 * np.ptp(lengths)
    assert longest[0].sum() == pytest.approx(longest[1].sum(), rel=0.25)


def test_collate_pads_to_the_longest():
    found = collate([{"input_ids": [5, 6, 7], "label": 2}, {"input_ids": [8], "label": 0},
                     {"input_ids": [3, 4], "label": 1, "id": "abs-1", "length": 2}],
                    pad_token_id=9)
    assert {key: value.tolist() for key, value in found.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9], [3, 4, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0], [1, 1, 0]],
        "labels": [2, 0, 1]}


@pytest.mark.parametrize("papers", [
    [], [{"input_ids": [5, 6], "label": 2}],
    [{"input_ids": np.array([5, 6], np.int32), "label": np.int64(2)}] * 3,
], ids=["none", "lists", "arrays"])
def test_collate_gives_whole_numbers_of_64_bits(papers):
    found = collate(papers, pad_token_id=0)
    assert {value.dtype for value in found.values()} == {torch.int64}
    assert found["input_ids"].shape == found["attention_mask"].shape
    assert len(found["labels"]) == max(1, len(papers))


def test_collate_takes_the_padding_id_for_no_mask():
    """A paper that holds the padding token is not masked there."""
    found = collate([{"input_ids": [5, 0, 7], "label": 1}], pad_token_id=0)
    assert found["attention_mask"].tolist() == [[1, 1, 1]]


def test_no_papers_give_one_that_the_loss_passes_over():
    found = collate([], pad_token_id=3)
    assert found["input_ids"].tolist() == [[3]] and found["labels"].tolist() == [IGNORED]
    loss = torch.nn.functional.cross_entropy(
        torch.ones(1, 4, requires_grad=True), found["labels"], reduction="sum")
    assert loss.item() == 0


def test_soft_labels_go_with_their_papers():
    papers = [{"input_ids": [1] * size, "label": size,
               "soft_label": np.array([size / 4, 1 - size / 4])}
              for size in (3, 1)]
    batch = collate(papers, pad_token_id=0)
    assert batch["labels"].tolist() == [3, 1] and batch["labels"].dtype == torch.int64
    assert batch["soft_labels"].tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert batch["soft_labels"].dtype == torch.float32
    assert "soft_labels" not in collate([{"input_ids": [1], "label": 0}], pad_token_id=0)
