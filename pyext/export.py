"""Taking models elsewhere: our ops in ATen's, for any consumer of ``torch.export``'s programs, and in ONNX's.

``torch.export.export(model, args)`` keeps our ops: the program, saved and loaded, and an AOTInductor package made of it run
wherever torchsmith is imported (from C++: its library loaded). It is for inference: what differentiates our ops are
``torch.autograd.Function``s, which a program does not hold. For consumers that know none of our ops::

    program = torch.export.export(model, args).run_decompositions(torchsmith.export.decompositions())
    torchsmith.export.onnx(model, args, "model.onnx")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import _recurrent
from .ops.maxpool2d import position_dtype
from .spec import kernel

__all__ = ["decompositions", "onnx", "onnx_translations"]

# ------------------------------------------------------------------------------------------------ in ATen's ops


def _linear(input, weight, bias, relu, allow_tf32=False):
    y = F.linear(input, weight, bias)
    return F.relu(y) if relu else y


def _conv2d(input, weight, bias, stride, padding, dilation, groups, relu, pool, allow_tf32=False):
    top, left, bottom, right = padding
    if (top, left) != (bottom, right):
        input, top, left = F.pad(input, (left, right, top, bottom)), 0, 0
    y = F.conv2d(input, weight, bias, stride, (top, left), dilation, groups)
    y = F.relu(y) if relu else y
    y = F.max_pool2d(y, pool[:2], pool[2:4], pool[4:]) if pool else y
    return y, y.new_empty(y.shape if pool else (0,), dtype=torch.uint8)  # of the positions, only a backward is in need


def _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode):
    y, index = F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
    # From the index in the plane to the position in the window: the inverse of what max_pool2d makes of positions.
    height, width = input.shape[2:]
    rows = torch.arange(index.shape[2], device=index.device).unsqueeze(-1) * stride[0] - padding[0]
    columns = torch.arange(index.shape[3], device=index.device) * stride[1] - padding[1]
    row = index.div(width, rounding_mode="floor")
    kh = (row - rows).div(dilation[0], rounding_mode="floor")
    kw = (index - row * width - columns).div(dilation[1], rounding_mode="floor")
    return y, (kh * kernel_size[1] + kw).to(position_dtype(kernel_size))


def _next(name: str, gi: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor | None, relu: bool) -> Tensor:
    """A step from the input's part of the gates; ATen's own cells change tensors in place, which a program must not."""
    gh = F.linear(h, w_hh, b_hh)
    if name == "rnn":
        return F.relu(gi + gh) if relu else torch.tanh(gi + gh)
    (ir, iz, ix), (hr, hz, hx) = gi.chunk(3, -1), gh.chunk(3, -1)
    r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
    n = torch.tanh(ix + r * hx)
    return n + z * (h - n)


def _cell(row: _recurrent.Recurrent) -> Callable[..., Any]:
    def cell(input, hx, w_ih, w_hh, b_ih, b_hh, relu, save):
        return _next(row.name, F.linear(input, w_ih, b_ih), hx, w_hh, b_hh, relu), _reserve(hx)

    return cell


def _sequence(row: _recurrent.Recurrent) -> Callable[..., Any]:
    def sequence(
        input, hx, weights, dropout, batch_sizes, bidirectional, bias, relu, save, allow_tf32=False, index=None
    ):
        if dropout is not None:
            raise ValueError(f"{row.name}: dropout has no decomposition: export the model after model.eval()")
        if batch_sizes is not None:
            raise ValueError(f"{row.name}: a packed sequence has no decomposition: its lengths are values, not sizes")
        directions, each = (2 if bidirectional else 1), (4 if bias else 2)
        input = input if index is None else F.embedding(index, input)
        last = []
        for layer in range(hx.shape[0] // directions):
            by_direction = []
            for direction in range(directions):
                at = layer * directions + direction
                w_ih, w_hh, b_ih, b_hh = (*weights[at * each : (at + 1) * each], None, None)[:4]
                steps, h, states = F.linear(input, w_ih, b_ih).unbind(0), hx[at], []
                for gi in reversed(steps) if direction else steps:
                    h = _next(row.name, gi, h, w_hh, b_hh, relu)
                    states.append(h)
                by_direction.append(torch.stack(states[::-1] if direction else states))
                last.append(h)
            input = torch.cat(by_direction, -1)
        return input, torch.stack(last), _reserve(hx)

    return sequence


def _reserve(hx: Tensor) -> Tensor:
    """What only a backward reads."""
    return hx.new_empty((0,), dtype=torch.float64 if hx.dtype == torch.float64 else torch.float32)


def decompositions(sequences: bool = True) -> dict[Any, Callable[..., Any]]:
    """Our forward ops in ATen's: a table for ``ExportedProgram.run_decompositions`` and ``make_fx``.

    Args:
        sequences: also rnn and gru over sequences, a step at a time: the program then holds every step and is for one
            length. There is none for packed sequences and for dropout (ValueError).
    """
    table = {
        kernel("linear_forward"): _linear,
        kernel("conv2d_forward"): _conv2d,
        kernel("maxpool2d_forward"): _max_pool2d,
    }
    for row in _recurrent.ROWS.values():
        table[row.cell_forward] = _cell(row)
        if sequences:
            table[row.forward] = _sequence(row)
    return table


# ------------------------------------------------------------------------------------------------ in ONNX's


def onnx(
    model: torch.nn.Module | torch.export.ExportedProgram,
    args: tuple[Any, ...] = (),
    file: Any = None,
    *,
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> Any:
    """:func:`torch.onnx.export` for models on our ops: in standard ONNX ops, any runtime runs the result.

    Convolution, pooling, linear and cells come out as ATen's would; a sequence as ONNX's own GRU or RNN node, for any
    length and batch that ``dynamic_shapes`` leaves open, also where it is packed inside the model.

    Args:
        model: a module, in ``eval()`` mode where it has dropout, or a program that ``torch.export.export`` made of one.
        args, kwargs: example inputs.
        file: where the model is written; None: nowhere.
        dynamic_shapes: as of :func:`torch.export.export`.
        options: other arguments of :func:`torch.onnx.export`.

    Returns:
        The :class:`torch.onnx.ONNXProgram`.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: dropout in a recurrent layer is on.
    """
    with torch.no_grad():  # nothing is kept for a backward
        if not isinstance(model, torch.export.ExportedProgram):
            model = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes)
        program = model.run_decompositions({**torch.export.default_decompositions(), **decompositions(sequences=False)})
    _refuse_dropout(program)
    table = {**onnx_translations(), **(options.pop("custom_translation_table", None) or {})}
    return torch.onnx.export(program, f=file, dynamo=True, custom_translation_table=table, **options)


def _refuse_dropout(program: torch.export.ExportedProgram) -> None:
    for row in _recurrent.ROWS.values():
        for node in program.graph.find_nodes(op="call_function", target=row.forward):
            if node.args[3] is not None:
                raise ValueError(f"{row.name}: dropout is on: export the model after model.eval()")


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """Our sequences as ONNX's GRU and RNN: a ``custom_translation_table`` for :func:`torch.onnx.export`."""
    from onnxscript import opset18 as op

    def rows_of(input, index):
        return input if index is None else op.Gather(input, index, axis=0)

    def gru(input, hx, weights, dropout, batch_sizes, bidirectional, bias, relu, save, allow_tf32=False, index=None):
        def layer(x, lengths, h, own):
            gates = {"hidden_size": own.hidden, "direction": own.direction, "linear_before_reset": 1}
            return op.GRU(x, own.stacked(0), own.stacked(1), own.biases(), lengths, h, **gates)

        return _onnx_stack(op, layer, 3, rows_of(input, index), hx, weights, batch_sizes, bidirectional, bias)

    def rnn(input, hx, weights, dropout, batch_sizes, bidirectional, bias, relu, save, allow_tf32=False, index=None):
        def layer(x, lengths, h, own):
            kinds = ["Relu" if relu else "Tanh"] * (2 if bidirectional else 1)
            gates = {"hidden_size": own.hidden, "direction": own.direction, "activations": kinds}
            return op.RNN(x, own.stacked(0), own.stacked(1), own.biases(), lengths, h, **gates)

        return _onnx_stack(op, layer, 1, rows_of(input, index), hx, weights, batch_sizes, bidirectional, bias)

    return {_recurrent.ROWS["gru"].forward: gru, _recurrent.ROWS["rnn"].forward: rnn}


