"""Choosing an implementation of an op, and saying why.

``cpp`` is the C++ library (CPU; CUDA where built), ``triton`` the Triton kernels (CUDA), ``torch`` is ATen through the op's
reference. ``auto`` takes ``cpp`` where the library has a kernel for the device and dtype, unless a measurement on this machine
(tuned.py) says that ``torch`` is as fast for the call's shapes; else ``torch``. Of ``cpp`` and ``triton`` kernels on a GPU it takes, for each
native op, the one measured to be faster, and ``cpp`` without a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.compiler import is_compiling

from . import _native, triton_backend
from ._library import CUDA_KERNELS
from .autograd import forward_mode, transforms

__all__ = ["BACKENDS", "Decision", "backend", "explain"]

BACKENDS = ("auto", "cpp", "triton", "torch")
KERNEL_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


@dataclass(frozen=True)
class Decision:
    """The last choice: public op, implementation, and the reason in words."""

    op: str
    implementation: str
    reason: str


#: op -> what is known of its calls: given (tensors, other arguments), why native is the faster one, or "". Only ops of
#: which something is known are in it, so that others pay one look into a dict. tuned.py fills it.
KNOWN: dict[str, Callable[[tuple[Any, ...], tuple[Any, ...]], str]] = {}

#: Public ops of which calls were measured on this machine: what ops do by default, for want of that, is off.
MEASURED: set[str] = set()
#: Whether ops leave calls to native by rules of their own.
RULES = True

#: native op -> what is known of its kernels: given its arguments, why Triton's is faster than the C++ one, or "".
#: :func:`renew` brings a change of it into force.
FASTER_IN_TRITON: dict[str, Callable[[tuple[Any, ...]], str]] = {}

_active = "auto"
_by_op: dict[str, str] = {}  # op -> backend, where it is not the active one
_elsewhere: set[str] = set()  # ops whose backend is one that their C++ kernels are not
_on_cuda: set[str] = set()  # public ops all of whose kernels the CUDA library has
_last: tuple[str, str, str] | str | None = None  # a Decision's fields; a str: the op that went straight to its kernel


class backend:  # noqa: N801  (used like torch.no_grad)
    """Choose the implementation of every op: ``torchsmith.backend("torch")`` sets it; ``with`` restores the one before.

    Args:
        name: ``"auto"``, ``"cpp"``, ``"triton"`` or ``"torch"``. It holds for the whole process.
        ops: public ops to choose it for, others stay as they are; None: for all, and earlier choices for single ops end.
            Ops that share their kernels (``linear`` and ``linear_relu``) go together.

    Raises:
        ValueError: the name, or one of ``ops``, is not known.
        RuntimeError: ``"triton"`` where Triton cannot be used; says why.
    """

    def __init__(self, name: str, ops: Iterable[str] | None = None):
        if name not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
        if isinstance(ops, str):
            raise ValueError(f"backend: ops: expected a list of names, got the string {ops!r}")
        self.ops = None if ops is None else tuple(ops)
        for op in self.ops or ():
            if op not in _kernels:
                raise ValueError(f"backend: ops: expected names among {', '.join(_kernels)}, got {op!r}")
        if name == "triton" and (why := triton_backend.absent()):
            raise RuntimeError(f"backend: 'triton' is absent: {why} (pip install 'torchsmith[triton]')")
        self.name, self._before = name, (_active, dict(_by_op))
        if self.ops is None:
            _set(name, {})
        else:
            shared = {kernel for op in self.ops for kernel in _kernels[op]}
            _set(_active, {**_by_op, **{op: name for op, kernels in _kernels.items() if shared & set(kernels)}})

    def __enter__(self) -> backend:
        return self

    def __exit__(self, *_: object) -> None:
        _set(*self._before)

    def __repr__(self) -> str:
        return f"torchsmith.backend({self.name!r}{'' if self.ops is None else f', ops={self.ops!r}'})"


def _set(active: str, by_op: dict[str, str]) -> None:
    global _active
    _active = active
    _by_op.clear()
    _by_op.update(by_op)
    renew()


def renew() -> None:
    """Lets each native op run the kernels that the backends set, and what is known of them, give it."""
    _elsewhere.clear()
    _elsewhere.update(op for op in _kernels if chosen(op) in ("torch", "triton"))
    always = {kernel for op, kernels in _kernels.items() if chosen(op) == "triton" for kernel in kernels}
    by_call = {
        kernel: partial(_faster_in_triton, op, FASTER_IN_TRITON[kernel])
        for op, kernels in _kernels.items()
        if chosen(op) == "auto"
        for kernel in kernels
        if kernel in FASTER_IN_TRITON
    }
    if always or by_call or triton_backend.in_use():
        triton_backend.use(always, by_call)


def _faster_in_triton(op: str, known: Callable[[tuple[Any, ...]], str], args: tuple[Any, ...]) -> bool:
    global _last
    reason = known(args)
    if reason and _last is not None:  # the call's own decision stands there; its kernel was chosen only now
        last = explain()
        if _kernels.get(last.op) == _kernels[op]:
            _last = last.op, "triton", reason
    return bool(reason)


def chosen(op: str) -> str:
    """The backend set for an op."""
    return _by_op.get(op, _active) if _by_op else _active


def explain() -> Decision | None:
    """The last choice made by a public op of this process, or None before the first."""
    return Decision(_last, "cpp", "cpu kernel") if isinstance(_last, str) else _last and Decision(*_last)


_about = (
    torch._C._is_any_autocast_enabled,
    torch._C._are_functorch_transforms_active,
    torch.is_grad_enabled,
    vars(torch.autograd.forward_ad),
    vars(torch.compiler),
    _elsewhere,
)
#: ``short(tensors, plain, recorded)`` makes an op's short call: ``call(name, *arguments)`` hands the arguments, of which the
#: first are so many tensors or Nones, to the C++ kernel (``plain``, or ``recorded`` where autograd records the call), which
#: checks them, and returns what it gives, of a tuple the first. It returns None for what needs the long way: errors in words,
#: autocast, other devices, other backends, transforms, export. Under dynamo, which cannot see into it, it must not be called.
short: Callable[..., Callable[..., Any]] = partial(_native.short_call, *_about, set(), globals(), "_last")
#: As ``short``, for CUDA tensors; ``tf32`` tells of the first of them whether TF32 is allowed, the last argument of ``plain``.
short_on_cuda: Callable[..., Callable[..., Any]] = partial(_native.short_call, *_about, _on_cuda, globals(), "_last")


def native_wins(op: str, tensors: tuple[Any, ...], others: tuple[Any, ...] = ()) -> str:
    """Why ``auto`` leaves this call to native although there is a kernel; empty if it does not.

    ``tensors`` and ``others`` are the public function's arguments in its order. Ops ask before a :data:`short` call notes
    itself: whoever observes it still finds the decision about the one before.
    """
    if is_compiling() or (_observed is None and chosen(op) != "auto"):
        return ""
    try:
        return KNOWN[op](tensors, others)
    except (AttributeError, TypeError):
        values = (v for t in tensors if t is not None for v in (t if isinstance(t, (list, tuple)) else (t,)))
        if all(v is None or isinstance(v, torch.Tensor) for v in values):
            raise
        return ""  # the op refuses in words what is no tensor


_observed: dict[str, Any] | None = None  # what KNOWN held before it was observed


def observe(observers: dict[str, Callable[[tuple[Any, ...], tuple[Any, ...]], str]] | None) -> None:
    """Lets ``observers`` see every call, on every backend, and answer in KNOWN's place; None ends it."""
    global _observed
    known = KNOWN.copy() if _observed is None else _observed
    KNOWN.clear()
    KNOWN.update(known if observers is None else observers)
    _observed = None if observers is None else known


