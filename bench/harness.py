"""Interleaved measuring of two arms that do the same work: A B A B ..., medians, in one process.

Separate runs of one program drift by 20 % on shared machines, interleaved medians repeat within 1-2 %. So nothing here
times one arm alone: each round of ours is preceded by a round of native, with garbage collection off.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchsmith import _native

if TYPE_CHECKING:
    from torchsmith.bench.pairs import Pair

__all__ = [
    "Plan",
    "Times",
    "environment",
    "interleave",
    "quartiles",
    "quiet",
    "ratio_of",
    "threads",
]


# ------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Plan:
    """How long to measure: seconds of timed rounds for each arm, and of one round."""

    budget_s: float = 0.5
    round_s: float = 1e-3  # long beside the clock's 50 ns, short beside what disturbs a machine
    warm_s: float = 0.1
    min_rounds: int = 9
    max_rounds: int = 300

    @classmethod
    def quick(cls) -> Plan:
        return cls(budget_s=0.05, warm_s=0.02, min_rounds=5, max_rounds=30)

    def calls_and_rounds(self, pair: Pair) -> tuple[int, int]:
        """Warms both arms up, then chooses calls in a round and rounds from the slower arm's speed."""
        per_call = max(_warm(pair.ours, self.warm_s), _warm(pair.native, self.warm_s))
        calls = max(1, round(self.round_s / per_call))
        rounds = round(self.budget_s / (calls * per_call))
        return calls, min(max(rounds, self.min_rounds), self.max_rounds)


def _warm(arm: Callable[[int], None], seconds: float) -> float:
    """Runs the arm for about that long (twice at least); returns the seconds of its fastest call."""
    best, spent, runs = float("inf"), 0.0, 0
    while spent < seconds or runs < 2:
        start = time.perf_counter()
        arm(1)
        elapsed = time.perf_counter() - start
        best, spent, runs = min(best, elapsed), spent + elapsed, runs + 1
    return max(best, 1e-9)


@dataclass
class Times:
    """Seconds a call, round by round; round i of native ran just before round i of ours."""

    ours: list[float] = field(default_factory=list)
    native: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Of each round, native/ours: both ran within milliseconds, whatever the machine's clock did in between rounds."""
        return [n / o for n, o in zip(self.native, self.ours, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def ratio_of(times: Times) -> dict[str, float]:
    """Median and quartiles of the rounds' ratios (native/ours: above 1 ours is faster)."""
    low, high = quartiles(times.ratios)
    return {"ratio": times.ratio, "ratio_low": low, "ratio_high": high}


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    each = sorted(values)
    return (each[len(each) // 4], each[(3 * len(each)) // 4]) if each else (float("nan"),) * 2


def interleave(pair: Pair, plan: Plan | None = None, tick: Callable[[], None] | None = None) -> Times:
    """Times both arms by turns. ``tick`` is called after each round."""
    times = Times()
    with quiet():
        calls, rounds = (plan or Plan()).calls_and_rounds(pair)
        for _ in range(rounds):
            for arm, into in ((pair.native, times.native), (pair.ours, times.ours)):
                start = time.perf_counter()
                arm(calls)
                into.append((time.perf_counter() - start) / calls)
            if tick:
                tick()
    return times


@functools.cache
def _settle_allocator() -> None:
    """Puts glibc's malloc in the state of a process that has freed a large tensor once, as training soon has.

    Up to then a tensor of some MB is mapped and zeroed by the kernel at each call, or not, as other sizes before it had it:
    the same convolution took 3.7 ms or 8.5. malloc keeps blocks up to the largest one freed, and to 32 MB at most.
    """
    torch.empty(32 * 2**20 - 2**16, dtype=torch.uint8)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Garbage collected before, and not during; malloc in the state of a process that trains."""
    _settle_allocator()
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """torch.set_num_threads, undone at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ where


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """What a figure depends on: machine, instruction sets, versions. Holds no name of a host, user or folder."""
    info = _native.build_info()
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "isa": _native.isa_active(),
        "native_isa": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "torchsmith": info["version"],
        "compiler": info["compiler"],
        "python": ".".join(map(str, sys.version_info[:3])),
    }
