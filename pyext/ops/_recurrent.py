"""What rnn and gru share on the Python side: checks, packed sequences, the autograd Functions, samples.

A row makes one :class:`Recurrent` and from it its public functions and specs. Layout of a sequence and of what is saved:
csrc/contract/sequence.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

from ..autograd import differentiable_gradients, inside, records, transforms, wants_graph
from ..dispatch import (
    KNOWN,
    NATIVE_ON_CUDA,
    NATIVE_WITH_AMX,
    autocast,
    chosen,
    native_wins,
    recurrent_tf32,
    unmeasured_on_cuda,
    unmeasured_with_amx,
    use_kernel,
)
from ..spec import kernel
from . import _recurrent_func as func
from ._checks import only_tensors, same_device
from ._recurrent_fakes import register_fakes

#: Hidden units up to which sequences on a GPU are ours where nothing was measured: packed or recorded ones, and others.
SMALL_ON_CUDA, VERY_SMALL_ON_CUDA = 128, 32
#: Hidden units from which bfloat16 sequences are native's where it alone multiplies on AMX, and a GRU's that is not packed.
LARGE_WITH_AMX, LARGE_PADDED_WITH_AMX = 256, 64

#: Rows up to which an embedding counts as the smaller one in a graph that leaves the number of steps open.
SMALL_TABLE = 256

#: Every row by its name.
ROWS: dict[str, Recurrent] = {}


@dataclass(frozen=True)
class Recurrent:
    """One row: its name, the number of gate blocks in a weight, and whether gate values are saved for backward."""

    name: str
    gates: int
    saves_gates: bool

    def __post_init__(self):
        for part in ("cell_forward", "cell_backward", "forward", "backward"):
            native = kernel(f"{self.name}_{part}")
            object.__setattr__(self, part, native)
            object.__setattr__(self, f"inner_{part}", inside(native))
        object.__setattr__(self, "cell_name", f"{self.name}_cell")
        ROWS[self.name] = self
        register_fakes(self)

    def nonlinearity(self, relu: bool) -> tuple[str, ...]:
        """The argument of that name, of the ops that have one."""
        return () if self.name == "gru" else ("relu" if relu else "tanh",)

    def native(self, relu: bool):
        return torch._VF.gru if self.name == "gru" else torch._VF.rnn_relu if relu else torch._VF.rnn_tanh

    def native_cell(self, relu: bool):
        return torch.gru_cell if self.name == "gru" else torch.rnn_relu_cell if relu else torch.rnn_tanh_cell

    @property
    def kernels(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (
            (f"{self.name}_cell_forward", f"{self.name}_cell_backward"),
            (f"{self.name}_forward", f"{self.name}_backward"),
        )


def as_autocast(row: Recurrent, input: Tensor, hx: Tensor, *weights: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors as native would have them under torch.autocast.

    On the CPU a gru's state keeps its own dtype there: only the products are of 16 bits, and what is added to the state
    is promoted. For a float32 state ours computes all of it in float32.
    """
    if row.gates == 3 and input.is_cpu and torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled("cpu"):
        dtype = torch.promote_types(torch.get_autocast_dtype("cpu"), hx.dtype)
        if dtype == torch.float32:
            return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (input, hx, *weights))
    return autocast(input, hx, *weights)


#: The transforms in which native's recurrent ops work as they are.
GRAD = frozenset({"Grad", "Jvp"})


def check_types(name, input, hx, *weights) -> None:
    for what, t in (("hx", hx), *(("weight", w) for w in weights)):
        if t is not None and t.dtype != input.dtype:
            raise RuntimeError(
                f"{name}: mat1 and mat2 must have the same dtype, but got input: {input.dtype} and {what}: {t.dtype}"
            )
        if t is not None and t.device != input.device:
            same_device(name, input=input, **{what: t})


# ------------------------------------------------------------------------------------------------------------ sequences


#: The transforms in which a sequence runs on our kernels: _recurrent_func.py.
_RULES = frozenset({"Vmap", "Grad"})


