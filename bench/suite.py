"""What the suites share: a job (one thing timed one way), its selection by options, its measuring."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

import torchsmith
from torchsmith import _native
from torchsmith.bench import baselines, harness, memory, pairs

__all__ = ["MODES", "SHAPES", "Job", "clock", "measure", "select"]

MODES = ("forward", "forward+backward", "training step", "inference")
SHAPES = ("course", "extra")


@dataclass(frozen=True)
class Job:
    op: str  #: name of the op or model
    label: str  #: the shape, in words
    mode: str
    pair: Callable[[torch.dtype, pairs.Wrap | None], pairs.Pair]
    flops: Callable[[torch.dtype], int] | None = None  #: floating-point operations of one call, where known
    kind: str = "op"  #: "op", "model" (of the course) or "converted"
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    dtype: torch.dtype = torch.float32
    threads: int = 1
    baseline: str = "eager"  #: of baselines.BASELINES
    shapes: str = "course"  #: of SHAPES

    @property
    def id(self) -> str:
        against = "" if self.baseline == "eager" else f"-{self.baseline}"
        name = f"{self.op}-{self.label}-{self.mode}-{dtype_name(self.dtype)}-{self.threads}t{against}"
        return name.replace(" ", "_")


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def select(jobs: Iterable[Job], config: Any) -> Iterator[Job]:
    """The jobs the command line asks for, once for each dtype, number of threads and baseline."""
    shapes = config.getoption("--shapes")
    against = config.getoption("--baseline") or ["eager"]
    ops, modes = config.getoption("--op"), config.getoption("--mode")
    dtypes = [getattr(torch, name) for name in config.getoption("--dtype")] or [torch.float32]
    counts = config.getoption("--threads") or [1]
    for job in jobs:
        if (ops and job.op not in ops) or (modes and job.mode not in modes) or shapes not in (job.shapes, "all"):
            continue
        for dtype, count, baseline in itertools.product(dtypes, counts, against):
            if dtype in job.dtypes:
                yield replace(job, dtype=dtype, threads=count, baseline=baseline)


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


def measure(benchmark: Any, job: Job, quick: bool, details: bool = False) -> None:
    """Verifies, times, and with ``details`` also looks at memory, error and determinism, after the timing."""
    with harness.threads(job.threads), harness.quiet():
        pair = baselines.prepare(job)
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
        benchmark.extra_info.update(facts(job, pair, times, calls))
        if details and job.baseline == "eager":
            benchmark.extra_info.update(memory.facts(pair, job.threads))


def facts(job: Job, pair: pairs.Pair, times: harness.Times, calls: int) -> dict[str, Any]:
    """The record's row; times in microseconds a call."""
    ours_us, native_us = (statistics.median(t) * 1e6 for t in (times.ours, times.native))
    spread = {}
    for name, values in (("ours", times.ours), ("native", times.native)):
        spread[f"{name}_low_us"], spread[f"{name}_high_us"] = (q * 1e6 for q in harness.quartiles(values))
    row = {
        "kind": job.kind,
        "op": job.op,
        "label": job.label,
        "mode": job.mode,
        "dtype": dtype_name(job.dtype),
        "device": "cpu",
        "baseline": job.baseline,
        "shapes": job.shapes,
        "backend": backend(),
        "isa": _native.isa_active(),
        "native_isa": torch.backends.cpu.get_cpu_capability(),
        "threads": job.threads,
        "torch": torch.__version__,
        "ours_us": ours_us,
        "native_us": native_us,
        **spread,
        **harness.ratio_of(times),
        "calls_per_round": calls,
        "rounds": len(times.ours),
    }
    flops = job.flops(job.dtype) if job.flops is not None else pair.flops
    for unit, work in (("gflops", flops), ("gbytes_s", pair.bytes)):
        if work:  # pooling does no operations worth counting; a model's traffic is not known
            row[unit.removesuffix("_s").removeprefix("g")] = work
            row[unit], row[f"native_{unit}"] = work / ours_us / 1e3, work / native_us / 1e3
    return row


def backend() -> str:
    """The implementation that ours just used; of a model, by its last op."""
    decision = torchsmith.explain()
    return decision.implementation if decision is not None else "none"
