"""rnn and gru inside torch.func transforms: vmap, grad, vjp, jacrev, per-sample gradients.

ATen has no batching rule for its recurrent layers, and under grad it runs them as some ten small ops a step. Here a
sequence stays one op under any stack of ``vmap`` and ``grad``:

- mapped samples are folded into the batch: ``(V, T, B, I)`` runs as ``(T, V * B, I)``;
- mapped weights (an ensemble) run one after the other;
- weight gradients of each sample alone come from the gradients at the gates, which the backward kernel gives as the
  gradient at its input when ``W_ih`` is the identity; two batched products make the weights' gradients of them.

Derivatives of higher order, forward mode and cells under vmap are made of ATen's ops, step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autograd import differentiable_gradients, forward_mode, records
from ..dispatch import recurrent_tf32

# The dimension of the batch in each tensor below.
_SAMPLES_FORWARD = (2, 1, 1)  # masks (L - 1, T, B, D * H), data (T, B, I), hx (L * D, B, H)
_SAMPLES_OUT = (1, 1, 2, 2)  # y (T, B, D * H), hn, hidden (L - 1, T, B, D * H), gates (L * D, T, B, 4 * H or 0)
_SAMPLES_BACKWARD = (1, 1, *_SAMPLES_FORWARD, 1, 2, 2)  # gy, ghn, masks, data, hx, y, hidden, gates

# ------------------------------------------------------------------------------------------------------ in ATen's ops


def cell(gates: int, relu: bool, input, hx, w_ih, w_hh, b_ih, b_hh) -> Tensor:
    """One step of a cell: ``(B, I)``, ``(B, H)`` -> ``(B, H)``."""
    return step(relu if gates == 1 else None, F.linear(input, w_ih, b_ih), hx, w_hh, b_hh)


def step(relu: bool | None, projected: Tensor, h: Tensor, w_hh: Tensor, b_hh: Tensor | None) -> Tensor:
    """The next state ``(B, H)`` from ``W_ih x + b_ih`` (B, gates * H); ``relu`` is None for a gru."""
    recurrent = F.linear(h, w_hh, b_hh)
    if relu is not None:
        return (torch.relu if relu else torch.tanh)(projected + recurrent)
    (xr, xz, xn), (hr, hz, hn) = projected.chunk(3, -1), recurrent.chunk(3, -1)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return n + torch.sigmoid(xz + hz) * (h - n)


def step_by_step(relu: bool | None, data, hx, weights, batch_sizes, flags) -> tuple[Tensor, Tensor]:
    """One layer; ``data`` is (T, B, I), or packed rows with their ``batch_sizes``. Returns states like ``data`` and h_n."""
    bidirectional, bias = flags[:2]
    rows = data if batch_sizes is not None else data.flatten(0, 1)
    sizes = batch_sizes.tolist() if batch_sizes is not None else [data.shape[1]] * data.shape[0]
    each, outputs, last = (4 if bias else 2), [], []
    for direction in range(2 if bidirectional else 1):
        w_ih, w_hh, b_ih, b_hh = (*weights[direction * each : (direction + 1) * each], None, None)[:4]
        projected = F.linear(rows, w_ih, b_ih).split(sizes)
        h, states = hx[direction], [None] * len(sizes)
        for t in reversed(range(len(sizes))) if direction else range(len(sizes)):
            new = states[t] = step(relu, projected[t], h[: sizes[t]], w_hh, b_hh)
            h = new if sizes[t] == h.shape[0] else torch.cat([new, h[sizes[t] :]])
        outputs.append(torch.cat(states))
        last.append(h)
    y = torch.cat(outputs, -1) if bidirectional else outputs[0]
    return (y if batch_sizes is not None else y.unflatten(0, data.shape[:2])), torch.stack(last)


def stack(row, flags, masks, batch_sizes, data, hx, weights) -> tuple[Tensor, Tensor]:
    """All layers, step by step, with given dropout masks."""
    directions, each = (2 if flags[0] else 1), (4 if flags[1] else 2)
    relu, states = (flags[2] if row.gates == 1 else None), []
    for layer, h in enumerate(hx.split(directions)):
        own = weights[layer * directions * each : (layer + 1) * directions * each]
        data = data if layer == 0 or masks is None else data * masks[layer - 1]
        data, hn = step_by_step(relu, data, h, own, batch_sizes, flags)
        states.append(hn)
    return data, torch.cat(states)


# ------------------------------------------------------------------------------------------------------------ kernels


def apply(row, flags, masks, batch_sizes, data, hx, weights) -> tuple[Tensor, Tensor]:
    """The stack as one op under ``vmap`` and ``grad``; arguments as :class:`_recurrent._Sequence` takes them."""
    y, hn, _, _ = _Forward.apply(row, flags, batch_sizes, masks, data, hx, *weights)
    return y, hn


def masks_for_each(data: Tensor, layers: int, shape: tuple[int, ...], p: float) -> Tensor:
    """Dropout masks under vmap, drawn as its ``randomness`` says, or refused as native's dropout is."""
    return F.dropout(torch.ones(layers - 1, *shape, dtype=data.dtype, device=data.device), p, True)