def sequence(
    row: Recurrent,
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    relu: bool,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    embedding: Tensor | None = None,
):
    """The whole stack over padded or packed input, or of ``embedding`` the rows that it names; returns ``(output, h_n)``."""
    weights = list(weights)
    packed = input if isinstance(input, PackedSequence) else None
    only_tensors(row.name, 1, input=input if packed is None else packed.data, hx=hx, embedding=embedding)
    for i, w in enumerate(weights):
        if not isinstance(w, Tensor):
            raise TypeError(f"{row.name}(): argument 'weights' must be Tensors, but element {i} is {type(w).__name__}")
    slower = ""
    if row.name in KNOWN:
        others = (*row.nonlinearity(relu), bidirectional, batch_first, dropout, training)
        others = others if embedding is None else (*others, embedding)
        slower = native_wins(row.name, (input, hx, weights), others)
    data, batch_sizes = (packed.data, packed.batch_sizes) if packed is not None else (input, None)
    bias = len(weights) > 2 and weights[2].dim() == 1
    directions = 2 if bidirectional else 1
    layers = _check_weights(row, weights, 4 if bias else 2, directions)
    if embedding is not None:
        _check_embedding(row.name, data, embedding)
        data = data.long()
    steps = 2 if embedding is None else 1  # dimensions of unbatched input
    unbatched = packed is None and data.dim() == steps
    if unbatched:
        data = data.unsqueeze(1)
        hx = hx.unsqueeze(1) if hx is not None and hx.dim() == 2 else hx
    elif batch_first and packed is None:
        data = data.transpose(0, 1)
    if packed is not None and hx is not None and packed.sorted_indices is not None:
        hx = hx.index_select(1, packed.sorted_indices)
    x, index = (data, None) if embedding is None else (embedding, data)
    hidden = weights[1].shape[1]
    batch = _packed_batch(packed, hx) if packed is not None else data.shape[1] if data.dim() == steps + 1 else 0
    expected = (layers * directions, batch, hidden)
    if hx is None:
        hx = x.new_zeros(expected)
    x, hx, *weights = as_autocast(row, x, hx, *weights)
    shape = x.shape if index is None else (*index.shape, x.shape[1])
    _check_sequence(row.name, x, shape, hx, weights, packed is not None, expected)
    flags = (bidirectional, bias, relu)
    rows_shape = (*shape[:-1], directions * hidden)
    around = transforms()
    slower = slower or _rule_on_cuda(row.name, x, hidden, packed is not None or records(x, hx, *weights))
    slower = slower or _rule_with_amx(row.name, x, hidden, packed is None)
    computes = use_kernel(row.name, x, slower, rules=_RULES)
    if index is not None and not (computes and _reads_table(row.name, x, index)):
        x, index = F.embedding(index, x), None
    if not computes and around <= GRAD:
        output, hn = _native(row, x, hx, weights, batch_sizes, flags, layers, dropout, training)
    else:
        masks = None
        if training and dropout and layers > 1:
            draw = func.masks_for_each if around - GRAD else _dropout_masks
            masks = draw(x, layers, rows_shape, dropout)
        if around:
            compute = func.apply if computes else func.stack
            output, hn = compute(row, flags, masks, batch_sizes, x, hx, weights)
        elif records(x, hx, *weights):
            output, hn = _Sequence.apply(row, flags, masks, batch_sizes, index, x, hx, *weights)
        else:
            output, hn, _ = _forward(row, x, hx, weights, masks, batch_sizes, flags, False, index)
    if packed is not None:
        hn = hn if packed.unsorted_indices is None else hn.index_select(1, packed.unsorted_indices)
        return PackedSequence(output, batch_sizes, packed.sorted_indices, packed.unsorted_indices), hn
    if unbatched:
        return output.squeeze(1), hn.squeeze(1)
    return output.transpose(0, 1) if batch_first else output, hn


