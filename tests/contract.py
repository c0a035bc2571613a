"""What the contract tests do with a sample: collect tensors of nested arguments, run, differentiate."""

import os
from dataclasses import dataclass

import pytest
import torch
from torch.utils import _pytree as pytree

from torchsmith.spec import FLOATS, Sample, all_specs

SEED = 1234
#: Where the samples are made; `make gpu` says cuda.
DEVICE = torch.device(os.environ.get("TORCHSMITH_TEST_DEVICE", "cpu"))


def is_float(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def samples_of(spec, dtype):
    torch.manual_seed(SEED)
    return list(spec.samples(dtype, DEVICE))


def cases(dtypes=FLOATS, differentiable=False):
    """(spec, dtype, index of the sample) with a readable id, for pytest.mark.parametrize."""
    found = []
    for spec in all_specs():
        for dtype in dtypes:
            if dtype not in spec.dtypes:
                continue
            for index, sample in enumerate(samples_of(spec, dtype)):
                if differentiable and not sample.differentiable:
                    continue
                name = f"{spec.name}-{str(dtype)[6:]}-{sample.name}".replace(" ", "_")
                found.append(pytest.param(spec, dtype, index, id=name))
    return found


@dataclass
class Call:
    """A sample with its floating-point tensors taken out, so that they can be replaced."""

    sample: Sample
    dtype: torch.dtype | None = None

    def __post_init__(self):
        self.leaves, self.tree = pytree.tree_flatten((self.sample.args, self.sample.kwargs))
        self.where = [i for i, leaf in enumerate(self.leaves) if is_float(leaf)]
        self.tensors = [self.leaves[i] for i in self.where]
        if self.dtype is not None:
            self.tensors = [t.to(self.dtype) for t in self.tensors]

    def run(self, function, tensors=None):
        """Calls with the tensors in place; returns every tensor of the result."""
        leaves = list(self.leaves)
        for i, t in zip(self.where, self.tensors if tensors is None else tensors, strict=True):
            leaves[i] = t
        args, kwargs = pytree.tree_unflatten(leaves, self.tree)
        torch.manual_seed(SEED)  # dropout: every arm draws the same masks
        return [t for t in pytree.tree_leaves(function(*args, **kwargs)) if isinstance(t, torch.Tensor)]

    def gradients(self, function, wanted=None):
        """Outputs and the gradients of the wanted tensors (all by default), for fixed random output gradients."""
        wanted = [True] * len(self.tensors) if wanted is None else wanted
        tensors = [keeping_layout(t).requires_grad_(w) for t, w in zip(self.tensors, wanted, strict=True)]
        outputs = self.run(function, tensors)
        torch.manual_seed(SEED + 1)
        pairs = []
        for o in outputs:
            if o.requires_grad:
                g = torch.randn(o.shape, dtype=torch.float64)
                # The values of the sample's own dtype in every arm, so that only the arithmetic differs.
                pairs.append((o, g.to(self.sample_dtype).to(o)))
        found = (
            torch.autograd.grad(
                [o for o, _ in pairs], [t for t in tensors if t.requires_grad], [g for _, g in pairs], allow_unused=True
            )
            if pairs
            else []
        )
        found = iter(found)
        return outputs, [next(found, None) if w else None for w in wanted]

    @property
    def sample_dtype(self):
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