def _parts(row, flags, data, hx, reserve) -> tuple[Tensor, Tensor]:
    """What a forward saves for backward, with its dimensions: (hidden, gates). Layout: csrc/contract/sequence.h."""
    directions, lead = (2 if flags[0] else 1), data.shape[:-1]
    width, layers = hx.shape[2], hx.shape[0] // directions
    count = (layers - 1) * lead.numel() * directions * width
    hidden = reserve[:count].view(layers - 1, *lead, directions * width)
    return hidden, reserve[count:].view(hx.shape[0], *lead, 4 * width if row.saves_gates else 0)


def _whole(hidden: Tensor, gates: Tensor) -> Tensor:
    """The inverse of :func:`_parts`; a copy only for a stack of gru layers."""
    if not hidden.numel():
        return gates.reshape(-1)
    return torch.cat([hidden.reshape(-1), gates.reshape(-1)]) if gates.numel() else hidden.reshape(-1)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(row, flags, batch_sizes, masks, data, hx, *weights):
        y, hn, reserve = row.forward(data, hx, list(weights), masks, batch_sizes, *flags, True, recurrent_tf32(data))
        return y, hn, *_parts(row, flags, data, hx, reserve)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        row, flags, batch_sizes, masks, data, hx, *weights = inputs
        y, _, hidden, gates = outputs
        ctx.row, ctx.flags = row, flags
        ctx.mark_non_differentiable(hidden, gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, masks, data, hx, y, hidden, gates, *weights)

    @staticmethod
    def backward(ctx, gy, ghn, *_):
        batch_sizes, masks, data, hx, y, hidden, gates, *weights = ctx.saved_tensors
        need = ctx.needs_input_grad[4:]
        none = (None,) * 4
        if gy is None and ghn is None:
            return *none, *(None,) * len(need)
        if forward_mode():
            return *none, *_by_reference(ctx.row, ctx.flags, batch_sizes, masks, data, hx, weights, gy, ghn, need)
        needed = (need[0], any(need[2:]))
        found = _Backward.apply(
            ctx.row, ctx.flags, needed, batch_sizes, gy, ghn, masks, data, hx, y, hidden, gates, *weights
        )
        found = (*found, *(None,) * (len(need) - len(found)))
        return *none, *(g if n else None for g, n in zip(found, need, strict=True))

    @staticmethod
    def vmap(info, in_dims, row, flags, batch_sizes, masks, data, hx, *weights):
        head, tensors = (row, flags, batch_sizes), (masks, data, hx, *weights)
        dims, size = in_dims[3:], info.batch_size
        if batch_sizes is not None or any(d is not None for d in dims[3:]):
            return _one_by_one(_Forward, head, tensors, dims, size)
        folded = _fold(tensors[:3], dims[:3], _SAMPLES_FORWARD, size)
        return _unfold(_Forward.apply(*head, *folded, *weights), _SAMPLES_OUT, size)


