"""Smoke test of an installed torchsmith under whatever torch is installed: every op once, forward and backward.

    python compat_smoke.py

Needs nothing but torchsmith and torch. Prints one JSON line; exits 1 where an op is missing or wrong.
"""

from __future__ import annotations

import json
import sys

import torch
from torch.nn.utils.rnn import PackedSequence

import torchsmith
from torchsmith import _native
from torchsmith.spec import all_specs


def change(value, f):
    if isinstance(value, torch.Tensor):
        return f(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=f(value.data))
    if isinstance(value, (tuple, list)):
        return type(value)(change(v, f) for v in value)
    if isinstance(value, dict):
        return {k: change(v, f) for k, v in value.items()}
    return value


def leaves(value):
    found = []
    change(value, lambda t: found.append(t) or t)
    return found


def results(fn, sample, dtype):
    """Outputs, then gradients of their sum of squares with respect to every floating input."""
    inputs = []

    def own(t):
        if not t.is_floating_point():
            return t
        inputs.append(t.detach().to(dtype).requires_grad_())
        return inputs[-1]

    outputs = leaves(fn(*change(sample.args, own), **change(sample.kwargs, own)))
    loss = sum((t.double() ** 2).sum() for t in outputs if t.requires_grad)
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return outputs + [g for g in grads if g is not None]


def check(spec):
    sample = next(s for s in spec.samples(torch.float32, torch.device("cpu")) if s.differentiable)
    ours = results(spec.function, sample, torch.float32)
    exact = results(spec.reference, sample, torch.float64)
    if len(ours) != len(exact):
        return f"{len(ours)} results, expected {len(exact)}"
    for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
        if a.shape != b.shape:
            return f"result {i}: shape {tuple(a.shape)}, expected {tuple(b.shape)}"
        error = (a.double() - b.double()).abs().max().item() if b.numel() else 0.0
        scale = max(1.0, b.double().abs().max().item()) if b.numel() else 1.0
        if not (error <= 1e-4 * scale):
            return f"result {i}: off by {error:.3g}"
    return None


def main():
    torch.manual_seed(0)
    wrong = {}
    for spec in all_specs():
        try:
            problem = check(spec)
        except Exception as error:  # an op that raises is a finding like any other
            problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if problem:
            wrong[spec.name] = problem
    print(
        json.dumps(
            {
                "torch": torch.__version__,
                "built_against": _native.build_info()["torch"],
                "installed": torchsmith.__file__.startswith(sys.prefix),  # and not a checkout
                "isa": _native.isa_active(),
                "ops": len(all_specs()),
                "wrong": wrong,
            }
        )
    )
    return 1 if wrong or not all_specs() else 0


if __name__ == "__main__":
    sys.exit(main())
