"""The course's multilayer perceptron for 28x28 digits::

x [N, 784] -> 512 -> 256 -> 128 -> 64 -> 10     linear, with ReLU between; [N, 10] logits
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from torchsmith import nn as ours

__all__ = ["MnistMLP"]


class MnistMLP(nn.Module):
    """The course's MLP: 575,050 parameters, named ``l1`` to ``l5`` (weight and bias each).

    Args:
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.l1 = layers.LinearReLU(784, 512)
        self.l2 = layers.LinearReLU(512, 256)
        self.l3 = layers.LinearReLU(256, 128)
        self.l4 = layers.LinearReLU(128, 64)
        self.l5 = layers.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 28, 28], or their pixels [N, 784], to logits [N, 10]."""
        return self.l5(self.l4(self.l3(self.l2(self.l1(x.flatten(1))))))