def _forward(row, x, hx, weights, masks, batch_sizes, flags, save, index):
    try:
        return row.inner_forward(x, hx, weights, masks, batch_sizes, *flags, save, recurrent_tf32(x), index)
    except RuntimeError as error:
        if "index out of range" not in str(error):
            raise
        raise IndexError(f"{row.name}: input: expected rows of embedding, 0 to {len(x) - 1}: {error}") from None


def _check_embedding(name: str, index: Tensor, embedding: Tensor) -> None:
    if index.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"{name}: input: expected one of the dtypes Long, Int with an embedding, got {index.dtype}")
    if embedding.dim() != 2:
        raise RuntimeError(f"{name}: embedding: expected 2 dimensions (rows, features), got {list(embedding.shape)}")
    same_device(name, input=index, embedding=embedding)


def _reads_table(name: str, embedding: Tensor, index: Tensor) -> bool:
    """Whether the kernel takes rows by their index, and multiplies W_ih with the embedding, which is then the smaller one."""
    if not embedding.is_cpu or transforms() or chosen(name) == "triton":
        return False
    rows, steps = embedding.shape[0], index.numel()
    if not is_compiling():
        return rows <= steps
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    # Without a guard: a graph that was traced with open sizes is for any.
    return statically_known_true(rows <= steps) or (rows <= SMALL_TABLE and not statically_known_true(rows > steps))


def _rule_on_cuda(name: str, data: Tensor, hidden: int, packed_or_recorded: bool) -> str:
    """cuDNN is 4 times as fast with 1,024 hidden units, and with 100 a sixth faster where it need not unpack or record."""
    most = SMALL_ON_CUDA if packed_or_recorded else VERY_SMALL_ON_CUDA
    return NATIVE_ON_CUDA if hidden > most and unmeasured_on_cuda(name, data) else ""


def _rule_with_amx(name: str, data: Tensor, hidden: int, padded: bool) -> str:
    """On an Emerald Rapids ours on vectors was 0.2-0.3 as fast with 1,024 hidden units, and with 100 of a GRU 0.5-0.8 padded,
    1.1-1.2 packed; an RNN's with 128 1.0-1.2."""
    least = LARGE_PADDED_WITH_AMX if padded and name == "gru" else LARGE_WITH_AMX
    return NATIVE_WITH_AMX if hidden >= least and unmeasured_with_amx(name, data) else ""


def _packed_batch(packed: PackedSequence, hx: Tensor | None) -> int:
    """The number of sequences. A tracer asks what knows it as a size first; the kernel compares with batch_sizes."""
    if is_compiling():
        if packed.sorted_indices is not None:
            return packed.sorted_indices.shape[0]
        if hx is not None and hx.dim() == 3:
            return hx.shape[1]
        return packed.batch_sizes[0].item()  # int() would fix it
    return int(packed.batch_sizes[0])


def _dropout_masks(data: Tensor, layers: int, shape: tuple[int, ...], p: float) -> Tensor:
    """One mask between two layers each. On the CPU drawn as ATen draws them: the same generator gives the same masks."""
    masks = data.new_empty((layers - 1, *shape))
    for mask in masks:
        mask.zero_() if p == 1 else mask.bernoulli_(1 - p).div_(1 - p)
    return masks


def _check_weights(row: Recurrent, weights: list[Tensor], each: int, directions: int) -> int:
    """Checks the list of weights against itself; returns the number of layers."""
    layers, rest = divmod(len(weights), each * directions)
    if rest or not layers:
        raise RuntimeError(
            f"{row.name}: weights: expected {each} tensors for each of {directions} direction(s) and layer, "
            f"got {len(weights)}"
        )
    hidden = weights[1].shape[1] if weights[1].dim() == 2 else -1
    for i, w in enumerate(weights):
        layer, part = i // (each * directions), i % each
        width = weights[0].shape[-1] if layer == 0 else directions * hidden
        shape = [row.gates * hidden, width if part == 0 else hidden][: 2 if part < 2 else 1]
        if list(w.shape) != shape:
            raise RuntimeError(
                f"{row.name}: weights[{i}] (layer {layer}, {('w_ih', 'w_hh', 'b_ih', 'b_hh')[part]}): expected "
                f"shape {shape}, got {list(w.shape)}"
            )
    return layers