class _Backward(torch.autograd.Function):
    """Gradients of the input (None unless ``needed[0]``), of hx and, with ``needed[1]``, of every weight."""

    @staticmethod
    def forward(row, flags, needed, batch_sizes, gy, ghn, masks, data, hx, y, hidden, gates, *weights):
        gx, ghx, gw = row.backward(
            gy, ghn, data, hx, list(weights), masks, batch_sizes, y, _whole(hidden, gates), *flags, *needed,
            recurrent_tf32(data),
        )  # fmt: skip
        return gx if needed[0] else None, ghx, *gw

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.row, ctx.flags, ctx.needed, batch_sizes, gy, ghn, masks, data, hx, _, _, _, *weights = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, masks, gy, ghn, data, hx, *weights)

    @staticmethod
    def backward(ctx, *grads):
        batch_sizes, masks, *inputs = ctx.saved_tensors
        wants_input, wants_weights = ctx.needed

        def gradients(gy, ghn, data, hx, *weights):
            needed = (wants_input, True, *(wants_weights for _ in weights))
            found = _by_reference(ctx.row, ctx.flags, batch_sizes, masks, data, hx, weights, gy, ghn, needed)
            return tuple(g for g, n in zip(found, needed, strict=True) if n)

        grads = [g for i, g in enumerate(grads) if i or wants_input]
        need = ctx.needs_input_grad
        # Of y and what else the forward saved nothing goes back: it depends on what is differentiated here.
        need = (*need[4:6], need[7], need[8], *need[12:])
        gy, ghn, data, hx, *weights = _pull(gradients, inputs, grads, need)
        return None, None, None, None, gy, ghn, None, data, hx, None, None, None, *weights

    @staticmethod
    def vmap(info, in_dims, row, flags, needed, batch_sizes, *tensors):
        head, dims, size = (row, flags, needed, batch_sizes), in_dims[4:], info.batch_size
        if batch_sizes is not None or any(d is not None for d in dims[8:]):
            return _one_by_one(_Backward, head, tensors, dims, size)
        folded, weights = _fold(tensors[:8], dims[:8], _SAMPLES_BACKWARD, size), tensors[8:]
        if not needed[1]:
            return _unfold(_Backward.apply(*head, *folded, *weights), (1, 1), size)
        if torch._C._are_functorch_transforms_active() or records(*folded, *weights):
            return _one_by_one(_Backward, head, tensors, dims, size)  # it will be differentiated or mapped again
        gx, ghx, *gw = _for_each_sample(row, flags, size, *folded, weights)
        (gx, ghx), dims = _unfold((gx if needed[0] else None, ghx), (1, 1), size)
        return (gx, ghx, *gw), (*dims, *(0 for _ in weights))


