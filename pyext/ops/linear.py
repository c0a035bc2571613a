"""linear and linear + ReLU:  y = x W^T + b,  y = max(x W^T + b, 0).   Kernels: csrc/{cpu,cuda}/linear.*"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from .. import _native
from ..autograd import applier, caller, differentiable_gradients, inside, records, wants_graph
from ..dispatch import (
    AMX,
    KNOWN,
    NATIVE_ON_CUDA,
    allow_tf32,
    autocast,
    by_default,
    leave,
    native_wins,
    short,
    short_on_cuda,
    unmeasured_on_cuda,
    use_kernel,
)
from ..spec import BenchCase, ErrorCase, OpSpec, Sample, fake, kernel, like, register
from ._checks import only_tensors, same_device, same_dtype

_forward = kernel("linear_forward")
_backward = kernel("linear_backward")

#: Multiply-adds from which native's product and ReLU are faster than ours in one on a GPU: between 2^25 and 2^30.
LARGE_ON_CUDA = 2**27
#: Whether MKL, which takes AVX-512 on Intel's processors alone, is there on one that is no older than those with AMX; and the
#: multiply-adds from which it is ahead: of float32, and of bfloat16 where ours uses AMX too; of float16; and else.
MKL_AT_HOME = torch.backends.mkl.is_available() and AMX
LARGE_AT_PAR, LARGE_IN_HALF, LARGE_WITH_AMX = 2**28, 2**21, 2**23


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""``input @ weight.T + bias``, as :func:`torch.nn.functional.linear`.

    Args:
        input: ``(*, K)``, any number of leading dimensions.
        weight: ``(N, K)``.
        bias: ``(N)`` or None.

    Returns:
        ``(*, N)``, of the arguments' dtype.

    Raises:
        RuntimeError: shapes do not fit, or dtypes or devices differ.
    """
    return _linear("linear", input, weight, bias, False)


