"""The course's residual network for 28x28 digits::

x [N, 1, 28, 28] -> conv 5x5 -> ReLU -> max pool 2 -> residual block    [N, 16, 12, 12]
                 -> conv 5x5 -> ReLU -> max pool 2 -> residual block    [N, 32, 4, 4]
                 -> flatten -> linear                                   [N, 10] logits

A block is y = relu(x + conv2(relu(conv1(x)))), both convolutions 3x3 of as many channels as x. The exercise on identity
mappings (He et al. 2016, "Identity Mappings in Deep Residual Networks", figure 2) changes the sum:

plain               relu(x + F(x))
constant-scaling    relu(0.5 x + 0.5 F(x))
conv-shortcut       relu(conv1x1(x) + F(x))

The model of the same size without sums (Huang et al. 2017, "Densely Connected Convolutional Networks") has dense blocks:
each convolution sees all that stands before it, and its channels are put behind them.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchsmith import nn as ours

__all__ = ["BLOCKS", "DenseBlock", "MnistDenseNet", "MnistResNet", "ResidualBlock"]

#: Kinds of residual blocks.
BLOCKS = ("plain", "constant-scaling", "conv-shortcut")


class ResidualBlock(nn.Module):
    """``relu(x + conv2(relu(conv1(x))))``: [N, C, H, W] to the same shape.

    Args:
        channels: C.
        kind: one of :data:`BLOCKS`, see the module.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, channels: int, kind: str = "plain", *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.conv1 = layers.Conv2dReLU(channels, channels, 3, padding=1)
        self.conv2 = layers.Conv2d(channels, channels, 3, padding=1)
        if kind not in BLOCKS:
            raise ValueError(f"ResidualBlock: kind: expected one of {', '.join(BLOCKS)}, got {kind}")
        self.kind = kind
        if kind == "conv-shortcut":
            self.shortcut = layers.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to the same shape."""
        y = self.conv2(self.conv1(x))
        if self.kind == "constant-scaling":
            return F.relu(0.5 * x + 0.5 * y)
        y += self.shortcut(x) if self.kind == "conv-shortcut" else x  # y is nobody else's: two tensors less
        return F.relu(y, inplace=True)


class MnistResNet(nn.Module):
    """The course's residual network: 41,514 parameters, in ``conv1``, ``conv2``, ``rblock1``, ``rblock2``, ``fc``.

    Args:
        block: kind of the blocks, one of :data:`BLOCKS`.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, block: str = "plain", *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.conv1 = layers.Conv2dReLUMaxPool2d(1, 16, 5)
        self.conv2 = layers.Conv2dReLUMaxPool2d(16, 32, 5)
        self.rblock1 = ResidualBlock(16, block, layers=layers)
        self.rblock2 = ResidualBlock(32, block, layers=layers)
        self.fc = layers.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 28, 28] to logits [N, 10]."""
        x = self.rblock1(self.conv1(x))
        x = self.rblock2(self.conv2(x))
        return self.fc(x.flatten(1))


class DenseBlock(nn.Module):
    """Three 3x3 convolutions with ReLU, each of all channels before it: [N, C, H, W] to [N, C + 3 growth, H, W].

    Args:
        channels: C.
        growth: channels that each convolution adds.
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, channels: int, growth: int, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.conv1 = layers.Conv2dReLU(channels, growth, 3, padding=1)
        self.conv2 = layers.Conv2dReLU(channels + growth, growth, 3, padding=1)
        self.conv3 = layers.Conv2dReLU(channels + 2 * growth, growth, 3, padding=1)
        self.out_channels = channels + 3 * growth

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to [N, out_channels, H, W]."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = torch.cat((x, conv(x)), 1)
        return x


class MnistDenseNet(nn.Module):
    """The residual network with dense blocks in place of the residual ones: 39,078 parameters.

    Args:
        layers: module that offers the layers: ``torchsmith.nn`` (default) or ``torchsmith.native_nn``.
    """

    def __init__(self, *, layers: ModuleType = ours) -> None:
        super().__init__()
        self.conv1 = layers.Conv2dReLUMaxPool2d(1, 16, 5)
        self.dense1 = DenseBlock(16, 8, layers=layers)
        self.conv2 = layers.Conv2dReLUMaxPool2d(self.dense1.out_channels, 16, 5)
        self.dense2 = DenseBlock(16, 12, layers=layers)
        self.fc = layers.Linear(self.dense2.out_channels * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 28, 28] to logits [N, 10]."""
        x = self.dense1(self.conv1(x))
        x = self.dense2(self.conv2(x))
        return self.fc(x.flatten(1))
