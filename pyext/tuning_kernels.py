"""Measuring what is below a public op on a device where Triton runs: its native ops' kernels, and their configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from . import triton_backend
from .spec import OpSpec
from .tuned import Entry, describe
from .tuning import Call, compare

__all__ = ["measure_kernels"]


def measure_kernels(spec: OpSpec, call: Call, quick: bool) -> list[Entry]:
    """One entry a configuration of a Triton kernel, then one a native op that the call runs; none without Triton.

    Native ops are timed one by one, forward and backward ones each on the arguments that they got, so each may take another
    implementation.
    """
    tensor = next(t for t in triton_backend.tensors(call.arguments) if t.is_floating_point())
    if triton_backend.absent() or triton_backend.computes(spec.kernels, tensor):
        return []
    entries: dict[Any, Entry] = {}

    def keep(op: str, arguments: Any, us: dict[str, float]) -> str:
        entry = Entry(op, arguments, 0, False, us)
        entries[entry.key] = entry
        return entry.fastest

    def attempt(kernel: str, arguments: Any, runners: dict[str, Callable[[int], None]]) -> str:
        return keep(kernel, arguments, compare(runners, call, quick))

    try:
        calls = _native_calls(spec, call)
        triton_backend.use_configurations({}, attempt)
        for op, args in calls:
            run = {name: partial(_repeat, op, args, name) for name in ("cpp", "triton")}
            run["triton"](1)  # its configurations are measured before it is
            keep(op, describe(args), compare(run, call, quick))
    finally:
        triton_backend.use((), {})
        triton_backend.use_configurations({})
    return list(entries.values())


def _native_calls(spec: OpSpec, call: Call) -> list[tuple[str, tuple[Any, ...]]]:
    """The native ops that the call runs, backward too where it records, each with its arguments once."""
    from .tuning import _arm

    seen: dict[Any, tuple[str, tuple[Any, ...]]] = {}

    def note(op: str, args: tuple[Any, ...]) -> bool:
        seen.setdefault((op, describe(args)), (op, args))
        return False

    run = _arm(spec.function, call, "cpp")

    def watched() -> None:
        triton_backend.use((), {op: partial(note, op) for op in spec.kernels})

    run(1, watched)
    return list(seen.values())


def _repeat(op: str, args: tuple[Any, ...], name: str, count: int) -> None:
    triton_backend.use({op} if name == "triton" else ())
    function = getattr(torch.ops.torchsmith, op).default
    with torch.no_grad():
        for _ in range(count):
            function(*args)
