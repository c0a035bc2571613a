"""The Triton kernels as kernels of the native ops: ``torch.ops.torchsmith.<op>`` runs them while they are in use.

They take the place of the C++ kernels in PyTorch's dispatcher, so everything above an op (autograd, torch.compile's graphs,
fake kernels) stays as it is. What they do not compute (float64, sizes that a kernel refuses) goes on to the C++ kernel.
Triton is imported when the backend is first asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch

__all__ = ["absent", "computes", "has", "in_use", "use"]


@cache
def absent() -> str:
    """Why there is no Triton backend; empty where there is one."""
    try:
        kernels = import_module("torchsmith.kernels")
        for module in iter_modules(kernels.__path__):
            import_module(f"torchsmith.kernels.{module.name}")
    except Exception as error:  # whatever a broken installation raises is the reason
        return f"{type(error).__name__}: {error}"
    return ""


def _shared() -> Any:
    return import_module("torchsmith.kernels._shared")


def devices() -> tuple[str, ...]:
    """Of the tensors that the kernels take: CUDA's, and under Triton's interpreter (TRITON_INTERPRET=1) the CPU's too."""
    return ("CUDA", "CPU") if _shared().INTERPRETED else ("CUDA",)


def has(op: str) -> bool:
    """Whether a native op has a Triton kernel."""
    return not absent() and op in _shared().LAUNCHERS


def computes(ops: Iterable[str], input: torch.Tensor) -> str:
    """Why Triton does not compute these native ops for such a tensor; empty if it does."""
    missing = [op for op in ops if not has(op)]
    if missing:
        return f"no Triton kernel for {', '.join(missing)}"
    if input.device.type.upper() not in devices():
        interpreter = " (TRITON_INTERPRET=1, set before the start, runs it slowly on the CPU)" if input.is_cpu else ""
        return f"Triton does not run on device {input.device.type}{interpreter}"
    return "" if input.dtype in _shared().DTYPES else f"no Triton kernel for {input.dtype}"


_libraries: dict[str, list[torch.library.Library]] = {}  # native op -> its registrations


def in_use() -> frozenset[str]:
    """The native ops that run Triton kernels now."""
    return frozenset(_libraries)


def use(ops: Iterable[str]) -> None:
    """Lets these native ops, and no others, run their Triton kernels; those without one stay as they are."""
    wanted = {op for op in ops if has(op)}
    for op in [op for op in _libraries if op not in wanted]:
        for library in _libraries.pop(op):
            library._destroy()
    for op in wanted - _libraries.keys():
        _libraries[op] = [_register(op, key) for key in devices()]


def _register(op: str, key: str) -> torch.library.Library:
    name = f"torchsmith::{op}"
    before = torch.library.get_kernel(name, key) if torch._C._dispatch_has_kernel_for_dispatch_key(name, key) else None
    library = torch.library.Library("torchsmith", "IMPL")  # noqa: TOR901  (destroyed by use)
    run = partial(_run, op, _shared().LAUNCHERS[op], before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the C++ kernel is replaced is what is meant
        library.impl(op, run, key, with_keyset=True, allow_override=True)
    return library


def _run(op: str, launcher: Callable[..., Any], before: Any, keys: Any, *args: Any, **kwargs: Any) -> Any:
    from .spec import OUTPUTS

    tensor = next(t for t in _tensors(args))
    if tensor.dtype not in _shared().DTYPES:
        if before is None:
            raise NotImplementedError(
                f"{op}: no Triton kernel for {tensor.dtype}, and no other for {tensor.device.type}"
            )
        return before.call_boxed(keys, *args, **kwargs)
    outputs = OUTPUTS[op](*args, **kwargs)
    launcher(outputs, *args, **kwargs)
    return outputs


def _tensors(args: Iterable[Any]) -> Iterable[torch.Tensor]:
    for a in args:
        if isinstance(a, torch.Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from _tensors(a)
