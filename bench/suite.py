"""What the suites share: a job (one thing timed one way), its selection by options, its measuring."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

import torchsmith
from torchsmith import _native
from torchsmith.bench import harness

__all__ = ["MODES", "Job", "clock", "measure", "select"]

MODES = ("forward", "forward+backward", "training step", "inference")


@dataclass(frozen=True)
class Job:
    op: str  #: name of the op or model
    label: str  #: the shape, in words
    mode: str
    pair: Callable[[torch.dtype], harness.Pair]
    flops: Callable[[torch.dtype], int] | None = None  #: floating-point operations of one call, where known
    kind: str = "op"  #: "op" or "model"
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    dtype: torch.dtype = torch.float32
    threads: int = 1

    @property
    def id(self) -> str:
        return f"{self.op}-{self.label}-{self.mode}-{dtype_name(self.dtype)}-{self.threads}t".replace(" ", "_")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def select(jobs: Iterable[Job], config: Any) -> Iterator[Job]:
    """The jobs the command line asks for, once for each dtype and number of threads."""
    ops, modes = config.getoption("--op"), config.getoption("--mode")
    dtypes = [getattr(torch, name) for name in config.getoption("--dtype")] or [torch.float32]
    counts = config.getoption("--threads") or [1]
    for job in jobs:
        if (ops and job.op not in ops) or (modes and job.mode not in modes):
            continue
        for dtype in dtypes:
            if dtype in job.dtypes:
                yield from (replace(job, dtype=dtype, threads=count) for count in counts)


class PerCallClock:
    """A clock for pytest-benchmark that makes a round of several calls read as one call.

    pytest-benchmark allows one iteration a round where a round has a ``setup``, and in our setup native takes its turn.
    A round of ours therefore loops itself; reading the clock in units of that many calls keeps statistics per call.
    """

    __name__ = "per_call"
    calls = 1

    def __call__(self) -> float:
        return time.perf_counter() / self.calls


clock = PerCallClock()


def measure(benchmark: Any, job: Job, quick: bool) -> None:
    with harness.threads(job.threads), harness.quiet():
        pair = job.pair(job.dtype)
        pair.verify()
        if benchmark.disabled:
            benchmark.pedantic(pair.ours, args=(1,))
            return
        plan = harness.Plan.quick() if quick else harness.Plan()
        calls, rounds = plan.calls_and_rounds(pair)
        clock.calls = calls
        times = harness.Times()

        def native_turn() -> None:
            start = clock()
            pair.native(calls)
            times.native.append(clock() - start)

        benchmark.pedantic(pair.ours, args=(calls,), setup=native_turn, rounds=rounds)
        times.ours = list(benchmark.stats.stats.data)
        benchmark.group = f"{job.op} {job.mode}"
        benchmark.extra_info.update(facts(job, times, calls))


def facts(job: Job, times: harness.Times, calls: int) -> dict[str, Any]:
    """The record's row; times in microseconds a call."""
    ours_us, native_us = (statistics.median(t) * 1e6 for t in (times.ours, times.native))
    row = {
        "kind": job.kind,
        "op": job.op,
        "label": job.label,
        "mode": job.mode,
        "dtype": dtype_name(job.dtype),
        "device": "cpu",
        "backend": backend(),
        "isa": _native.isa_active(),
        "threads": job.threads,
        "torch": torch.__version__,
        "ours_us": ours_us,
        "native_us": native_us,
        **harness.ratio_of(times),
        "calls_per_round": calls,
        "rounds": len(times.ours),
    }
    flops = job.flops(job.dtype) if job.flops is not None else 0
    if flops > 0:  # pooling does none worth counting
        row["gflops"] = flops / ours_us / 1e3
        row["native_gflops"] = flops / native_us / 1e3
    return row


def backend() -> str:
    """The implementation that ours just used; of a model, by its last op."""
    decision = torchsmith.explain()
    return decision.implementation if decision is not None else "none"
