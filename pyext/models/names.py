"""The course's classifier of family names by country::

characters [N, T] -> packed -> embedding [rows, 100] -> 2-layer bidirectional GRU(100)
                  -> the last layer's two final states, side by side [N, 200] -> linear [N, 18] logits
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from torchsmith import nn as ours
from torchsmith.packed import pack_padded_sequence

__all__ = ["NameGRU"]


class NameGRU(nn.Module):
    """The course's GRU: 318,818 parameters, in ``embedding``, ``gru`` and ``fc``.

    Args:
        characters: number of different character codes; the course takes ASCII.
        hidden_size: size of an embedding and of a state.
        classes: number of countries.
        num_layers: GRU layers, each reading the states of the one before.
        bidirectional: read each name in both directions.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(
        self,
        characters: int = 128,
        hidden_size: int = 100,
        classes: int = 18,
        num_layers: int = 2,
        bidirectional: bool = True,
        *,
        layers: ModuleType = ours,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, hidden_size)
        self.gru = layers.GRU(hidden_size, hidden_size, num_layers, bidirectional=bidirectional)
        self.fc = layers.Linear(hidden_size * (2 if bidirectional else 1), classes)

    def forward(self, indices: Tensor, lengths: Tensor | Sequence[int]) -> Tensor:
        """Names to logits [N, classes].

        Args:
            indices: [N, T], integer: a name's character codes a row, then anything; the longest name first.
            lengths: [N], integer: the number of characters of each name, 1 to T, descending.

        Raises:
            ValueError: ``indices`` is not [N, T], or a length exceeds T.
            IndexError: a code is outside [0, characters).
            RuntimeError: lengths are not descending, not positive or not N, or there are no names.
        """
        if indices.dim() != 2:
            raise ValueError(f"NameGRU: indices must be [batch, time], got {list(indices.shape)}")
        lengths = torch.as_tensor(lengths, device="cpu")  # where pack_padded_sequence wants them
        if not torch.compiler.is_compiling() and lengths.numel() and int(lengths.max()) > indices.shape[1]:
            raise ValueError(f"NameGRU: a length is {int(lengths.max())}, but indices have {indices.shape[1]} columns")
        directions = 2 if self.gru.bidirectional else 1
        # The default, in so many words: a tracer learns the batch from it.
        hx = self.embedding.weight.new_zeros(self.gru.num_layers * directions, indices.shape[0], self.gru.hidden_size)
        if isinstance(self.gru, ours.GRU):  # looks the rows up itself
            _, states = self.gru(pack_padded_sequence(indices.t(), lengths), hx, embedding=self.embedding.weight)
        else:
            _, states = self.gru(pack_padded_sequence(self.embedding(indices.t()), lengths), hx)
        last = torch.cat((states[-1], states[-2]), 1) if self.gru.bidirectional else states[-1]  # the course's order
        return self.fc(last)