class _OnnxWeights:
    """One layer's weights as ONNX wants them: directions stacked in front, gates in its order (z, r, n; ours is r, z, n)."""

    def __init__(self, op: Any, weights: Sequence[Any], gates: int, directions: int, bias: bool) -> None:
        self.op, self.gates, self.bias = op, gates, bias
        each = len(weights) // directions
        self.by_direction = [weights[i * each : (i + 1) * each] for i in range(directions)]
        self.hidden = int(weights[1].shape[1])
        self.direction = "bidirectional" if directions == 2 else "forward"

    def _ordered(self, w: Any) -> Any:
        if self.gates == 1:
            return w
        # Slices, and not one Split: the exporter's optimizer folds them away.
        r, z, n = (self.op.Slice(w, [i * self.hidden], [(i + 1) * self.hidden], [0]) for i in range(3))
        return self.op.Concat(z, r, n, axis=0)

    def stacked(self, part: int) -> Any:
        own = [self.op.Unsqueeze(self._ordered(w[part]), [0]) for w in self.by_direction]
        return own[0] if len(own) == 1 else self.op.Concat(*own, axis=0)

    def biases(self) -> Any:
        if not self.bias:
            return None
        both = [self.op.Concat(self._ordered(w[2]), self._ordered(w[3]), axis=0) for w in self.by_direction]
        own = [self.op.Unsqueeze(b, [0]) for b in both]
        return own[0] if len(own) == 1 else self.op.Concat(*own, axis=0)


def _onnx_stack(op, layer, gates, input, hx, weights, batch_sizes, bidirectional, bias):
    directions = 2 if bidirectional else 1
    each = len(weights) // (layers := int(hx.shape[0]) // directions)
    lengths = rows = None
    if batch_sizes is not None:  # ONNX's ops take padded sequences and their lengths
        batch = op.Gather(op.Shape(hx), [1], axis=0)
        there = op.Less(op.Range(0, op.Squeeze(batch), 1), op.Unsqueeze(batch_sizes, [1]))  # (T, B)
        rows = op.Transpose(op.NonZero(there), perm=[1, 0])  # (t, b) of each packed row
        lengths = op.ReduceSum(op.Cast(there, to=6), [0], keepdims=0)  # 6: int32, which ONNX wants here
        shape = op.Concat(op.Shape(there), op.Gather(op.Shape(input), [1], axis=0), axis=0)
        input = op.ScatterND(op.Expand(op.CastLike(0.0, input), shape), rows, input)
    states = []
    for index in range(layers):
        own = _OnnxWeights(op, weights[index * each : (index + 1) * each], gates, directions, bias)
        h = op.Slice(hx, [index * directions], [(index + 1) * directions], [0])
        y, hn = layer(input, lengths, h, own)  # y (T, directions, B, H)
        input = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])
        states.append(hn)
    y = input if rows is None else op.GatherND(input, rows)
    hn = states[0] if layers == 1 else op.Concat(*states, axis=0)
    return y, hn, op.Identity(hn)  # the third is what a backward would read: nobody does