def _check_sequence(name, x, shape, hx, weights, packed: bool, expected: tuple[int, ...]) -> None:
    dims = 2 if packed else 3
    if len(shape) != dims:
        raise RuntimeError(f"{name}: input must have {dims} dimensions, got {len(shape)} (size {list(shape)})")
    if shape[-1] != weights[0].shape[1]:
        raise RuntimeError(
            f"{name}: input.size(-1) must be equal to input_size. Expected {weights[0].shape[1]}, got {shape[-1]}"
        )
    if not packed and shape[0] == 0:
        raise RuntimeError(f"{name}: Expected sequence length to be larger than 0 in RNN")
    if tuple(hx.shape) != expected:
        raise RuntimeError(f"{name}: Expected hidden size {expected}, got {list(hx.shape)}")
    check_types(name, x, hx, *weights)


def _native(row, data, hx, weights, batch_sizes, flags, layers, dropout, training):
    bidirectional, bias, relu = flags
    if batch_sizes is None:
        return row.native(relu)(data, hx, weights, bias, layers, dropout, training, bidirectional, False)
    return row.native(relu)(data, batch_sizes, hx, weights, bias, layers, dropout, training, bidirectional)


def _masked_reference(row, flags, masks, batch_sizes, data, hx, weights):
    """The stack in ATen's ops, a layer at a time, with given dropout masks: what double backward differentiates."""
    directions, each = (2 if flags[0] else 1), (4 if flags[1] else 2)
    states = []
    for layer, h in enumerate(hx.split(directions)):
        own = list(weights[layer * directions * each : (layer + 1) * directions * each])
        data = data if layer == 0 or masks is None else data * masks[layer - 1]
        with _differentiable_native(data):
            data, hn = _native(row, data, h, own, batch_sizes, flags, 1, 0.0, False)
        states.append(hn)
    return data, torch.cat(states)


@contextmanager
def _differentiable_native(data: Tensor) -> Iterator[None]:
    """Without cuDNN, whose sequences have no backward outside of training and no double backward: ATen's step by step have."""
    before = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(before and not data.is_cuda)
    try:
        yield
    finally:
        torch._C._set_cudnn_enabled(before)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row, flags, masks, batch_sizes, index, x, hx, *weights):
        y, hn, reserve = _forward(row, x, hx, weights, masks, batch_sizes, flags, True, index)
        ctx.row, ctx.flags = row, flags
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(masks, batch_sizes, index, y, reserve, x, hx, *weights)
        return y, hn

    @staticmethod
    def backward(ctx, gy, ghn):
        masks, batch_sizes, index, y, reserve, *inputs = ctx.saved_tensors
        need = ctx.needs_input_grad[5:]
        if gy is None and ghn is None:
            return (None,) * (5 + len(need))

        def by_reference():
            def reference(x, hx, *w):
                compute = func.stack if transforms() else _masked_reference
                data = x if index is None else F.embedding(index, x)
                return compute(ctx.row, ctx.flags, masks, batch_sizes, data, hx, w)

            return *(None,) * 5, *differentiable_gradients(reference, inputs, (gy, ghn), need)

        if wants_graph():
            return by_reference()
        x, hx, *weights = inputs
        needed = (need[0], any(need[2:]), recurrent_tf32(x), index)
        try:
            gx, ghx, gw = ctx.row.inner_backward(
                gy, ghn, x, hx, weights, masks, batch_sizes, y, reserve, *ctx.flags, *needed
            )
        except RuntimeError as error:  # is_grads_batched, whose batches nothing but their failure shows
            if "Batching rule not implemented" not in str(error):
                raise
            return by_reference()
        grads = (gx, ghx, *(gw or [None] * len(weights)))
        return *(None,) * 5, *(g if n else None for g, n in zip(grads, need, strict=True))
