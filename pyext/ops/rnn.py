"""rnn cell and sequence:  h' = f(W_ih x + b_ih + W_hh h + b_hh),  f = tanh or ReLU.   Kernels: csrc/cpu/rnn.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..dispatch import backend
from ..spec import OpSpec, Sample, register
from . import _recurrent_samples as samples
from ._cell import cell_of
from ._recurrent import Recurrent, sequence

_ROW = Recurrent("rnn", gates=1, saves_gates=False)
_cell = cell_of(_ROW)


def _is_relu(name: str, nonlinearity: str) -> bool:
    if nonlinearity not in ("tanh", "relu"):
        raise RuntimeError(f"{name}: Unknown nonlinearity: {nonlinearity!r}; needs 'tanh' or 'relu'")
    return nonlinearity == "relu"


def rnn_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of an Elman network: ``f(input @ w_ih.T + b_ih + hx @ w_hh.T + b_hh)``, as :class:`torch.nn.RNNCell`.

    Args:
        input: ``(B, I)``.
        hx: ``(B, H)``.
        w_ih, w_hh: ``(H, I)`` and ``(H, H)``.
        b_ih, b_hh: ``(H)`` or None.
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Returns:
        The next state ``(B, H)``.

    Raises:
        RuntimeError: shapes do not fit, dtypes or devices differ, or the nonlinearity is unknown.
    """
    return _cell(input, hx, w_ih, w_hh, b_ih, b_hh, _is_relu("rnn_cell", nonlinearity))


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    embedding: Tensor | None = None,
) -> tuple[Tensor | PackedSequence, Tensor]:
    """A stack of Elman layers over whole sequences, as :class:`torch.nn.RNN`; one node of the autograd graph.

    Args:
        input: ``(T, B, I)``, ``(B, T, I)`` with ``batch_first``, ``(T, I)`` unbatched, or a PackedSequence.
        hx: ``(layers * directions, B, H)`` or None for zeros.
        weights: for each layer and direction w_ih, w_hh and, or without, b_ih, b_hh: the order of ``RNN._flat_weights``.
        dropout: probability between layers while ``training``.
        embedding: ``(rows, I)``; ``input`` then has integers, each a row of it, in its form without the last dimension. As
            :func:`torch.nn.functional.embedding` before, but where ``embedding`` is the smaller one, W_ih is multiplied
            with it and not with every step's input.

    Returns:
        The last layer's states ``(T, B, directions * H)``, in the form of ``input``, and the last states, shaped as hx.

    Raises:
        IndexError: ``input`` names a row that ``embedding`` does not have.
        RuntimeError: shapes do not fit, dtypes or devices differ, or the nonlinearity is unknown.
    """
    return sequence(
        _ROW,
        input,
        hx,
        weights,
        _is_relu("rnn", nonlinearity),
        bidirectional,
        batch_first,
        dropout,
        training,
        embedding,
    )


#: The gradient of relu jumps where a sum is 0, and no tolerance holds for a sum nearer to 0 than rounding moves it. Of 200
#: seeds this one keeps the positive states of the small samples farthest from 0.
_RELU_SEED = 41


def _samples(make, dtype, device) -> Iterator[Sample]:
    yield from make(_ROW, dtype, device)
    yield from (
        Sample(f"relu: {s.name}", s.args, s.kwargs, s.differentiable)
        for s in make(_ROW, dtype, device, _RELU_SEED, nonlinearity="relu")
    )


def _reference(function, *args, **keywords):
    with backend("torch"):
        return function(*args, **keywords)


register(
    OpSpec(
        name="rnn_cell",
        row="rnn",
        function=rnn_cell,
        reference=partial(_reference, rnn_cell),
        kernels=_ROW.kernels[0],
        samples=partial(_samples, samples.cell_samples),
        errors=samples.cell_errors(_ROW),
        flops=samples.cell_flops(_ROW),
        bench=(samples.cell_case(_ROW, 1, 4, 4), samples.cell_case(_ROW, 64, 100, 100)),
    )
)
register(
    OpSpec(
        name="rnn",
        row="rnn",
        function=rnn,
        reference=partial(_reference, rnn),
        kernels=_ROW.kernels[1],
        samples=partial(_samples, samples.sequence_samples),
        errors=samples.sequence_errors(_ROW),
        flops=samples.sequence_flops(_ROW),
        bench=(samples.sequence_case(_ROW, 5, 1, 4, 4), samples.sequence_case(_ROW, 32, 64, 128, 128)),
    )
)
