"""What every Triton row shares: registering launchers, choosing among configurations, launching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton import knobs

__all__ = ["DTYPES", "LAUNCHERS", "Config", "cdiv", "implements", "launch", "precision"]

#: What the kernels compute: products by tl.dot, sums in float32. float64 stays with the C++ kernels.
DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})

#: native op -> its launcher: (outputs, *arguments of the op). The outputs are allocated by the op's description.
LAUNCHERS: dict[str, Callable[..., None]] = {}

INTERPRETED = knobs.runtime.interpret
cdiv = triton.cdiv


def implements(op: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Names the native op, ``torch.ops.torchsmith.<op>``, that a launcher computes."""

    def keep(launcher: Callable[..., None]) -> Callable[..., None]:
        LAUNCHERS[op] = launcher
        return launcher

    return keep


class Config(dict):
    """The constants of one configuration, by name, and how it is compiled."""

    def __init__(self, *, warps: int = 4, stages: int = 3, **constants: int):
        super().__init__(constants)
        self.options = {"num_warps": warps, "num_stages": stages}


def launch(kernel: Any, grid: Callable[[Config], Sequence[int]], config: Config, *args: Any, **constants: Any) -> None:
    """One launch; the grid is made from the very configuration that runs. An empty grid is nothing to do."""
    blocks = tuple(grid(config))
    if 0 in blocks:
        return
    kernel[blocks](*args, **constants, **config, **config.options)


def precision(allow_tf32: bool) -> str:
    """What tl.dot may do to float32: round its operands to TF32, or nothing."""
    return "tf32" if allow_tf32 else "ieee"
