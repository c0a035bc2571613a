"""What the contract asks of an op: on every sample of its description, values and gradients as the float64 reference's.

The contract tests and ``torchsmith selftest`` do the same with a sample; this is it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from .compare import difference, nudged
from .dispatch import backend, explain
from .spec import OpSpec, Sample

__all__ = ["SEED", "Call", "Expected", "keeping_layout", "samples_of", "seed"]

SEED = 1234
#: The sample that no kernel takes: without channels ATen's own answer is the one to match.
LEFT_TO_ATEN = "no channels"


def seed(value: int) -> None:
    """As torch.manual_seed, which spends 3 ms on a stack trace where CUDA has not been started, for when it is."""
    if torch.cuda.is_available():
        torch.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)


def samples_of(spec: OpSpec, dtype: torch.dtype, device: torch.device) -> list[Sample]:
    """The samples of an op, the same at every call."""
    seed(SEED)
    return list(spec.samples(dtype, device))


def is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@dataclass
class Call:
    """A sample with its floating-point tensors taken out, so that they can be replaced."""

    sample: Sample
    dtype: torch.dtype | None = None
    device: str | None = None  #: where to call instead of where the sample lies

    def __post_init__(self) -> None:
        call = self.sample.args, self.sample.kwargs
        if self.device is not None:  # a PackedSequence knows which of its tensors stay on the CPU
            movable = (torch.Tensor, PackedSequence)
            call = pytree.tree_map_only(
                movable, lambda v: v.to(self.device), call, is_leaf=lambda v: isinstance(v, PackedSequence)
            )
        self.leaves, self.tree = pytree.tree_flatten(call)
        self.where = [i for i, leaf in enumerate(self.leaves) if is_float(leaf)]
        self.tensors = [self.leaves[i] for i in self.where]
        if self.dtype is not None:
            self.tensors = [t.to(self.dtype) for t in self.tensors]

    def run(self, function: Callable[..., Any], tensors: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """Calls with the tensors in place; returns every tensor of the result."""
        leaves = list(self.leaves)
        for i, t in zip(self.where, self.tensors if tensors is None else tensors, strict=True):
            leaves[i] = t
        args, kwargs = pytree.tree_unflatten(leaves, self.tree)
        seed(SEED)  # dropout: every arm draws the same masks
        return [t for t in pytree.tree_leaves(function(*args, **kwargs)) if isinstance(t, torch.Tensor)]

    def gradients(
        self, function: Callable[..., Any], wanted: Sequence[bool] | None = None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Outputs and the gradients of the wanted tensors (all by default), for fixed random output gradients."""
        wanted = [True] * len(self.tensors) if wanted is None else wanted
        tensors = [keeping_layout(t).requires_grad_(w) for t, w in zip(self.tensors, wanted, strict=True)]
        outputs = self.run(function, tensors)
        seed(SEED + 1)
        pairs = []
        for o in outputs:
            if o.requires_grad:
                g = torch.randn(o.shape, dtype=torch.float64)
                # The values of the sample's own dtype in every arm, so that only the arithmetic differs.
                pairs.append((o, g.to(self.sample_dtype).to(o)))
        given = [g.clone() for _, g in pairs]
        found = (
            torch.autograd.grad(
                [o for o, _ in pairs], [t for t in tensors if t.requires_grad], [g for _, g in pairs], allow_unused=True
            )
            if pairs
            else []
        )
        if not all(torch.equal(g, before) for (_, g), before in zip(pairs, given, strict=True)):
            raise RuntimeError("the gradient of an output, which is the caller's, was written to")
        found = iter(found)
        return outputs, [next(found, None) if w else None for w in wanted]

    @property
    def sample_dtype(self) -> torch.dtype:
        return next(leaf.dtype for leaf in self.leaves if is_float(leaf))


def keeping_layout(t: torch.Tensor) -> torch.Tensor:
    """A leaf with the same values, strides and offset: what a clone would tidy away stays odd."""
    if t.numel() == 0:
        return t.detach().clone()
    span = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
    storage = torch.zeros(t.storage_offset() + span, dtype=t.dtype, device=t.device)
    out = storage.as_strided(t.shape, t.stride(), t.storage_offset())
    if 0 in t.stride():  # expanded: write through the distinct cells
        index = tuple(slice(0, 1) if s == 0 else slice(None) for s in t.stride())
        out[index] = t.detach()[index]
    else:
        out.copy_(t.detach())
    return out.detach()


def _difference(ours: torch.Tensor, native: Sequence[torch.Tensor], exact: torch.Tensor) -> str:
    """NaN and infinities are native's or, where native spreads them (products of padding with them), the exact result's."""
    exact = exact.to(ours.device)
    text = difference(ours, [n.to(ours.device) for n in native], exact)
    if text.startswith("NaN or infinity") and not difference(ours, exact.to(ours.dtype), exact):
        return ""
    return text


def _native(call: Call, spec: OpSpec) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    try:
        return call.gradients(spec.reference)
    except RuntimeError as error:
        if "cudnn RNN backward can only be called in training mode" not in str(error):
            raise
    enabled = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(False)
    try:
        return call.gradients(spec.reference)
    finally:
        torch._C._set_cudnn_enabled(enabled)


class Expected:
    """What native and the float64 reference give on a sample, worked out once for any number of implementations.

    The reference is the CPU's, and with NaN or infinities among the values native's results are too: what becomes of those on
    a GPU depends on the algorithm that cuDNN chooses, and ATen's pool in channels_last loses the cell of a window of -inf.

    ``runs``: of native, on values that differ in their last bit; for samples on which its error is small by luck. By default
    one, and six where an output has a few values only: the largest error of four is as good as drawn.
    """

    def __init__(self, spec: OpSpec, sample: Sample, runs: int | None = None) -> None:
        self.spec, self.sample = spec, sample
        self.exact, self.exact_gradients = Call(sample, torch.float64, "cpu").gradients(spec.reference)
        runs = runs or (6 if min((t.numel() for t in self.exact), default=0) <= 8 else 1)
        given = Call(sample)
        odd = not all(bool(t.isfinite().all()) for t in given.tensors)
        calls = [Call(sample, device="cpu") if odd else given, *(Call(sample) for _ in range(1, runs))]
        for call in calls[1:]:  # all before the first is run, which seeds anew
            call.tensors = [nudged(t) for t in call.tensors]
        natives, gradients = zip(*(_native(call, spec) for call in calls), strict=True)
        self.native, self.native_gradients = list(zip(*natives, strict=True)), list(zip(*gradients, strict=True))

    def wrong(self, implementation: str = "cpp") -> Iterator[str]:
        """What our kernels give otherwise, in words; nothing if they are right. Raises what the op raises."""
        with backend(implementation):
            ours, gradients = Call(self.sample).gradients(self.spec.function)
            made = explain()
        if made.implementation != ("torch" if self.sample.name == LEFT_TO_ATEN else implementation):
            yield f"computed by {made.implementation}: {made.reason}"
        if not len(ours) == len(self.native) == len(self.exact):
            yield f"{len(ours)} outputs, native has {len(self.native)}"
            return
        for i, values in enumerate(zip(ours, self.native, self.exact, strict=True)):
            if text := _difference(*values):
                yield f"output {i}: {text}"
        for i, (a, b, c) in enumerate(zip(gradients, self.native_gradients, self.exact_gradients, strict=True)):
            if (a is None) != (b[0] is None):
                yield f"gradient {i}: {'missing' if a is None else 'there'}, native's is {'not' if a is None else 'missing'}"
            elif a is not None and (text := _difference(a, b, c)):
                yield f"gradient {i}: {text}"
