"""The course's models of character sequences: "hello" taught to three of them, and a language model."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchsmith import nn as ours

__all__ = ["CharGRU", "HelloEmbedding", "HelloRNN", "HelloRNNCell"]


def _read(
    embedding: nn.Embedding, layer: nn.RNNBase, indices: Tensor, hx: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``layer(embedding(indices), hx)``; torchsmith's layers look the rows up themselves."""
    if isinstance(layer, (ours.RNN, ours.GRU)):
        return layer(indices, hx, embedding=embedding.weight)
    return layer(embedding(indices), hx)


class HelloRNNCell(nn.Module):
    """A cell stepped over one-hot characters; its states are the logits: 40 parameters, in ``cell``.

    Args:
        characters: number of different characters, the size of input and state.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, characters: int = 4, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.cell = layers.RNNCell(characters, characters)

    def forward(self, indices: Tensor) -> Tensor:
        """Characters [N, T], integer, to logits of the next ones [N, T, characters]."""
        one_hot = F.one_hot(indices, self.cell.input_size).to(self.cell.weight_ih.dtype)
        state, states = None, []
        for step in one_hot.unbind(1):
            state = self.cell(step, state)
            states.append(state)
        return torch.stack(states, 1)


class HelloRNN(nn.Module):
    """The same with the whole sequence as one op: 40 parameters, in ``rnn``.

    Args:
        characters: number of different characters, the size of input and state.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, characters: int = 4, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.rnn = layers.RNN(characters, characters)

    def forward(self, indices: Tensor) -> Tensor:
        """Characters [N, T], integer, to logits of the next ones [N, T, characters]."""
        one_hot = F.one_hot(indices.t(), self.rnn.input_size).to(self.rnn.weight_ih_l0.dtype)
        return self.rnn(one_hot)[0].transpose(0, 1)


class HelloEmbedding(nn.Module):
    """Embedding(4, 10), 2 recurrent layers of 8, linear to 4 logits: ``emb``, ``rnn``, ``fc``.

    Args:
        characters: number of different characters.
        cell: ``rnn`` (380 parameters in the whole model) or ``gru``.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, characters: int = 4, cell: str = "rnn", *, layers: ModuleType = ours) -> None:
        super().__init__()
        if cell not in ("rnn", "gru"):
            raise ValueError(f"HelloEmbedding: cell: expected rnn or gru, got {cell}")
        self.emb = nn.Embedding(characters, 10)
        self.rnn = (layers.RNN if cell == "rnn" else layers.GRU)(10, 8, num_layers=2, batch_first=True)
        self.fc = layers.Linear(8, characters)

    def forward(self, indices: Tensor) -> Tensor:
        """Characters [N, T], integer, to logits of the next ones [N, T, characters]."""
        return self.fc(_read(self.emb, self.rnn, indices)[0])


class CharGRU(nn.Module):
    """A character-level language model: embedding, GRU, linear: ``embedding``, ``gru``, ``fc``.

    Args:
        characters: number of different characters.
        hidden_size: size of an embedding and of a state.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, characters: int = 64, hidden_size: int = 128, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, hidden_size)
        self.gru = layers.GRU(hidden_size, hidden_size, batch_first=True)
        self.fc = layers.Linear(hidden_size, characters)

    def forward(self, indices: Tensor) -> Tensor:
        """Characters [N, T], integer, to logits of the next ones [N, T, characters]."""
        return self.fc(_read(self.embedding, self.gru, indices)[0])

    @torch.no_grad()
    def sample(
        self, start: Tensor, length: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Continue ``start`` [T], integer, T >= 1, by ``length`` characters, [length].

        Each is drawn from softmax(logits / temperature); temperature 0 takes the likeliest.
        Raises ValueError for an empty start or a negative temperature.
        """
        if start.dim() != 1 or not len(start):
            raise ValueError(f"start: expected at least 1 character, [T], got {list(start.shape)}")
        if not temperature >= 0:
            raise ValueError(f"temperature: expected at least 0, got {temperature}")
        found, state, step = [], None, start.unsqueeze(0)
        for _ in range(length):
            states, state = _read(self.embedding, self.gru, step, state)
            logits = self.fc(states[:, -1])
            if temperature == 0:
                step = logits.argmax(-1, keepdim=True)
            else:
                # On the CPU, where the generator is: the same passage on every device.
                probabilities = (logits.double() / temperature).softmax(-1).cpu()
                step = torch.multinomial(probabilities, 1, generator=generator).to(start.device)
            found.append(step[0])
        return torch.cat(found) if found else start[:0]
