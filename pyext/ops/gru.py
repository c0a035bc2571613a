"""gru cell and sequence.   Formulas: csrc/contract/gru.h, kernels: csrc/cpu/gru.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ..dispatch import backend
from ..spec import OpSpec, register
from . import _recurrent_samples as samples
from ._cell import cell_of
from ._recurrent import Recurrent, sequence

_ROW = Recurrent("gru", gates=3, saves_gates=True)
_cell = cell_of(_ROW)


def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Tensor:
    """One step of a gated recurrent unit, as :class:`torch.nn.GRUCell`.

    ``r, z = sigmoid(...)``, ``n = tanh(W_in x + b_in + r * (W_hn h + b_hn))``, ``h' = (1 - z) * n + z * h``.

    Args:
        input: ``(B, I)``.
        hx: ``(B, H)``.
        w_ih, w_hh: ``(3 * H, I)`` and ``(3 * H, H)``, the gates in the order r, z, n.
        b_ih, b_hh: ``(3 * H)`` or None.

    Returns:
        The next state ``(B, H)``.

    Raises:
        RuntimeError: shapes do not fit, or dtypes or devices differ.
    """
    return _cell(input, hx, w_ih, w_hh, b_ih, b_hh, False)


def gru(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    embedding: Tensor | None = None,
) -> tuple[Tensor | PackedSequence, Tensor]:
    """A stack of GRU layers over whole sequences, as :class:`torch.nn.GRU`; one node of the autograd graph.

    Args:
        input: ``(T, B, I)``, ``(B, T, I)`` with ``batch_first``, ``(T, I)`` unbatched, or a PackedSequence.
        hx: ``(layers * directions, B, H)`` or None for zeros.
        weights: for each layer and direction w_ih, w_hh and, or without, b_ih, b_hh: the order of ``GRU._flat_weights``.
        dropout: probability between layers while ``training``.
        embedding: ``(rows, I)``; ``input`` then has integers, each a row of it, in its form without the last dimension. As
            :func:`torch.nn.functional.embedding` before, but where ``embedding`` is the smaller one, W_ih is multiplied
            with it and not with every step's input.

    Returns:
        The last layer's states ``(T, B, directions * H)``, in the form of ``input``, and the last states, shaped as hx.

    Raises:
        IndexError: ``input`` names a row that ``embedding`` does not have.
        RuntimeError: shapes do not fit, or dtypes or devices differ.
    """
    return sequence(_ROW, input, hx, weights, False, bidirectional, batch_first, dropout, training, embedding)


def _reference(function, *args, **keywords):
    with backend("torch"):
        return function(*args, **keywords)


register(
    OpSpec(
        name="gru_cell",
        row="gru",
        function=gru_cell,
        reference=partial(_reference, gru_cell),
        kernels=_ROW.kernels[0],
        samples=partial(samples.cell_samples, _ROW),
        errors=samples.cell_errors(_ROW),
        flops=samples.cell_flops(_ROW),
        bench=(samples.cell_case(_ROW, 256, 100, 100),),
    )
)
register(
    OpSpec(
        name="gru",
        row="gru",
        function=gru,
        reference=partial(_reference, gru),
        kernels=_ROW.kernels[1],
        samples=partial(samples.sequence_samples, _ROW),
        errors=samples.sequence_errors(_ROW),
        flops=samples.sequence_flops(_ROW),
        bench=(
            samples.sequence_case(_ROW, 19, 256, 100, 100, 2, 2, lengths=True),
            samples.sequence_case(_ROW, 19, 256, 100, 100, 2, 2),
            samples.sequence_case(_ROW, 32, 64, 1024, 1024),
        ),
    )
)