def linear_relu(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``relu(linear(input, weight, bias))`` in one pass; arguments, result and errors as :func:`linear`."""
    return _linear("linear_relu", input, weight, bias, True)


def _reference(input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    y = F.linear(input, weight, bias)
    return F.relu(y) if relu else y


def _linear(name: str, input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    slower = native_wins(name, (input, weight, bias)) if name in KNOWN else ""
    if MKL_AT_HOME and not slower and by_default(name):
        slower = _rule_with_amx(input, weight)
    traced = is_dynamo_compiling()
    if not (slower or traced):
        y = _short(name, input, weight, bias, relu)
        if y is not None:
            return y
    slower = slower or _rule_on_cuda(name, input, weight, relu)
    if slower and not traced:
        try:
            leave(name, slower)
            y = F.linear(input, weight, bias)
            return y.relu_() if relu else y
        except RuntimeError:
            pass  # said in words below
    elif not traced:
        y = _short_on_cuda(name, input, weight, bias, relu)
        if y is not None:
            return y
    only_tensors(name, 2, input=input, weight=weight, bias=bias)
    return _checked(name, input, weight, bias, relu, slower)


def _rule_with_amx(input: Tensor, weight: Tensor) -> str:
    """Against MKL on an Intel processor with AVX-512, an Emerald Rapids: 0.91-1.08 of float32 from 2^28 on, and below that
    0.92-1.15, 1.0 on average, where the course's MLP trains 1.04 times as fast. Of bfloat16 native's is several times as fast as
    ours on vectors; both on AMX 0.75-1.1 from 2^28 on, below that ours 1.1-3. Float16 is cast by ours and multiplied as it is by
    native's: 0.6-0.95 from 2^21 on and 0.4-0.6 of a single row, 1.1-1.8 else."""
    if not (isinstance(input, Tensor) and isinstance(weight, Tensor)):
        return ""
    half = input.dtype == torch.float16
    if not half and input.numel() * weight.numel() < LARGE_WITH_AMX:
        return ""  # soon: small calls are short
    isa = _native.isa_active()
    if not (input.is_cpu and weight.dim() == 2 and isa.startswith("avx512")):
        return ""
    if half and input.numel() == weight.shape[1]:
        return "a row of float16, which ours casts with all weights"
    least = LARGE_IN_HALF if half else LARGE_WITH_AMX
    if input.dtype == torch.float32 or (input.dtype == torch.bfloat16 and isa == "avx512_amx"):
        least = LARGE_AT_PAR
    return (
        "a large product: MKL's, on the processors it was made for, is ahead"
        if input.numel() * weight.shape[0] >= least
        else ""
    )


def _rule_on_cuda(name: str, input: Tensor, weight: Tensor, relu: bool) -> str:
    """A product alone is cuBLAS's business; with ReLU in it ours saves a launch, which a large product does not notice."""
    if unmeasured_on_cuda(name, input) and not (relu and input.numel() * weight.shape[0] < LARGE_ON_CUDA):
        return NATIVE_ON_CUDA
    return ""


def _checked(name: str, input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, slower: str) -> Tensor:
    input, weight, bias = autocast(input, weight, bias)
    if weight.dim() != 2 or (bias is not None and bias.shape != weight.shape[:1]) or input.dim() == 0:
        return _odd(name, input, weight, bias, relu)
    if input.shape[-1] != weight.shape[1]:
        rows = input.numel() // input.shape[-1] if input.shape[-1] else 0
        raise RuntimeError(
            f"{name}: mat1 and mat2 shapes cannot be multiplied ({rows}x{input.shape[-1]} and {weight.shape[1]}x"
            f"{weight.shape[0]}): input has {input.shape[-1]} features, weight {list(weight.shape)} needs {weight.shape[1]}"
        )
    same_dtype(name, input=input, weight=weight, bias=bias)
    same_device(name, input=input, weight=weight, bias=bias)
    if not use_kernel(name, input, slower):
        return _reference(input, weight, bias, relu)
    if records(input, weight, bias):
        return _Linear.apply(input, weight, bias, relu)
    return _forward(input, weight, bias, relu, allow_tf32(input))


def _odd(name: str, input: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """What F.linear takes beside the usual (a vector as weight, a bias to broadcast) is ATen's; the rest is refused."""
    try:
        return _reference(input, weight, bias, relu)
    except RuntimeError as error:
        got = (
            f"input {list(input.shape)}, weight {list(weight.shape)}, bias {None if bias is None else list(bias.shape)}"
        )
        raise RuntimeError(f"{name}: {error} (got {got}; needs input (*, K), weight (N, K), bias (N))") from None


_inner_forward, _inner_backward = inside(_forward), inside(_backward)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias, relu):
        y = _inner_forward(input, weight, bias, relu, allow_tf32(input))
        ctx.relu = relu
        ctx.save_for_backward(input, weight, bias, y if relu else None)
        return y

    @staticmethod
    def backward(ctx, grad):
        input, weight, bias, y = ctx.saved_tensors
        need = ctx.needs_input_grad[:3]
        if wants_graph():
            return *differentiable_gradients(
                lambda *a: _reference(*a, ctx.relu), (input, weight, bias), (grad,), need
            ), None
        dx, dw, db = _inner_backward(grad, input, weight, y, ctx.relu, *need, allow_tf32(grad))
        return dx if need[0] else None, dw if need[1] else None, db if need[2] else None, None


_short = short(3, caller(_forward), applier(_Linear))
_short_on_cuda = short_on_cuda(3, caller(_forward), applier(_Linear), allow_tf32)


@fake("linear_forward")
def _(input, weight, bias, relu, allow_tf32=False):
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


@fake("linear_backward")
def _(grad, input, weight, output, relu, need_input, need_weight, need_bias, allow_tf32=False):
    return like(need_input, input), like(need_weight, weight), weight.new_empty((weight.shape[0] if need_bias else 0,))


def _samples(dtype: torch.dtype, device: torch.device) -> Iterator[Sample]:
    def make(*shape):
        return torch.randn(shape, dtype=dtype, device=device)

    for rows, k, n in [
        (1, 1, 1),
        (1, 50, 9),
        (2, 33, 8),
        (3, 5, 7),
        (4, 300, 13),
        (19, 300, 70),  # fewer rows than W has: W is not packed
        (14, 33, 31),
        (15, 16, 33),
        (29, 257, 65),
        (64, 40, 10),
        (3, 1030, 6),
        (5, 4101, 3),
        (2051, 3, 2),
    ]:
        yield Sample(f"{rows}x{k}x{n}", (make(rows, k), make(n, k), make(n)))
    yield Sample("no bias", (make(4, 6), make(3, 6)))
    yield Sample("vector", (make(6), make(3, 6), make(3)))
    yield Sample("leading dimensions", (make(2, 3, 4, 6), make(5, 6), make(5)))
    yield Sample("no rows", (make(0, 6), make(3, 6), make(3)))
    yield Sample("no features", (make(4, 0), make(3, 0), make(3)))
    yield Sample("no outputs", (make(4, 6), make(0, 6), make(0)))
    yield Sample("transposed", (make(6, 4).t(), make(6, 3).t(), make(6)[::2]))
    yield Sample("offset views", (make(9, 12)[2:6, 3:9], make(5, 9)[1:4, 2:8], make(5)[1:4]))
    yield Sample("stride 0", (make(1, 6).expand(4, 6), make(1, 6).expand(3, 6), make(1).expand(3)))
    special = make(5, 4)
    special[0, 0], special[1, 1], special[2, 2] = float("nan"), float("inf"), -float("inf")
    yield Sample("nan and inf", (special, make(3, 4), make(3)), differentiable=False)
    zero = torch.zeros(2, 3, dtype=dtype, device=device)
    yield Sample(
        "relu at zero",
        (zero, make(4, 3), torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=dtype, device=device)),
        differentiable=False,
    )


