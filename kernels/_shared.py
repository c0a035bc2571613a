"""What every Triton row shares: registering launchers, choosing among configurations, launching.

A launch is worked out once for a kind of call (dtypes, alignments, sizes, constants): its configuration, its grid and the
compiled kernel are kept together, so that neither the JIT's binding of arguments is paid again nor a grid can outlive the
configuration it was made for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from triton import knobs

from torchsmith import triton_backend

__all__ = ["DTYPES", "LAUNCHERS", "Config", "add_product", "cdiv", "first", "implements", "launch", "precision"]

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
        self.label = " ".join(f"{name}{value}" for name, value in {**constants, "w": warps, "s": stages}.items())


def first(config: Config, others: Sequence[Config]) -> tuple[Config, ...]:
    """All of them, with the one that is taken where nothing was measured in front."""
    return config, *(other for other in others if other is not config)


#: kind of call -> compiled kernel, its grid, its constants in order
_ready: dict[tuple[Any, ...], tuple[Any, tuple[int, ...], tuple[Any, ...]]] = {}
KEPT = 4096  # kinds of calls; beyond that (lengths that never repeat) all are forgotten
triton_backend.when_configurations_change(_ready.clear)


def launch(
    kernel: Any, grid: Callable[[Config], Sequence[int]], configs: Sequence[Config], *args: Any, **constants: Any
) -> None:
    """One launch of ``kernel(*args, **constants)``, in the first of ``configs`` or the one measured to be faster.

    ``grid`` makes the blocks from the very configuration that runs. An empty grid is nothing to do. ``constants`` and a
    configuration's own are the parameters that follow ``args``, in any order.
    """
    # Most arguments are sizes and strides. A kernel's own hash is one of its source, made in Python at every look.
    key = (id(kernel), configs[0].label, *[a if type(a) is int else _kind(a) for a in args], *constants.values())
    ready = _ready.get(key)
    if ready is None:
        _prepare(key, kernel, grid, configs, args, constants)
        return
    compiled, blocks, rest = ready
    compiled[blocks](*args, *rest)


def _kind(value: Any) -> Any:
    """Of an argument what a compiled kernel depends on: Triton makes code for pointers to multiples of 16 bytes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0, value.get_device()
    return value


def _prepare(key, kernel, grid, configs, args, constants) -> None:
    """The first launch of its kind: chooses, compiles, runs, and keeps what it takes to run again."""
    config = _chosen(kernel, grid, configs, args, constants) if len(configs) > 1 else configs[0]
    blocks = _blocks(grid, config)
    if 0 in blocks:
        return
    compiled = kernel[blocks](*args, **constants, **config, **config.options)
    if INTERPRETED:
        return
    if len(_ready) >= KEPT:
        _ready.clear()
    values = {**constants, **config}
    _ready[key] = compiled, blocks, tuple(values[name] for name in kernel.arg_names[len(args) :])


def _blocks(grid: Callable[[Config], Sequence[int]], config: Config) -> tuple[int, ...]:
    blocks = tuple(grid(config))
    return blocks + (1,) * (3 - len(blocks))


def _chosen(kernel, grid, configs, args, constants) -> Config:
    """The configuration that was measured to be the fastest for such a call; the first where none was."""
    what = [str(a.dtype).removeprefix("torch.") if isinstance(a, torch.Tensor) else a for a in args]
    device = triton_backend.device_name(args[0])
    described = (device, *what, *(v for v in constants.values()))

    def runner(config: Config) -> Callable[[int], None]:
        blocks = _blocks(grid, config)

        def run(count: int) -> None:
            for _ in range(count):
                kernel[blocks](*args, **constants, **config, **config.options)

        return run

    label = triton_backend.configuration(
        kernel.__name__,
        described,
        {config.label: runner(config) for config in configs if 0 not in _blocks(grid, config)},
    )
    return next((config for config in configs if config.label == label), configs[0])


def precision(allow_tf32: bool) -> str:
    """What tl.dot may do to float32: round its operands to TF32, or nothing."""
    return "tf32" if allow_tf32 else "ieee"


@triton.jit
def add_product(sum, a, b, PRECISION: tl.constexpr):
    """sum + a b. In float32 a block's product is summed by itself first, which has a third of the error of one chain of additions
    over all blocks; the bound on imprecise sums, a matter of float8, keeps the compiler from making that chain of it again."""
    if PRECISION == "ieee" and a.dtype == tl.float32:
        return sum + tl.dot(a, b, input_precision=PRECISION, max_num_imprecise_acc=a.shape[1])
    return tl.dot(a, b, sum, input_precision=PRECISION)
