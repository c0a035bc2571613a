"""The two arms of a measurement: the same call of an op or model, by ours and by native, compared before either is timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Pair", "leaves", "map_tensors", "module_pair", "op_pair"]


# ---------------------------------------------------------------------------------------------- values made of tensors


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same nest of tuples, lists, dicts and packed sequences with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, PackedSequence):  # only the data are values; the rest are indices
        return value._replace(data=change(value.data))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(v, change) for v in value)
    if isinstance(value, dict):
        return {k: map_tensors(v, change) for k, v in value.items()}
    return value


def leaves(value: Any) -> list[torch.Tensor]:
    """Every tensor of such a nest, in order; of a packed sequence its data alone."""
    found: list[torch.Tensor] = []
    map_tensors(value, lambda t: found.append(t) or t)
    return found


# ------------------------------------------------------------------------------------------------ the two arms


def _nothing() -> list[torch.Tensor]:
    return []


@dataclass
class Pair:
    """Two functions of a count, each of which does the same work that many times; ``verify`` compares their results.

    The rest is for the report: the results of each arm and of native in float64; tensors that exist before and after
    a call (what is saved of them costs no memory); bytes that any implementation must read or write.
    """

    ours: Callable[[int], None]
    native: Callable[[int], None]
    verify: Callable[[], None] = lambda: None
    ours_results: Callable[[], list[torch.Tensor]] = _nothing
    native_results: Callable[[], list[torch.Tensor]] = _nothing
    exact_results: Callable[[], list[torch.Tensor]] = _nothing
    held: Sequence[torch.Tensor] = ()
    bytes: int | None = None
    flops: int | None = None  #: counted, where no formula is known


Wrap = Callable[[Any], Any]  # what is done to native's function or module before it is timed: torch.compile


def op_pair(
    spec: Any,
    case: Any,
    mode: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    wrap: Wrap | None = None,
) -> Pair:
    """An op of the specs against its reference in plain torch.

    ``mode``: ``forward`` (without grad) or ``forward+backward`` (through autograd, to every input that is not frozen).
    ``wrap`` changes the reference that is timed and verified, never the float64 one.
    """
    torch.manual_seed(0)
    sample = case.make(dtype, torch.device(device))
    native = wrap(spec.reference) if wrap else spec.reference
    if mode == "forward":
        args, kwargs, grads = sample.args, sample.kwargs, []
        arms = [_forward_arm(fn, args, kwargs) for fn in (spec.function, native)]
        held = [*leaves(args), *leaves(kwargs)]

        def results(fn: Callable[..., Any], change: Callable[[torch.Tensor], torch.Tensor] = _kept):
            with torch.no_grad():
                return leaves(fn(*map_tensors(args, change), **map_tensors(kwargs, change)))

    elif mode == "forward+backward":
        args, kwargs, inputs = _with_grad(sample, case.frozen)
        grads = [torch.randn_like(t) for t in _differentiable(spec.reference(*args, **kwargs))]
        arms = [_backward_arm(fn, args, kwargs, inputs, grads) for fn in (spec.function, native)]
        held = [*leaves(args), *leaves(kwargs), *grads]

        def results(fn: Callable[..., Any], change: Callable[[torch.Tensor], torch.Tensor] = _kept):
            call, keywords, wanted = args, kwargs, inputs
            if change is not _kept:
                call, keywords, wanted = _with_grad(replace(sample, **_changed(sample, change)), case.frozen)
            outputs = _differentiable(fn(*call, **keywords))
            return [*outputs, *torch.autograd.grad(outputs, wanted, [change(g) for g in grads])]

    else:
        raise ValueError(f"mode must be 'forward' or 'forward+backward', got {mode!r}")
    pair = Pair(*arms, ours_results=lambda: results(spec.function), native_results=lambda: results(native), held=held)
    pair.exact_results = lambda: results(spec.reference, _widened)
    # In 16 bits maxima tie, and gradients go to other cells than native's: both are judged by the exact results. So they are
    # with TF32, by their distance as a whole: a sum near 0 that ReLU lets pass here and not there moves single gradients a lot.
    tf32 = torch.device(device).type == "cuda" and dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    judge = pair.exact_results if dtype.itemsize == 2 or tf32 else None
    pair.verify = lambda: _same(pair.ours_results(), pair.native_results(), dtype, judge, whole=tf32)
    pair.bytes = _nbytes(held) + _nbytes(results(spec.reference))
    return pair


def _kept(t: torch.Tensor) -> torch.Tensor:
    return t


def _widened(t: torch.Tensor) -> torch.Tensor:
    return t.detach().double() if t.is_floating_point() else t


def _changed(sample: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return {"args": map_tensors(sample.args, change), "kwargs": map_tensors(sample.kwargs, change)}


def _nbytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _with_grad(sample: Any, frozen: Sequence[int]) -> tuple[tuple, dict, list[torch.Tensor]]:
    inputs: list[torch.Tensor] = []

    def require(t: torch.Tensor) -> torch.Tensor:
        if not t.is_floating_point():
            return t
        inputs.append(t.detach().requires_grad_())  # keeps strides, shares memory
        return inputs[-1]

    args = tuple(a if i in frozen else map_tensors(a, require) for i, a in enumerate(sample.args))
    return args, map_tensors(sample.kwargs, require), inputs


def _differentiable(outputs: Any) -> list[torch.Tensor]:
    return [t for t in leaves(outputs) if t.requires_grad]


def _forward_arm(fn: Callable[..., Any], args: tuple, kwargs: dict) -> Callable[[int], None]:
    def run(count: int) -> None:
        with torch.no_grad():  # entered once a round: entering costs as much as a small op
            for _ in range(count):
                fn(*args, **kwargs)

    return run


def _backward_arm(
    fn: Callable[..., Any], args: tuple, kwargs: dict, inputs: list[torch.Tensor], grads: list[torch.Tensor]
) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            torch.autograd.grad(_differentiable(fn(*args, **kwargs)), inputs, grads)

    return run


def module_pair(
    ours: torch.nn.Module,
    native: torch.nn.Module,
    inputs: tuple,
    target: torch.Tensor,
    mode: str,
    wrap: Wrap | None = None,
) -> Pair:
    """Two modules with the same parameters: ``training step`` (forward, loss, backward, SGD) or ``inference``.

    ``wrap`` changes the native module that is timed and verified, never the float64 one.
    """
    native.load_state_dict(ours.state_dict())
    exact, counted = copy.deepcopy(native).double(), copy.deepcopy(native)
    timed = wrap(native) if wrap else native
    modules = (ours, timed)
    training = mode == "training step"

    def results(module: torch.nn.Module, inputs: tuple = inputs) -> list[torch.Tensor]:
        return leaves(module(*inputs))

    def with_gradients(module: torch.nn.Module, inputs: tuple = inputs) -> list[torch.Tensor]:
        outputs = results(module, inputs)
        if not training:
            return outputs
        loss = torch.nn.functional.cross_entropy(outputs[0], target)
        gradients = torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad], allow_unused=True)
        return [*outputs, *(g for g in gradients if g is not None)]

    if mode == "inference":
        arms = [_forward_arm(m.eval(), inputs, {}) for m in modules]
        exact.eval()
    elif training:
        arms = [_step_arm(m.train(), inputs, target) for m in modules]
    else:
        raise ValueError(f"mode must be 'training step' or 'inference', got {mode!r}")
    pair = Pair(*arms, verify=lambda: _same(results(ours), results(timed), torch.float32))
    pair.ours_results, pair.native_results = (lambda m=m: with_gradients(m) for m in modules)
    pair.exact_results = lambda: with_gradients(exact, map_tensors(inputs, _widened))
    pair.held = [*leaves(inputs), target, *(t for m in modules for t in (*m.parameters(), *m.buffers()))]
    pair.flops = _counted_flops(lambda: with_gradients(counted.train(training)))
    return pair


def _counted_flops(run: Callable[[], Any]) -> int:
    """Operations of matrix products and convolutions, as torch counts them; the rest of a model is not worth counting."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _step_arm(module: torch.nn.Module, inputs: tuple, target: torch.Tensor) -> Callable[[int], None]:
    # A tiny learning rate: thousands of steps on one batch must not run into vanishing (denormal) gradients.
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-6, momentum=0.5)

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(*inputs), target).backward()
            optimizer.step()

    return run


