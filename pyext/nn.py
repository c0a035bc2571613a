"""Modules on torchsmith's ops: the constructors, attributes, initialisation and state_dict of torch.nn's.

``Conv2dReLU``, ``Conv2dReLUMaxPool2d`` and ``LinearReLU`` are the fused forms; their parameters are those of Conv2d and
Linear. ``Sequential`` fuses what stands in a row in it. The same names on plain torch.nn: :mod:`torchsmith.native_nn`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import chains, dispatch, ops

__all__ = [
    "GRU",
    "RNN",
    "AvgPool2d",
    "Conv2d",
    "Conv2dReLU",
    "Conv2dReLUMaxPool2d",
    "GRUCell",
    "Linear",
    "LinearReLU",
    "MaxPool2d",
    "RNNCell",
    "Sequential",
]


class Conv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` on :func:`torchsmith.conv2d`."""

    _op = staticmethod(ops.conv2d)

    def _pooling(self) -> dict:
        return {}

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._run(self._op, input, weight, bias, **self._pooling())

    def _run(self, op, input: Tensor, weight: Tensor, bias: Tensor | None, **pooling) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return op(input, weight, bias, self.stride, padding, self.dilation, self.groups, **pooling)


class Conv2dReLU(Conv2d):
    """``relu(conv2d(input))`` in one pass; constructor and parameters of :class:`torch.nn.Conv2d`."""

    _op = staticmethod(ops.conv2d_relu)


class PoolArguments:
    """The constructor of the fused convolution and pool; mixed into a subclass of :class:`torch.nn.Conv2d`.

    Args (after Conv2d's, by keyword):
        pool_kernel_size, pool_stride, pool_padding: as in :class:`torch.nn.MaxPool2d`.
    """

    def __init__(self, *args, pool_kernel_size=2, pool_stride=None, pool_padding=0, **keywords):
        super().__init__(*args, **keywords)
        self.pool_kernel_size = pool_kernel_size
        self.pool_stride = pool_kernel_size if pool_stride is None else pool_stride
        self.pool_padding = pool_padding

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, pool_kernel_size={self.pool_kernel_size}, pool_stride={self.pool_stride}, "
            f"pool_padding={self.pool_padding}"
        )


class Conv2dReLUMaxPool2d(PoolArguments, Conv2d):
    """``max_pool2d(relu(conv2d(input)))``, which is also ``relu(max_pool2d(conv2d(input)))``, in one pass."""

    _op = staticmethod(ops.conv2d_relu_maxpool2d)

    def _pooling(self) -> dict:
        return {
            "pool_kernel_size": self.pool_kernel_size,
            "pool_stride": self.pool_stride,
            "pool_padding": self.pool_padding,
        }


class MaxPool2d(nn.MaxPool2d):
    """:class:`torch.nn.MaxPool2d` on :func:`torchsmith.max_pool2d`."""

    def forward(self, input: Tensor):
        return ops.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


def _two(value) -> tuple[int, ...]:
    """A size of a pool as torch takes it: a number, or one or two in a tuple (of strides none, which means the window)."""
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return sizes * 2 if len(sizes) == 1 else sizes


class AvgPool2d(nn.AvgPool2d):
    """:class:`torch.nn.AvgPool2d`; with stride 1 on the CPU, in float32 and float64, on :func:`torchsmith.conv2d`.

    Averages of all windows are a convolution of each channel with equal weights, whose kernel works on whole vectors where
    native's pool works cell by cell. Other strides, dtypes and devices, small inputs and compiled graphs are torch's own.
    """

    #: Additions from which the call pays: a convolution's takes longer than a pool's.
    FROM = 100_000

    def unequal(self) -> str:
        """Why windows are not all averaged alike, side by side; empty if they are."""
        padding = _two(self.padding)
        if _two(self.stride) != (1, 1):
            return f"average pool with stride {self.stride}"
        if any(padding) and not self.count_include_pad:
            return "average pool whose windows are smaller at the border"
        if any(not 0 <= 2 * p <= k for p, k in zip(padding, _two(self.kernel_size), strict=True)):
            return "average pool that torch refuses"
        return ""

    def why_torch(self, input: Tensor) -> str:
        """Why torch's own pool computes this input's averages; empty if a convolution does."""
        if unequal := self.unequal():
            return unequal
        if dispatch.is_compiling():
            return "average pool in a compiled graph"
        if input.dim() not in (3, 4) or input.device.type != "cpu" or input.dtype not in (torch.float32, torch.float64):
            return f"average pool of {input.dim()}D {input.dtype} on {input.device.type}"
        if torch.is_autocast_enabled("cpu"):
            return "average pool under autocast, which would round a convolution's factors"
        if input.numel() * math.prod(_two(self.kernel_size)) < self.FROM:
            return "small average pool"
        return dispatch.why_not("conv2d", input)

    def forward(self, input: Tensor) -> Tensor:
        if self.why_torch(input):
            return super().forward(input)
        kh, kw = _two(self.kernel_size)
        channels = input.shape[-3]
        weight = input.new_full((channels, 1, kh, kw), 1 / (self.divisor_override or kh * kw))
        return ops.conv2d(input, weight, None, 1, _two(self.padding), 1, channels)


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` on :func:`torchsmith.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear(input, self.weight, self.bias)


