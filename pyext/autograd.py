"""What the ops' ``torch.autograd.Function`` share: when to record a graph, gradients of gradients, torch.func transforms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.compiler import is_dynamo_compiling

from . import _native, triton_backend

__all__ = [
    "applier",
    "caller",
    "differentiable_gradients",
    "forward_mode",
    "inside",
    "records",
    "transforms",
    "wants_graph",
]


def records(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd would record a call with these tensors."""
    if torch.is_grad_enabled():
        for t in tensors:  # a loop costs half of what any() and a generator do
            if t is not None and t.requires_grad:
                return True
    return False


def applier(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` without its Python wrapper, for calls outside torch.func transforms and tracing (2 us less)."""
    return super(torch.autograd.Function, function).apply


#: What stands between a call and its C++ kernel where it is true: modes, transforms, tracing, profiling, Triton's kernels.
_BETWEEN = (
    triton_backend.registered,
    torch._C._len_torch_dispatch_stack,
    torch._C._len_torch_function_stack,
    torch._C._are_functorch_transforms_active,
    torch._C._is_tracing,
    torch._C._autograd._profiler_enabled,
)


def caller(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """``overload`` for calls outside of dynamo that autograd does not record, arguments by position.

    A small call on CPU tensors does without torch's dispatcher (2 us less) where nothing that it would ask is on.
    """
    return _native.direct(
        name=overload._schema.name.partition("::")[2],
        otherwise=overload._op,
        tensor=torch.Tensor,
        parameter=torch.nn.Parameter,
        elsewhere=_BETWEEN,
    )


def inside(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """``overload`` for an ``autograd.Function``'s forward and backward: dynamo traces it, else it is its :func:`caller`."""
    call = caller(overload)
    return lambda *arguments: (overload if is_dynamo_compiling() else call)(*arguments)


def forward_mode() -> bool:
    """Whether forward-mode differentiation is on, by torch.func.jvp or torch.autograd.forward_ad."""
    return torch.autograd.forward_ad._current_level >= 0


def transforms() -> frozenset[str]:
    """The kinds of torch.func transforms around this call: "Vmap", "Grad", "Jvp", ...; "unknown" where torch hides them.

    Empty while a call is traced: the tracer deals with its transforms.
    """
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return frozenset()
    try:
        return frozenset(level.key().name for level in torch._C._functorch.get_interpreter_stack())
    except (AttributeError, TypeError):
        return frozenset({"unknown"})


def wants_graph() -> bool:
    """Whether a backward pass is itself being differentiated or batched, and so has to be made of ATen's ops.

    That is under ``create_graph=True``, with gradients that carry tangents, and with batched ones (``is_grads_batched``).
    """
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or forward_mode() or torch._C._are_functorch_transforms_active()


def differentiable_gradients(
    reference: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    inputs: Sequence[torch.Tensor | None],
    grads: Sequence[torch.Tensor | None],
    needed: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Gradients as differentiable functions of ``inputs`` and ``grads``: what a backward returns under ``create_graph``.

    The kernels give first derivatives. Where a graph of the backward pass is wanted, the op is computed again by its
    reference in plain torch ops, whose derivatives of every order autograd knows.
    """
    if not any(needed) or all(g is None for g in grads):
        return [None] * len(inputs)
    if torch._C._are_functorch_transforms_active():
        return _pulled_back(reference, inputs, grads, needed)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # An alias for each argument: the same tensor given twice gets a gradient for each place.
        aliases = [
            None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_(need)
            for t, need in zip(inputs, needed, strict=True)
        ]
        outputs = reference(*aliases)
        if isinstance(outputs, torch.Tensor):
            outputs = (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        wanted = [a for a, need in zip(aliases, needed, strict=True) if need]
        if not pairs:
            return [None] * len(inputs)
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=create_graph, allow_unused=True
            )
        )
    return [next(found) if need else None for need in needed]


def _pulled_back(reference, inputs, grads, needed) -> list[torch.Tensor | None]:
    """The same by torch.func.vjp, which nests in every transform; leaves cannot be marked inside of one."""

    def function(*wanted):
        given = iter(wanted)
        outputs = reference(*(next(given) if need else t for t, need in zip(inputs, needed, strict=True)))
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return tuple(o for o, g in zip(outputs, grads, strict=True) if g is not None)

    _, pull = torch.func.vjp(function, *(t for t, need in zip(inputs, needed, strict=True) if need))
    found = iter(pull(tuple(g for g in grads if g is not None)))
    return [next(found) if need else None for need in needed]