#: Enough to catch a wrong kernel before it is timed; the contract tests judge accuracy.
_LOOSE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 1e-2}

#: Operands of 11 bits move a sum by some 5e-4 of its terms, and so many of ReLU's results to the other side of 0: of the
#: gradients' norm that is the root, 0.02. Native's own error does not say it: cuDNN leaves TF32 be where that is faster.
_TF32 = 0.05


def _same(
    ours: list[torch.Tensor],
    native: list[torch.Tensor],
    dtype: torch.dtype,
    exact: Callable[[], list[torch.Tensor]] | None = None,
    whole: bool = False,
) -> None:
    """``whole``: by the Euclidean norm of all differences, not by the largest, as suits TF32."""
    size = torch.linalg.vector_norm if whole else lambda t: t.abs().max()
    if [t.shape for t in ours] != [t.shape for t in native]:
        shapes = [[tuple(t.shape) for t in side] for side in (ours, native)]
        raise AssertionError(f"shapes differ: ours {shapes[0]}, native {shapes[1]}")
    judges = exact() if exact else native
    for i, (a, b, judge) in enumerate(zip(ours, native, judges, strict=True)):
        if b.numel() == 0:
            continue
        a, b, judge = a.detach().double(), b.detach().double(), judge.detach().double()
        scale = size(judge).clamp(min=1e-6)
        error, allowed = float(size(a - judge) / scale), 2 * float(size(b - judge) / scale)
        if not (error <= allowed + (_TF32 if whole else _LOOSE.get(dtype, 1e-3))):
            what = "its norm" if whole else "the largest value"
            raise AssertionError(f"result {i} of ours is off by {error:.2g} of {what}; it is not timed")