def automatic(op: str) -> bool:
    """Whether the choice is ours: no backend is set for the op."""
    return chosen(op) == "auto"


def by_default(op: str) -> bool:
    """Whether an op may leave a call to native by a rule of its own: no backend is set, nothing measured on this machine
    makes the choice, and nothing is traced."""
    return RULES and op not in MEASURED and chosen(op) == "auto" and not is_compiling()


#: Whether the processor has AMX, in which torch's libraries multiply bfloat16, and our kernels under their set for it.
AMX = bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())
NATIVE_WITH_AMX = (
    "bfloat16 on a processor with AMX, which native's kernel uses and ours, under this instruction set, does not"
)


def unmeasured_with_amx(op: str, input: Any) -> bool:
    """Whether a call is one of bfloat16 that AMX computes for native but not for us, and nothing says which to take."""
    with_amx = AMX and input.dtype == torch.bfloat16 and input.is_cpu and by_default(op)
    return with_amx and _native.isa_active() != "avx512_amx"


def leave(op: str, reason: str) -> None:
    """Records for :func:`explain` that native computes this call."""
    global _last
    _last = op, "torch", reason


def use_kernel(op: str, input: torch.Tensor, unfit: str = "", rules: frozenset[str] = frozenset()) -> bool:
    """Whether a kernel of ours computes this call; records the decision for :func:`explain`.

    ``unfit`` is the op's own reason to leave the call to ATen, empty if it has none; ``rules`` are the kinds of
    torch.func transforms that the op has rules for.
    """
    if is_compiling():  # traced once: nothing to record, and functorch's own state is torch's business
        fits = input.dtype in KERNEL_DTYPES and _device_has_kernels(op, input.device.type)
        return not unfit and chosen(op) != "torch" and fits
    reason = unfit or why_not(op, input, rules)
    kernel = f"{input.device.type} kernel for {input.dtype}"
    if chosen(op) == "triton":
        other = triton_backend.computes(_kernels[op], input)
        if not unfit and not other and reason in ("", f"no kernel for device {input.device.type}"):
            _remember(op, "triton", f"Triton {kernel}")
            return True
        kernel = f"{kernel}; {other}"
    _remember(op, "torch" if reason else "cpp", reason or kernel)
    return not reason


