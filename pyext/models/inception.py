"""The course's Inception network for 28x28 digits::

x [N, 1, 28, 28] -> conv 5x5 -> max pool 2 -> ReLU -> InceptionA    [N, 88, 12, 12]
                 -> conv 5x5 -> max pool 2 -> ReLU -> InceptionA    [N, 88, 4, 4]
                 -> flatten -> linear                               [N, 10] logits

InceptionA concatenates four views of its input, 16 + 24 + 24 + 24 channels, without ReLU::

1x1 (16)      1x1 (16) -> 5x5 (24)      1x1 (16) -> 3x3 (24) -> 3x3 (24)      average pool 3 -> 1x1 (24)
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn

from torchsmith import nn as ours

__all__ = ["InceptionA", "MnistInception"]


class InceptionA(nn.Module):
    """Four convolutional branches of one input, side by side: [N, C, H, W] to [N, 88, H, W].

    Args:
        in_channels: C.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    #: Channels of the result, whatever the input has.
    out_channels = 88

    def __init__(self, in_channels: int, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.pool = layers.AvgPool2d(3, stride=1, padding=1)
        self.branch_pool = layers.Conv2d(in_channels, 24, 1)
        self.branch1x1 = layers.Conv2d(in_channels, 16, 1)
        self.branch5x5_1 = layers.Conv2d(in_channels, 16, 1)
        self.branch5x5_2 = layers.Conv2d(16, 24, 5, padding=2)
        self.branch3x3_1 = layers.Conv2d(in_channels, 16, 1)
        self.branch3x3_2 = layers.Conv2d(16, 24, 3, padding=1)
        self.branch3x3_3 = layers.Conv2d(24, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, 88, H, W]."""
        branches = (
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3_3(self.branch3x3_2(self.branch3x3_1(x))),
            self.branch_pool(self.pool(x)),
        )
        return torch.cat(branches, 1)


class MnistInception(nn.Module):
    """The course's Inception network: 97,298 parameters, in ``conv1``, ``conv2``, ``incep1``, ``incep2``, ``fc``.

    As in :class:`MnistCNN`, pooling before ReLU (the course's order) and after it are equal.

    Args:
        channels: of an image; 1, or 3 for colours.
        side: rows and columns of an image, at least 16; with 28 the linear layer has 1,408 inputs.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, channels: int = 1, side: int = 28, *, layers: ModuleType = ours) -> None:
        super().__init__()
        if side < 16:
            raise ValueError(f"MnistInception: side: expected at least 16, got {side}")
        after = ((side - 4) // 2 - 4) // 2  # each 5x5 takes 4 away, each pool halves
        self.conv1 = layers.Conv2dReLUMaxPool2d(channels, 10, 5)
        self.conv2 = layers.Conv2dReLUMaxPool2d(InceptionA.out_channels, 20, 5)
        self.incep1 = InceptionA(10, layers=layers)
        self.incep2 = InceptionA(20, layers=layers)
        self.fc = layers.Linear(InceptionA.out_channels * after * after, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, channels, side, side] to logits [N, 10]."""
        x = self.incep1(self.conv1(x))
        x = self.incep2(self.conv2(x))
        return self.fc(x.flatten(1))
