"""The Triton kernels as kernels of the native ops: ``torch.ops.torchsmith.<op>`` runs them while they are in use.

They take the place of the C++ kernels in PyTorch's dispatcher, so everything above an op (autograd, torch.compile's graphs,
fake kernels) stays as it is. What they do not compute (float64, sizes that a kernel refuses) goes on to the C++ kernel.
Triton is imported when the backend is first asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import cache, partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch

__all__ = [
    "absent",
    "computes",
    "configuration",
    "device_name",
    "has",
    "in_use",
    "registered",
    "use",
    "use_configurations",
]


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


@cache
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
#: How many native ops may run Triton kernels now; without a frame of Python's, for it is asked at every small call.
registered: Callable[[], int] = _libraries.__len__
_always: frozenset[str] = frozenset()
_by_call: dict[str, Callable[[tuple[Any, ...]], bool]] = {}


def in_use() -> frozenset[str]:
    """The native ops that may run Triton kernels now."""
    return frozenset(_libraries)


def use(always: Iterable[str], by_call: Mapping[str, Callable[[tuple[Any, ...]], bool]] | None = None) -> None:
    """Lets the native ops ``always``, and no others, run their Triton kernels; those without one stay as they are.

    ``by_call``: for others, whether a call with such arguments is Triton's.
    """
    global _always, _by_call
    _always, _by_call = frozenset(filter(has, always)), {op: c for op, c in (by_call or {}).items() if has(op)}
    wanted = _always | _by_call.keys()
    for op in [op for op in _libraries if op not in wanted]:
        for library in _libraries.pop(op):
            library._destroy()
    for op in wanted - _libraries.keys():
        _libraries[op] = [_register(op, key) for key in devices()]


def _register(op: str, key: str) -> torch.library.Library:
    from .spec import OUTPUTS

    name = f"torchsmith::{op}"
    before = torch.library.get_kernel(name, key) if torch._C._dispatch_has_kernel_for_dispatch_key(name, key) else None
    library = torch.library.Library("torchsmith", "IMPL")  # noqa: TOR901  (destroyed by use)
    run = partial(_run, op, OUTPUTS[op], _shared().LAUNCHERS[op], before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the C++ kernel is replaced is what is meant
        library.impl(op, run, key, with_keyset=True, allow_override=True)
    return library


_HERE = nullcontext()


def _run(
    op: str,
    allocate: Callable[..., Any],
    launcher: Callable[..., Any],
    before: Any,
    keys: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    tensor = next(t for t in tensors(args))
    ours = op in _always or (op in _by_call and (before is None or _by_call[op](args)))
    if not ours or tensor.dtype not in _shared().DTYPES:
        if before is None:
            raise NotImplementedError(
                f"{op}: no Triton kernel for {tensor.dtype}, and no other for {tensor.device.type}"
            )
        return before.call_boxed(keys, *args, **kwargs)
    # Triton launches on the current device, which need not be the tensors'.
    here = not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device()
    with _HERE if here else torch.cuda.device(tensor.device):
        outputs = allocate(*args, **kwargs)
        launcher(outputs, *args, **kwargs)
    return outputs


def tensors(args: Iterable[Any]) -> Iterable[torch.Tensor]:
    """Every tensor among the arguments of an op."""
    for a in args:
        if isinstance(a, torch.Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from tensors(a)


# ------------------------------------------------------------------------------------------------ configurations

Runner = Callable[[int], None]  # runs a launch that many times

_measured: dict[tuple[str, Any], str] = {}  # (kernel, its arguments described) -> label of the fastest configuration
_try: Callable[[str, Any, dict[str, Runner]], str] | None = None
_on_change: list[Callable[[], None]] = []


def when_configurations_change(forget: Callable[[], None]) -> None:
    """``forget`` is called when launches may have to be worked out anew."""
    _on_change.append(forget)


def use_configurations(
    measured: Mapping[tuple[str, Any], str], attempt: Callable[[str, Any, dict[str, Runner]], str] | None = None
) -> None:
    """What is known of the kernels' configurations; ``attempt`` measures those of a launch of which nothing is."""
    global _try
    _measured.clear()
    _measured.update(measured)
    _try = attempt
    for forget in _on_change:
        forget()


def configuration(kernel: str, arguments: Any, runners: dict[str, Runner]) -> str:
    """The label of the fastest configuration for a launch; empty where nothing is known."""
    label = _measured.get((kernel, arguments), "")
    if not label and _try is not None and len(runners) > 1:
        label = _measured[kernel, arguments] = _try(kernel, arguments, runners)
    return label


@cache
def _name_of(index: int) -> str:
    return torch.cuda.get_device_name(index)


def device_name(tensor: torch.Tensor) -> str:
    """What its speed depends on: a GPU by its model, else the type of the device."""
    return _name_of(tensor.get_device()) if tensor.is_cuda else tensor.device.type
