"""The names of :mod:`torchsmith.nn` on plain torch.nn, for comparison: same constructors, parameters and results."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import GRU, RNN, AvgPool2d, Conv2d, GRUCell, Linear, MaxPool2d, RNNCell, Sequential

from .nn import PoolArguments

__all__ = [
    "GRU",
    "RNN",
    "AvgPool2d",
    "Conv2d",
    "Conv2dReLU",
    "Conv2dReLUMaxPool2d",
    "GRUCell",
    "Linear",
    "LinearReLU",
    "MaxPool2d",
    "RNNCell",
    "Sequential",
]


class Conv2dReLU(nn.Conv2d):
    """``F.relu(conv2d(input))``."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class Conv2dReLUMaxPool2d(PoolArguments, nn.Conv2d):
    """``F.relu(F.max_pool2d(conv2d(input)))``, the course's order, which is also the cheaper one."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(F.max_pool2d(super().forward(input), self.pool_kernel_size, self.pool_stride, self.pool_padding))


class LinearReLU(nn.Linear):
    """``F.relu(linear(input))``."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))