def _for_each_sample(row, flags, size, gy, ghn, masks, data, hx, y, hidden, gates, weights) -> list[Tensor | None]:
    """As :class:`_Backward`, of ``size`` folded samples; the gradients of the weights are ``(size, ...)``, one for each."""
    directions, each, width = (2 if flags[0] else 1), (4 if flags[1] else 2), hx.shape[2]
    layers, block = hx.shape[0] // directions, row.gates * width
    # The gates of both directions side by side: what flows back to the input is what flows back to the gates.
    identity = torch.eye(directions * block, dtype=data.dtype, device=data.device).split(block)
    above, ghx, gw = gy, [], []
    for layer in reversed(range(layers)):
        own = slice(layer * directions, (layer + 1) * directions)
        layer_weights = weights[own.start * each : own.stop * each]
        y_layer = y if layer == layers - 1 else hidden[layer].to(y.dtype)
        if layer:
            x = hidden[layer - 1].to(y.dtype)
            x = x if masks is None else x * masks[layer - 1]
        else:
            x = data
        given = [identity[i // each] if i % each == 0 else w for i, w in enumerate(layer_weights)]
        at_gates, ghx_layer, _ = row.backward(
            above, None if ghn is None else ghn[own], x.new_zeros(()).expand(*x.shape[:2], directions * block), hx[own],
            given, None, None, y_layer, gates[own].reshape(-1), *flags, True, False, recurrent_tf32(data),
        )  # fmt: skip
        ghx.insert(0, ghx_layer)
        found, above = [], 0
        for d, at in enumerate(at_gates.split(block, -1)):
            h = y_layer[..., d * width : (d + 1) * width]
            start = hx[own][d].unsqueeze(0)
            before = torch.cat([h[1:], start] if d else [start, h[:-1]])
            found += _weight_gradients(row, size, at, x, before, gates[own][d], each)
            above = above + at @ layer_weights[d * each]
        above = above if layer == 0 or masks is None else above * masks[layer - 1]
        gw[:0] = found
    return [above, torch.cat(ghx), *gw]


def _weight_gradients(row, size, at, x, before, gates, each) -> list[Tensor]:
    """Of one layer and direction: w_ih, w_hh and biases, ``(size, ...)``, from gradients ``at`` its gates (T, V * B, ...)."""
    at_hidden = at
    if row.gates == 3:  # the reset gate stands between n and W_hn h + b_hn
        width = before.shape[-1]
        reset = gates[..., :width].to(at.dtype)
        at_hidden = torch.cat([at[..., : 2 * width], at[..., 2 * width :] * reset], -1)

    def samples(t: Tensor) -> Tensor:  # (T, V * B, F) -> (V, T * B, F)
        return t.unflatten(1, (size, t.shape[1] // size)).movedim(1, 0).flatten(1, 2)

    at, at_hidden = samples(at), samples(at_hidden)
    found = [at.mT @ samples(x), at_hidden.mT @ samples(before)]
    return found + [at.sum(1), at_hidden.sum(1)][: each - 2]


def _by_reference(row, flags, batch_sizes, masks, data, hx, weights, gy, ghn, need) -> list[Tensor | None]:
    def reference(data, hx, *weights):
        return stack(row, flags, masks, batch_sizes, data, hx, weights)

    return differentiable_gradients(reference, (data, hx, *weights), (gy, ghn), need)


def _pull(function, inputs, grads, need) -> list[Tensor | None]:
    """The gradients of those ``inputs`` that need them, None for the others; outputs without a gradient are left out."""
    return differentiable_gradients(
        function, inputs, grads, [n and t is not None for n, t in zip(need, inputs, strict=True)]
    )


# ---------------------------------------------------------------------------------------------------------- vmap rules


def _fold(tensors, dims, samples, size: int) -> list[Tensor | None]:
    """The mapped dimension in front of each tensor's samples, in one dimension with them."""

    def fold(t: Tensor | None, dim: int | None, at: int) -> Tensor | None:
        if t is None:
            return None
        if dim is None:
            t = t.unsqueeze(at)
            return t.expand(*t.shape[:at], size, *t.shape[at + 1 :]).flatten(at, at + 1)
        return t.movedim(dim, at).flatten(at, at + 1)

    return [fold(*each) for each in zip(tensors, dims, samples, strict=True)]


def _unfold(outputs, samples, size: int) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """The inverse of :func:`_fold`, with the place of the mapped dimension, as a vmap rule returns it."""
    outputs = tuple(
        None if t is None else t.unflatten(at, (size, t.shape[at] // size))
        for t, at in zip(outputs, samples, strict=True)
    )
    return outputs, tuple(None if t is None else at for t, at in zip(outputs, samples, strict=True))


def _one_by_one(function, head, tensors, dims, size: int) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """A call for each mapped index, the results stacked."""
    results = [
        function.apply(*head, *(t if dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True)))
        for i in range(size)
    ]
    outputs = tuple(None if each[0] is None else torch.stack(each) for each in zip(*results, strict=True))
    return outputs, tuple(None if t is None else 0 for t in outputs)
