"""What this machine can do at most: multiply-adds in registers, and copying. No kernel is faster, so no row may be."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from torchsmith import _native
from torchsmith.bench import harness

__all__ = ["measure"]

#: Beyond any cache, and within the second-level cache of the machines in use: bytes of the source of a copy.
MEMORY_BYTES = 256 << 20
CACHE_BYTES = 256 << 10


def measure(threads: int, seconds: float = 0.2) -> dict[str, Any]:
    """GFLOP/s (float32) and GB/s (read plus written) of this many threads, under the active instruction set."""
    return {
        "threads": threads,
        "isa": _native.isa_active(),
        "gflops": _fma(threads, seconds),
        "gbytes_s": _copy(threads, MEMORY_BYTES, seconds),
        "cache_gbytes_s": _copy(threads, CACHE_BYTES * threads, seconds),
    }


def _fma(threads: int, seconds: float) -> float:
    """The sum over threads that run at once, in the best of some spans: a neighbour on the core takes up to half of others. The
    probe releases the GIL."""
    count, spans = min(threads, os.cpu_count() or 1), 8
    with ThreadPoolExecutor(count) as pool:
        return max(sum(pool.map(_native.fma_ceiling, [seconds / spans] * count)) for _ in range(spans))


def _copy(threads: int, size: int, seconds: float) -> float:
    source, target = torch.ones(size // 4), torch.empty(size // 4)
    best = float("inf")
    calls = max(1, (4 << 20) // size)
    with harness.threads(threads), harness.quiet():
        target.copy_(source)
        end = time.perf_counter() + seconds
        while best == float("inf") or time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(calls):
                target.copy_(source)
            best = min(best, (time.perf_counter() - start) / calls)
    return 2 * size / best / 1e9
