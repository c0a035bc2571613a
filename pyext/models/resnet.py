"""The course's residual network for 28x28 digits::

x [N, 1, 28, 28] -> conv 5x5 -> ReLU -> max pool 2 -> residual block    [N, 16, 12, 12]
                 -> conv 5x5 -> ReLU -> max pool 2 -> residual block    [N, 32, 4, 4]
                 -> flatten -> linear                                   [N, 10] logits

A block is y = relu(x + conv2(relu(conv1(x)))), both convolutions 3x3 of as many channels as x.
"""

from __future__ import annotations

from types import ModuleType

import torch.nn.functional as F
from torch import Tensor, nn

from torchsmith import nn as ours

__all__ = ["MnistResNet", "ResidualBlock"]


class ResidualBlock(nn.Module):
    """``relu(x + conv2(relu(conv1(x))))``: [N, C, H, W] to the same shape.

    Args:
        channels: C.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, channels: int, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.conv1 = layers.Conv2dReLU(channels, channels, 3, padding=1)
        self.conv2 = layers.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to the same shape."""
        return F.relu(x + self.conv2(self.conv1(x)))


class MnistResNet(nn.Module):
    """The course's residual network: 41,514 parameters, in ``conv1``, ``conv2``, ``rblock1``, ``rblock2``, ``fc``.

    Args:
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.conv1 = layers.Conv2dReLUMaxPool2d(1, 16, 5)
        self.conv2 = layers.Conv2dReLUMaxPool2d(16, 32, 5)
        self.rblock1 = ResidualBlock(16, layers=layers)
        self.rblock2 = ResidualBlock(32, layers=layers)
        self.fc = layers.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 28, 28] to logits [N, 10]."""
        x = self.rblock1(self.conv1(x))
        x = self.rblock2(self.conv2(x))
        return self.fc(x.flatten(1))