def _t(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


_ERRORS = (
    ErrorCase(
        "features",
        lambda: Sample("", (_t(2, 3), _t(4, 5))),
        RuntimeError,
        r"mat1 and mat2 shapes cannot be multiplied \(2x3 and 5x4\)",
    ),
    ErrorCase(
        "bias size",
        lambda: Sample("", (_t(2, 3), _t(4, 3), _t(5))),
        RuntimeError,
        r"must match the existing size \(5\)",
    ),
    ErrorCase("weight 3d", lambda: Sample("", (_t(2, 3), _t(2, 4, 3))), RuntimeError, r"<= 2 dimensions|3D"),
    ErrorCase("scalar input", lambda: Sample("", (_t(), _t(4, 3))), RuntimeError, r"need to be at least 1D"),
    ErrorCase("dtype", lambda: Sample("", (_t(2, 3), _t(4, 3, dtype=torch.float64))), RuntimeError, r"same dtype"),
    ErrorCase(
        "bias dtype", lambda: Sample("", (_t(2, 3), _t(4, 3), _t(4, dtype=torch.float64))), RuntimeError, r"same dtype"
    ),
)


def _case(rows: int, k: int, n: int) -> BenchCase:
    def make(dtype, device):
        gen = torch.Generator(device).manual_seed(0)

        def new(*shape):
            return torch.randn(shape, dtype=dtype, device=device, generator=gen)

        return Sample("", (new(rows, k), new(n, k) / k**0.5, new(n)))

    return BenchCase(f"{k}->{n} b{rows}", make)


_BENCH = (
    _case(1, 784, 512),
    _case(64, 784, 512),
    _case(64, 512, 256),
    _case(64, 128, 64),
    _case(64, 320, 10),
    _case(256, 200, 18),
    _case(1024, 1024, 1024),
)


def _flops(sample: Sample) -> int:
    input, weight = sample.args[:2]
    return 2 * input.numel() * weight.shape[0]


for _name, _function, _relu in (("linear", linear, False), ("linear_relu", linear_relu, True)):
    register(
        OpSpec(
            name=_name,
            row="linear",
            function=_function,
            reference=lambda input, weight, bias=None, relu=_relu: _reference(input, weight, bias, relu),
            kernels=("linear_forward", "linear_backward"),
            samples=_samples,
            errors=_ERRORS,
            bench=_BENCH,
            flops=_flops,
        )
    )
