"""Packing and unpacking sequences of different lengths, also inside compiled and exported graphs.

``torch.nn.utils.rnn``'s functions of these names break a graph that torch.compile traces. The ones here are those functions
in eager mode, and under a tracer the same in ops that it can trace; the number of rows is then a size that the graph finds
when it runs (``torch.compile(fullgraph=True)`` and ``torch.export`` allow such sizes).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["pack_padded_sequence", "pad_packed_sequence"]


def pack_padded_sequence(
    input: Tensor, lengths: Tensor | Sequence[int], batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """:func:`torch.nn.utils.rnn.pack_padded_sequence`, traceable.

    Args:
        input: ``(T, B, *)``, or ``(B, T, *)`` with ``batch_first``.
        lengths: ``(B)``, integers from 1 to T on the CPU; descending unless ``enforce_sorted`` is False.

    Raises:
        RuntimeError: lengths do not fit. A compiled graph says so when it runs.
    """
    if not torch.compiler.is_compiling():
        return rnn.pack_padded_sequence(input, lengths, batch_first, enforce_sorted)
    lengths = torch.as_tensor(lengths, dtype=torch.int64)
    if batch_first:
        input = input.transpose(0, 1)
    descending, order = torch.sort(lengths, descending=True)
    # Compared as a whole: of a slice a tracer would ask whether its size is 1.
    fits = (descending >= 1) & (descending <= input.shape[0])
    if enforce_sorted:
        fits, order = fits & (descending == lengths), None
    else:
        lengths, order = descending, order.to(input.device)
        input = input.index_select(1, order)
    torch._assert_async(
        fits.all(), "pack_padded_sequence: lengths: expected 1 to T for each sequence, in descending order"
    )
    steps = torch.arange(input.shape[0])
    there = steps.unsqueeze(1) < lengths  # (T, B): whether sequence b has a step t
    rows = there.flatten().nonzero().squeeze(1)
    data = input.flatten(0, 1).index_select(0, rows.to(input.device))
    sizes = there.sum(1)
    return PackedSequence(data, sizes[sizes > 0], order, None if order is None else torch.argsort(order))


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`torch.nn.utils.rnn.pad_packed_sequence`, traceable.

    Args:
        sequence: B sequences, the longest of T steps.
        padding_value: what stands where a sequence has ended.
        total_length: steps of the result, at least T; T by default.

    Returns:
        ``(T, B, *)``, or ``(B, T, *)`` with ``batch_first``, and the lengths ``(B)``.

    Raises:
        ValueError: ``total_length`` is less than T.
    """
    if not torch.compiler.is_compiling():
        return rnn.pad_packed_sequence(sequence, batch_first, padding_value, total_length)
    data, sizes, order, unsorted = sequence
    batch = order.shape[0] if order is not None else sizes[0].item()
    steps = sizes.shape[0] if total_length is None else total_length
    if total_length is not None:
        missing = total_length - sizes.shape[0]
        torch._check(missing >= 0, lambda: "pad_packed_sequence: total_length is less than the longest sequence")
        sizes = torch.cat((sizes, sizes.new_zeros(missing)))
    there = torch.arange(batch) < sizes.unsqueeze(1)  # (T, B)
    rows = there.flatten().nonzero().squeeze(1)
    torch._check(rows.shape[0] == data.shape[0])
    padded = data.new_full((steps * batch, *data.shape[1:]), padding_value).index_copy(0, rows.to(data.device), data)
    padded, lengths = padded.unflatten(0, (steps, batch)), there.sum(0)
    if unsorted is not None:
        padded, lengths = padded.index_select(1, unsorted), lengths[unsorted.to(lengths.device)]
    return padded.transpose(0, 1) if batch_first else padded, lengths
