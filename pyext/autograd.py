"""What the ops' ``torch.autograd.Function`` share: when to record a graph, and gradients of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["applier", "differentiable_gradients", "records", "wants_graph"]


def records(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd would record a call with these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def applier(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` without its Python wrapper, for calls outside torch.func transforms and tracing (2 us less)."""
    return super(torch.autograd.Function, function).apply


def wants_graph() -> bool:
    """Whether a backward pass is itself being recorded (``create_graph=True``)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


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
        if not pairs or not wanted:
            return [None] * len(inputs)
        found = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
            )
        )
    return [next(found) if need else None for need in needed]