class LinearReLU(nn.Linear):
    """``relu(linear(input))`` in one pass; constructor and parameters of :class:`torch.nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.linear_relu(input, self.weight, self.bias)


def _cell(module: nn.RNNCellBase, op, input: Tensor, hx: Tensor | None, *extra) -> Tensor:
    """torch.nn's own treatment of a cell's arguments: one sample without a batch, a missing state."""
    name = type(module).__name__
    for what, t in (("input", input), ("hidden", hx)):
        if t is not None and t.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected {what} to be 1D or 2D, got {t.dim()}D instead")
    batched = input.dim() == 2
    input = input if batched else input.unsqueeze(0)
    if hx is None:
        hx = input.new_zeros(input.shape[0], module.hidden_size)
    elif not batched:
        hx = hx.unsqueeze(0)
    h = op(input, hx, module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh, *extra)
    return h if batched else h.squeeze(0)


class RNNCell(nn.RNNCell):
    """:class:`torch.nn.RNNCell` on :func:`torchsmith.rnn_cell`."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return _cell(self, ops.rnn_cell, input, hx, self.nonlinearity)


class GRUCell(nn.GRUCell):
    """:class:`torch.nn.GRUCell` on :func:`torchsmith.gru_cell`."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return _cell(self, ops.gru_cell, input, hx)


class _Sequences(nn.RNNBase):
    """What RNN and GRU share with torch.nn's: parameters, their names and order, initialisation, state_dict.

    The base is RNNBase and not torch.nn.RNN or torch.nn.GRU, whose instances torch.compile refuses ("Attempted to wrap
    RNN, GRU, or LSTM"): ``isinstance(module, torch.nn.RNNBase)`` holds, ``isinstance(module, torch.nn.GRU)`` does not.

    In compiled and exported graphs the layer is one op of ours, for any batch and length. A PackedSequence goes into a
    graph of ``torch.compile`` and comes out of it; inside, :mod:`torchsmith.packed` makes and unpacks them (torch's own
    functions of these names break the graph). A packed batch is a size where the sequence has ``sorted_indices`` or
    ``hx`` is given; else the graph reads it from ``batch_sizes`` when it runs, which ``fullgraph=True`` allows.
    ``torch.export`` takes a PackedSequence too, but saves no program that has one among its inputs or outputs: pack
    inside the model.
    """

    def __init__(self, mode: str, *args, **keywords) -> None:
        if "proj_size" in keywords:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__(mode, *args, **keywords)

    def _run(self, op, input: Tensor | PackedSequence, hx: Tensor | None, embedding: Tensor | None, **extra):
        data = embedding
        if embedding is None:
            data = input.data if isinstance(input, PackedSequence) else input
        if not isinstance(input, PackedSequence):
            dims, expected = input.dim() + (embedding is not None), "2D or 3D" if embedding is None else "1D or 2D"
            if dims not in (2, 3):
                raise ValueError(f"{type(self).__name__}: Expected input to be {expected}, got {input.dim()}D instead")
            if hx is not None and hx.dim() != dims:
                kind = f"{'batched' if dims == 3 else 'unbatched'} {input.dim()}-D"
                raise RuntimeError(f"For {kind} input, hx should also be {dims}-D but got {hx.dim()}-D tensor")
        # By name, not from _flat_weights: a parametrization or torch.func.functional_call puts others in their place.
        weights = [getattr(self, name) for name in self._flat_weights_names]
        if data.dtype != weights[0].dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"RNN input dtype ({data.dtype}) does not match weight dtype ({weights[0].dtype}). Convert input: "
                f"input.to({weights[0].dtype}), or convert model: model.to({data.dtype})"
            )
        return op(
            input,
            hx,
            weights,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            dropout=self.dropout,
            training=self.training,
            embedding=embedding,
            **extra,
        )


class RNN(_Sequences):
    """:class:`torch.nn.RNN` on :func:`torchsmith.rnn`: the whole sequence is one op. Constructor and results are its own."""

    def __init__(self, *args, **keywords) -> None:
        args = list(args)
        self.nonlinearity = args.pop(3) if len(args) > 3 else keywords.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity {self.nonlinearity!r}. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **keywords)

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None, embedding: Tensor | None = None):
        """As :class:`torch.nn.RNN`; with ``embedding`` (rows, I), ``input`` has integers, as of :func:`torchsmith.rnn`."""
        return self._run(ops.rnn, input, hx, embedding, nonlinearity=self.nonlinearity)


class GRU(_Sequences):
    """:class:`torch.nn.GRU` on :func:`torchsmith.gru`: the whole sequence is one op. Constructor and results are its own."""

    def __init__(self, *args, **keywords) -> None:
        super().__init__("GRU", *args, **keywords)

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None, embedding: Tensor | None = None):
        """As :class:`torch.nn.GRU`; with ``embedding`` (rows, I), ``input`` has integers, as of :func:`torchsmith.gru`."""
        return self._run(ops.gru, input, hx, embedding)


class Sequential(nn.Sequential):
    """:class:`torch.nn.Sequential` that runs ``Conv2d -> ReLU``, ``Conv2d -> ReLU -> MaxPool2d``, ``Conv2d -> MaxPool2d ->
    ReLU`` and ``Linear -> ReLU`` in one pass each, where the first is a layer of this module.

    What stands in a row is looked up in every call: layers can be replaced, sliced or appended, and a layer with hooks runs
    by itself, so that they see what they would see in torch.nn's.
    """

    def forward(self, input):
        layers = (*self._modules.values(),)
        at = 0
        while at < len(layers):
            row = chains.row(layers, at)
            if row is None:
                input, at = layers[at](input), at + 1
            else:
                input, at = chains.run(input, layers[at], row.relu, row.pool, row.pool_first), at + row.count
        return input
