"""The course's first models: one weight and a bias, the same behind a sigmoid, and the small MLP for diabetes."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn

from torchsmith import nn as ours

__all__ = ["ACTIVATIONS", "DiabetesMLP", "LinearModel", "LogisticRegression"]

#: Of the exercise: name -> module of torch.nn.
ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class LinearModel(nn.Module):
    """y = w x + b: 2 parameters, in ``linear``.

    Args:
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.linear = layers.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Numbers [N, 1] to numbers [N, 1]."""
        return self.linear(x)


class LogisticRegression(LinearModel):
    """sigmoid(w x + b): numbers [N, 1] to probabilities [N, 1]; arguments and parameters of :class:`LinearModel`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(x))


class DiabetesMLP(nn.Module):
    """Linear 8->6->4->1 with an activation between and a sigmoid at the end: 87 parameters, in ``l1`` to ``l3``.

    Args:
        activation: one of :data:`ACTIVATIONS`.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, activation: str = "relu", *, layers: ModuleType = ours) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"DiabetesMLP: activation: expected one of {', '.join(ACTIVATIONS)}, got {activation}")
        fused = activation == "relu"  # in the linear layer's own pass
        linear = layers.LinearReLU if fused else layers.Linear
        self.l1, self.l2, self.l3 = linear(8, 6), linear(6, 4), layers.Linear(4, 1)
        self.activation = nn.Identity() if fused else ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, 8] to probabilities [N, 1]."""
        x = self.activation(self.l1(x))
        x = self.activation(self.l2(x))
        return torch.sigmoid(self.l3(x))
