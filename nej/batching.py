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
    step has exactly `micro_batches` of them; in an epoch's last, smaller step some may be empty,
    which `collate` turns into a batch that counts for nothing.

    Args:
        lengths: tokens of each paper, (papers,).
        global_batch_size: papers per optimizer step, over all processes.
        micro_batches: micro-batches per step and process (Trainer's gradient accumulation).
        seed: with the epoch, it decides the order.
        rank, world_size: this process and how many there are.
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
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.lengths))
        for start in range(0, len(order), self.global_batch_size):
            step = order[start:start + self.global_batch_size]
            step = step[np.argsort(-self.lengths[step], kind="stable")]  # longest first
            parts = np.array_split(step, self.micro_batches * self.world_size)
            # neighbours in length go to different processes at the same time
            for part in parts[self.rank::self.world_size]:
                yield part.tolist()


def micro_batches_per_step(
    global_batch_size: int, *, micro_batch_size: int, world_size: int
) -> int:
    """Return into how many micro-batches each process cuts its share of a step."""
    return -(-global_batch_size // (micro_batch_size * world_size))


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
