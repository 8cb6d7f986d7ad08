"""Batches: the same papers in the same optimizer step, whatever the number of processes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

IGNORED = -100  # the label that the loss and Trainer's count of papers pass over


class StepBatchSampler(Sampler[list[int]]):
    """Yield one process's micro-batches, step by step.

    Each optimizer step takes `global_batch_size` papers, drawn without replacement by (seed,
    epoch) alone. Inside the step they are sorted by length and cut into `micro_batches` for each
    process, so that there is little padding though the step's papers are random in length. Every
    step has exactly `micro_batches` of them; some may be empty, in an epoch's last, smaller step
    above all, which `collate` turns into a batch that counts for nothing.

    Args:
        lengths: tokens of each paper, (papers,).
        global_batch_size: papers per optimizer step, over all processes.
        micro_batches: micro-batches per step and process (Trainer's gradient accumulation).
        seed: with the epoch, it decides the order.
        rank: this process, from 0.
        world_size: how many there are.
    """

    def __init__(self, lengths: np.ndarray, *, global_batch_size: int, micro_batches: int,
                 seed: int, rank: int = 0, world_size: int = 1):
        self.lengths = np.asarray(lengths)
        self.global_batch_size = global_batch_size
        self.micro_batches = micro_batches
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        steps = -(-len(self.lengths) // self.global_batch_size)
        return steps * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for step in _steps(self.lengths, self.global_batch_size, self.seed, self.epoch):
            ends = _cut(self.lengths[step].tolist(), self.micro_batches * self.world_size)
            parts = np.split(step, ends[:-1])
            # neighbours in length go to different processes at the same time
            for part in parts[self.rank::self.world_size]:
                yield part.tolist()


def micro_batches_per_step(lengths: np.ndarray, *, global_batch_size: int, micro_batch_tokens: int,
                           epochs: int, seed: int, world_size: int = 1) -> int:
    """Return into how many micro-batches each process cuts its share of a step.

    They are as many as the step that needs most of them takes, so that no micro-batch has more
    than `micro_batch_tokens` tokens, padding included, but where a single paper has more.
    """
    most = max((len(fill(lengths[step].tolist(), micro_batch_tokens))
                for epoch in range(epochs)
                for step in _steps(lengths, global_batch_size, seed, epoch)), default=1)
    return -(-most // world_size)


def _steps(lengths: np.ndarray, size: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Yield the papers of each optimizer step, the longest first."""
    order = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    for start in range(0, len(order), size):
        step = order[start:start + size]
        yield step[np.argsort(-lengths[step], kind="stable")]


def fill(lengths: list[int], tokens: int) -> list[int]:
    """Cut papers, the longest first, into runs of at most `tokens`, padded; return their ends."""
    ends, start = [], 0
    while start < len(lengths):
        start += max(1, tokens // lengths[start])
        ends.append(min(start, len(lengths)))
    return ends


def _cut(lengths: list[int], parts: int) -> list[int]:
    """Cut papers, the longest first, into `parts` runs, the largest as small as can be; return
    their ends. The last runs may be empty.
    """
    low, high = 0, lengths[0] * len(lengths)  # too few tokens for a run, and enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(fill(lengths, middle)) <= parts else (middle, high)
    ends = fill(lengths, high)
    return ends + [len(lengths)] * (parts - len(ends))


def collate(papers: list[dict], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad papers to the longest of them.

    Returns:
        input_ids and attention_mask (papers, tokens), all int64, and `targets`. No papers give one
        empty paper whose label is IGNORED.
    """
    if not papers:
        papers = [{"input_ids": [pad_token_id], "label": IGNORED}]
    longest = max(len(paper["input_ids"]) for paper in papers)
    input_ids = torch.full((len(papers), longest), pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, paper in enumerate(papers):
        input_ids[row, :len(paper["input_ids"])] = torch.as_tensor(paper["input_ids"])
        attention_mask[row, :len(paper["input_ids"])] = 1
    return targets(papers) | {"input_ids": input_ids, "attention_mask": attention_mask}


def targets(papers: list[dict]) -> dict[str, torch.Tensor]:
    """Return labels (papers,) int64 and, if there are, soft_labels (papers, classes) float32."""
    batch = {"labels": torch.tensor([paper["label"] for paper in papers])}
    if "soft_label" in papers[0]:
        batch["soft_labels"] = torch.tensor(
            np.stack([paper["soft_label"] for paper in papers]), dtype=torch.float32)
    return batch
