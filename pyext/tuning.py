"""Recording the calls of a model and measuring what could compute each: the entries of the table that ``auto`` obeys."""

from __future__ import annotations

import contextlib
import inspect
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from . import dispatch
from .tuned import MARGIN, Entry, Known, describe, keep, only, tensors_of

__all__ = ["Call", "compare", "measure", "record", "tune"]

#: Candidates nearer to each other than this are measured again, for longer.
NEAR = 1.1
#: Where ours wins by less than this, it has to win in other memory, too: which pages a process was given decides up to 20 %
#: of a ratio for as long as it keeps them (a strided depthwise convolution: 0.78 to 1.13).
LUCK = 1.2


@dataclass(frozen=True)
class Call:
    """A call to measure: the public function's arguments in its order, with or without autograd."""

    op: str
    arguments: tuple[Any, ...]
    grad: bool
    threads: int

    @property
    def key(self) -> tuple[Any, ...]:
        return self.op, describe(self.arguments), self.threads, self.grad


def call_of(op: str, tensors: tuple[Any, ...], others: tuple[Any, ...]) -> Call:
    """A call as the public function makes it now."""
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors_of(tensors))
    return Call(op, (*tensors, *others), grad, torch.get_num_threads())


@contextlib.contextmanager
def record() -> Iterator[list[Call]]:
    """The calls of our ops made inside, each once; they are computed by our kernels meanwhile."""
    from .spec import all_specs

    seen: dict[tuple[Any, ...], Call] = {}

    def note(op: str, tensors: tuple[Any, ...], others: tuple[Any, ...]) -> str:
        call = call_of(op, tensors, others)
        if call.key not in seen:
            seen[call.key] = replace(call, arguments=_detached(call.arguments))
        return ""

    calls: list[Call] = []
    dispatch.observe({spec.name: partial(note, spec.name) for spec in all_specs()})
    try:
        yield calls
    finally:
        dispatch.observe(None)
        calls.extend(seen.values())


def _detached(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    from .bench.pairs import map_tensors

    return map_tensors(arguments, lambda t: t.detach().requires_grad_(t.requires_grad and t.is_floating_point()))


def measure(call: Call, quick: bool = False) -> list[Entry]:
    """Times what could compute the call, on its own tensors, by turns: forward, with autograd also backward.

    The last entry is the call's own, our kernels and native. Before it come those of its kernels and their configurations
    where Triton runs on the tensors' device; ours is then timed as ``auto`` would run it with them.
    """
    from .spec import all_specs
    from .tuning_kernels import measure_kernels

    (spec,) = (s for s in all_specs() if s.name == call.op)

    def both(call: Call) -> dict[str, float]:
        arms = {name: _arm(spec.function, call, name) for name in ("auto" if below else "cpp", "torch")}
        return dict(zip(("ours", "torch"), compare(arms, call, quick).values(), strict=True))

    with only(measure_kernels(spec, call, quick)) as below:
        us = both(call)
        if not quick and us["ours"] < us["torch"] < LUCK * us["ours"]:
            moved = replace(call, arguments=_moved(call.arguments))
            us = min(us, both(moved), key=lambda us: us["torch"] / us["ours"])
    return [*below, Entry(*call.key, us)]


def _moved(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same tensors in other memory; those before keep theirs, so that results go elsewhere, too."""
    from .bench.pairs import map_tensors
    from .contract import keeping_layout

    return map_tensors(arguments, lambda t: keeping_layout(t).requires_grad_(t.requires_grad))


def compare(arms: dict[str, Callable[[int], None]], call: Call, quick: bool) -> dict[str, float]:
    """Microseconds of each arm: medians, each timed by turns with the first."""
    from .bench import harness, pairs

    plan = harness.Plan.quick() if quick else harness.Plan(budget_s=0.2)
    on_gpu = any(t.is_cuda for t in tensors_of(call.arguments))
    (first, base), *others = ((name, _finished(arm) if on_gpu else arm) for name, arm in arms.items())
    us: dict[str, float] = {}
    with harness.threads(call.threads):
        for name, arm in others:
            times = harness.interleave(pairs.Pair(ours=base, native=arm), plan)
            if not quick and 1 / NEAR < times.ratio < NEAR:
                longer = replace(plan, budget_s=4 * plan.budget_s, max_rounds=4 * plan.max_rounds)
                times = harness.interleave(pairs.Pair(ours=base, native=arm), longer)
            median = statistics.median(times.ours) * 1e6
            us.setdefault(first, median)
            us[name] = us[first] * times.ratio  # by the ratio, which is steadier than figures of different moments
    return us


def _finished(arm: Callable[[int], None]) -> Callable[[int], None]:
    """The arm with its launches run to their end."""

    def run(count: int) -> None:
        arm(count)
        torch.cuda.synchronize()

    return run


@contextlib.contextmanager
def _left_to_native(op: str, known: Callable[..., str]) -> Iterator[None]:
    """Native as ``auto`` takes it where the table says so: the call pays for looking that up, as it will."""
    before = dispatch.KNOWN.copy()
    with dispatch.backend("auto"):
        dispatch.KNOWN[op] = known
        try:
            yield
        finally:
            dispatch.KNOWN.clear()
            dispatch.KNOWN.update(before)


def _arm(function: Callable[..., Any], call: Call, backend: str) -> Callable[[int], None]:
    names = list(inspect.signature(function).parameters.values())
    positional = [a for a, p in zip(call.arguments, names, strict=False) if p.kind is not p.KEYWORD_ONLY]
    keywords = {p.name: a for a, p in zip(call.arguments, names, strict=False) if p.kind is p.KEYWORD_ONLY}
    wanted = [t for t in tensors_of(call.arguments) if t.requires_grad]

    native = Known(others_are="native")
    native.add(Entry(*call.key, {"ours": 2 * MARGIN, "torch": 1.0}))
    left = native.by_call()
    gradients: list[torch.Tensor] = []  # made once: as in training, they come from elsewhere

    def once() -> None:
        outputs = [t for t in tensors_of((function(*positional, **keywords),)) if t.requires_grad]
        if call.grad:
            gradients.extend(torch.ones_like(o) for o in outputs[len(gradients) :])
            torch.autograd.grad(outputs, wanted, gradients, allow_unused=True)

    def run(count: int, before: Callable[[], None] = lambda: None) -> None:
        computed = _left_to_native(call.op, left) if backend == "torch" else dispatch.backend(backend)
        with computed, torch.set_grad_enabled(call.grad):
            before()
            for _ in range(count):
                once()

    return run


def tune(
    function: Callable[..., Any], *inputs: Any, quick: bool = False, save: bool = True, **keywords: Any
) -> list[Entry]:
    """Measures our ops on the sizes that ``function(*inputs, **keywords)`` calls them with, and lets ``auto`` obey.

    Args:
        function: a model, or any function that uses torchsmith's ops; it is called once, as the caller would: under
            ``torch.no_grad()`` inference is tuned, else training (forward and backward of each op).
        quick: measure a tenth of the time.
        save: also keep the figures in the user's cache folder, for later processes.

    Returns:
        The entries measured, in the order of the calls. Sizes that other calls had keep what was measured for them.
    """
    with record() as calls:
        function(*inputs, **keywords)
    entries = [entry for call in calls for entry in measure(call, quick)]
    keep(entries, save)
    return entries
