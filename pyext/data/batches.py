"""Batches cut from tensors, the same ones each time, also for several processes and from worker processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = ["Batches"]


class Batches:
    """The batches of a tuple of tensors; every iteration after :meth:`set_epoch` gives the same ones again.

    The order of an epoch depends on ``(seed, epoch)`` alone, so that an interrupted run can continue at any batch and
    two models see equal batches. The last batch of an epoch may be smaller.

    Of ``ranks`` processes each takes its share of every step's samples: a step of R processes with batches of B has the
    samples of one process' step with batches of R B, each in one share. Where a step has fewer samples than there are
    processes, some shares hold a sample that :meth:`sizes` does not count: no process may leave a step out.

    Args:
        tensors: inputs..., target, each [N, ...].
        batch_size: samples in a batch of one process; None: all.
        shuffle: draw a new order each epoch; otherwise the order of the tensors.
        seed: of the orders.
        collate: makes a batch, (inputs..., target), of what was cut from the tensors.
        workers: processes that cut and collate ahead (torch's DataLoader); 0: none.
        rank, ranks: which of how many processes this one is.

    Iterating gives tuples of tensors [batch, ...].
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int | None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        collate: Callable[..., tuple[Tensor, ...]] | None = None,
        workers: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        counts = {len(tensor) for tensor in tensors}
        if len(counts) != 1:
            raise ValueError(f"tensors: expected equal first dimensions, got {[len(tensor) for tensor in tensors]}")
        self.tensors = tuple(tensors)
        self.samples = counts.pop()
        self.step = max(1, self.samples) if batch_size is None else batch_size * ranks  #: samples in a step of all
        self.shuffle = shuffle
        self.seed = seed
        self.collate = collate
        self.workers = workers
        self.rank, self.ranks = rank, ranks
        self.epoch = self.skip = 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose which epoch's order the next iterations give, and how many of its batches are left out at the start."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-self.samples // self.step)

    def sizes(self, number: int) -> tuple[int, int]:
        """Samples in batch ``number`` (from 0) of an epoch: that count in this process' share, and in all shares."""
        total = min(self.step, self.samples - number * self.step)
        return len(range(self.rank, total, self.ranks)), total

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        shares = self._shares()[self.skip :]
        cut = _Cut(self.tensors, self.collate)
        if not self.workers:
            return (cut[share] for share in shares)
        loader = DataLoader(
            cut,
            batch_size=None,  # an index of the "data set" is a whole batch
            sampler=shares,
            num_workers=self.workers,
            worker_init_fn=_leave_ctrl_c_to_the_parent,
            generator=torch.Generator(),  # else it draws from the generator that the training uses
        )
        return iter(loader)

    def _shares(self) -> list[Tensor]:
        order = self._order()
        steps = (order[start : start + self.step] for start in range(0, self.samples, self.step))
        # All of a small step, rather than nothing: see the class.
        return [step[self.rank :: self.ranks] if len(step) > self.rank else step[:1] for step in steps]

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.samples)
        # SeedSequence mixes the pair: plain seed + epoch would give seed 1 the orders of seed 0, one epoch late.
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
        return torch.randperm(self.samples, generator=generator)


class _Cut(Dataset):
    """What stands at the indices of a batch; a class of its own because workers get a copy of it."""

    def __init__(self, tensors: tuple[Tensor, ...], collate: Callable[..., tuple[Tensor, ...]] | None) -> None:
        self.tensors, self.collate = tensors, collate

    def __getitem__(self, chosen: Tensor) -> tuple[Tensor, ...]:
        batch = tuple(tensor[chosen] for tensor in self.tensors)
        return batch if self.collate is None else self.collate(*batch)


def _leave_ctrl_c_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
