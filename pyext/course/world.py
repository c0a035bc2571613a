"""The processes that train together: one, or those that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["World"]


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and on what device it computes."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @classmethod
    @contextmanager
    def join(cls, device: str) -> Iterator[World]:
        """The processes of ``torchrun`` (found by its environment) until the end of the block, else this one alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield cls(torch.device(device))
            return
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        try:
            yield cls(torch.device(device), dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """Whether this process is the one that shows and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """``model``, averaging its gradients over the processes where there are several."""
        return model if self.size == 1 else DistributedDataParallel(model)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, which all call this."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()
