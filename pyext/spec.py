"""The one description of an op, from which tests, benchmarks, fake kernels and the support table derive.

A row of the house (``conv2d``, ``maxpool2d``, ``linear``, ``rnn``, ``gru``) is a module ``torchsmith.ops.<row>``. It
declares one :class:`OpSpec` for each public function and registers it here; nothing central is edited when an op is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .dispatch import declare

__all__ = ["BenchCase", "ErrorCase", "OpSpec", "Sample", "all_specs", "fake", "kernel", "like", "register"]

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sample:
    """One call of a public function: ``spec.function(*args, **kwargs)``.

    ``differentiable=False`` marks values (NaN, ties at a kink) at which numeric differentiation means nothing; analytic
    gradients are still compared with the reference's.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    differentiable: bool = True


@dataclass(frozen=True)
class ErrorCase:
    """A call that must raise ``error`` with a message that ``pattern`` (a regular expression) finds."""

    name: str
    make: Callable[[], Sample]
    error: type[Exception]
    pattern: str


@dataclass(frozen=True)
class BenchCase:
    """A shape to time: ``make(dtype, device)`` builds the call; tensors in ``frozen`` (indices of args) need no gradient."""

    label: str
    make: Callable[[torch.dtype, torch.device], Sample]
    frozen: tuple[int, ...] = ()


@dataclass(frozen=True)
class OpSpec:
    name: str  #: public name, ``torchsmith.<name>``
    row: str  #: the room it lives in: basename of csrc/cpu/<row>.cpp and pyext/ops/<row>.py
    function: Callable[..., Any]  #: the public function
    reference: Callable[..., Any]  #: the same in plain torch ops, differentiable, any dtype
    kernels: tuple[str, ...]  #: native ops it calls, ``torch.ops.torchsmith.<kernel>``
    samples: Callable[[torch.dtype, torch.device], Iterator[Sample]]
    errors: Sequence[ErrorCase]
    bench: Sequence[BenchCase]
    flops: Callable[[Sample], int]  #: floating-point operations of a forward call
    dtypes: tuple[torch.dtype, ...] = FLOATS
    slower_on_cuda: str = (
        ""  #: why ``auto`` leaves CUDA calls to native where nothing was measured: bench/records/gpu.json
    )


_SPECS: dict[str, OpSpec] = {}


def register(spec: OpSpec) -> OpSpec:
    if spec.name in _SPECS:
        raise ValueError(f"op {spec.name!r} is described twice")
    _SPECS[spec.name] = spec
    declare(spec.name, spec.kernels)
    return spec


def all_specs() -> tuple[OpSpec, ...]:
    """Every described op, in the order of registration."""
    return tuple(_SPECS.values())


#: native op -> its outputs, uninitialised, made from its arguments
OUTPUTS: dict[str, Callable[..., Any]] = {}


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as the fake kernel of ``torch.ops.torchsmith.<name>``: shapes, dtypes and strides of its outputs.

    On real tensors the same function allocates the outputs, which a kernel in Python then fills.
    """

    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        OUTPUTS[name] = function
        return torch.library.register_fake(f"torchsmith::{name}")(function)

    return keep


def kernel(name: str) -> Any:
    """The native op, resolved once: a call of the overload skips the look-up by arguments."""
    return getattr(torch.ops.torchsmith, name).default


def like(wanted: bool, tensor: torch.Tensor) -> torch.Tensor:
    """A fake gradient: dense with the tensor's sizes, or empty where it is not wanted."""
    return tensor.new_empty(tensor.shape if wanted else (0,))
