"""What a call costs beside time: memory, error against float64, and whether it repeats bit by bit.

Saved bytes: every storage that autograd packs for backward, each counted once and whole, without those that exist
anyway (arguments, parameters, targets). Peak: the highest sum of what torch's allocator hands out during a call, above
what was held before it. Scratch that kernels keep for themselves (ours, MKL's, oneDNN's) is in neither.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from torchsmith.bench import harness, pairs

__all__ = ["facts", "peak_bytes", "relative_error", "saved_bytes"]


def saved_bytes(run: Callable[[], Any], held: Iterable[torch.Tensor] = ()) -> int:
    """Bytes of the storages that ``run`` saves for backward and that are not in ``held``."""
    before = {t.untyped_storage().data_ptr() for t in held}
    kept: dict[int, tuple[int, torch.Tensor]] = {}  # the tensor too: a freed address would be given out again

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.device.type != "meta":
            storage = t.untyped_storage()
            kept[storage.data_ptr()] = (storage.nbytes(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return sum(size for address, (size, _) in kept.items() if address not in before)


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """The most that torch's allocator had out at once during ``run``, above what it had before; None if not known."""
    # Twice: the profiler knows the size of what is freed only if it saw it made, such as the gradients of the step before.
    with _silent(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        run()
        with torch.autograd.profiler.record_function(_SECOND):
            run()
    try:
        events = profile.kineto_results.events()
        (start,) = (e.start_ns() for e in events if e.name() == _SECOND)
        events = [e for e in events if e.name() == "[memory]" and e.start_ns() >= start]
        changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    except AttributeError:  # the profiler's inside, which another torch may name otherwise
        return None
    total = peak = 0
    for change in changes:
        total += change
        peak = max(peak, total)
    return peak


_SECOND = "torchsmith: the run whose memory is counted"


@contextlib.contextmanager
def _silent():
    """Some builds of torch's profiler write lines to stderr from C++ when they start and stop."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def relative_error(results: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """The largest error over all results, each in units of the largest exact value of its tensor."""
    worst = 0.0
    for a, b in zip(results, exact, strict=True):
        if not b.numel():
            continue
        a, b = a.detach().double(), b.detach().double()
        error = float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        worst = error if error != error else max(worst, error)  # NaN stays
        if worst != worst:
            return worst
    return worst


def facts(pair: pairs.Pair, threads: int) -> dict[str, Any]:
    """The row's fields beside time; every one for ours and native alike."""
    exact = _seeded(pair.exact_results)
    other = threads if threads > 1 else min(2, os.cpu_count() or 1)
    row: dict[str, Any] = {}
    for prefix, run, results in (
        ("", pair.ours, pair.ours_results),
        ("native_", pair.native, pair.native_results),
    ):
        first = _seeded(results)
        row[f"{prefix}error"] = relative_error(first, exact)
        row[f"{prefix}same_runs"] = all(_identical(first, _seeded(results)) for _ in range(2))
        with harness.threads(1 if threads > 1 else other):
            row[f"{prefix}same_threads"] = _identical(first, _seeded(results))
        run(1)
        row[f"{prefix}saved_bytes"] = saved_bytes(lambda run=run: run(1), pair.held)
        row[f"{prefix}peak_bytes"] = peak_bytes(lambda run=run: run(1))
    return row


def _seeded(results: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [t.detach() for t in results()]


def _identical(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    """Bit by bit: 0 and -0 differ, NaN equals itself."""
    return all(torch.equal(_bits(x), _bits(y)) for x, y in zip(a, b, strict=True))


def _bits(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)
