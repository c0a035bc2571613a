"""The course's convolutional network for 28x28 digits::

x [N, 1, 28, 28] -> conv 5x5 -> max pool 2 -> ReLU   [N, 10, 12, 12]
                 -> conv 5x5 -> max pool 2 -> ReLU   [N, 20, 4, 4]
                 -> flatten -> linear                [N, 10] logits
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from torchsmith import nn as ours

__all__ = ["MnistCNN"]


class MnistCNN(nn.Module):
    """The course's CNN: 8,490 parameters, named ``conv1``, ``conv2``, ``fc`` (weight and bias each).

    The course pools first and applies ReLU after. Both orders give equal values, since ReLU is monotonic, so the layer
    that fuses convolution, ReLU and pooling computes the same function.

    Args:
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.conv1 = layers.Conv2dReLUMaxPool2d(1, 10, 5)
        self.conv2 = layers.Conv2dReLUMaxPool2d(10, 20, 5)
        self.fc = layers.Linear(320, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 28, 28] to logits [N, 10]."""
        return self.fc(self.conv2(self.conv1(x)).flatten(1))