def why_not(op: str, input: torch.Tensor, rules: frozenset[str] = frozenset()) -> str:
    """Why no kernel of ours computes a call with such an input, as far as backends and torch's modes say; empty if one does."""
    if chosen(op) == "torch":
        return 'backend("torch") is set'
    if input.dtype not in KERNEL_DTYPES:
        return f"no kernel for {input.dtype}"
    if not _device_has_kernels(op, input.device.type):
        return f"no kernel for device {input.device.type}"
    if input.layout != torch.strided:
        return f"no kernel for layout {input.layout}"
    if forward_mode():
        return "forward-mode differentiation is on"
    if transforms() - rules:
        return "inside a torch.func transform, where ATen's op costs less than a kernel with rules in Python"
    return ""


def _remember(op: str, implementation: str, reason: str) -> None:
    global _last
    _last = op, implementation, reason


_kernels: dict[str, tuple[str, ...]] = {}  # public op -> the native ops it calls
#: Why a CUDA call is native's by an op's own rule.
NATIVE_ON_CUDA = (
    "native was faster on the GPU that was measured (bench/records/gpu.json), and nothing was measured here"
)


def declare(op: str, kernels: Iterable[str]) -> None:
    """Tells which native ops a public op calls, so that it is sent to a device only where all of them have kernels."""
    _kernels[op] = tuple(kernels)
    if CUDA_KERNELS.issuperset(kernels):
        _on_cuda.add(op)


def unmeasured_on_cuda(op: str, input: Any) -> bool:
    """Whether an op may leave this call to native by a rule of its own for GPUs, as :func:`by_default`; traced calls too."""
    return getattr(input, "is_cuda", False) and RULES and op not in MEASURED and chosen(op) == "auto"


def _device_has_kernels(op: str, device: str) -> bool:
    return device == "cpu" or device == "meta" or (device == "cuda" and op in _on_cuda)


def allow_tf32(input: torch.Tensor) -> bool:
    """Whether a matrix product of float32 CUDA tensors may round its operands to TF32: torch's own setting, now.

    It is read in Python and handed to the op as an argument, so that a compiled graph holds the value it was traced with
    and torch.compile's guard on the setting traces again when it changes; a global of ours would need such a guard itself.
    """
    if not input.is_cuda or input.dtype != torch.float32:
        return False
    if is_compiling():  # the getter that dynamo knows and guards
        return torch.backends.cuda.matmul.allow_tf32
    return torch.backends.cuda.matmul.fp32_precision == "tf32"  # takes settings by either of torch's two interfaces


def convolution_tf32(input: torch.Tensor) -> bool:
    """As :func:`allow_tf32`, for a convolution: torch has a setting of its own for cuDNN's."""
    return _cudnn_tf32(input, torch.backends.cudnn.conv)


def recurrent_tf32(input: torch.Tensor) -> bool:
    """As :func:`allow_tf32`, for a recurrent layer over a sequence, which native leaves to cuDNN."""
    return _cudnn_tf32(input, torch.backends.cudnn.rnn)


def _cudnn_tf32(input: torch.Tensor, operation) -> bool:
    if not input.is_cuda or input.dtype != torch.float32:
        return False
    if is_compiling():
        return torch.backends.cudnn.allow_tf32
    return operation.fp32_precision == "tf32"


def autocast(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """The tensors as torch.autocast would hand them to a matrix product: float32 and 16-bit ones in its dtype."""
    if not torch._C._is_any_autocast_enabled():
        return tensors
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    low = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(t.to(dtype) if t is not None and t.dtype in low else t for t in tensors)
