"""Shapes beside the course's: odd sizes, batch 1 to 4096, layers of ResNet-18, VGG and MobileNet, hidden 8 to 1024.

Nobody tuned for these. What is slower than native here is listed in the report.
"""

from __future__ import annotations

import torch

from torchsmith.ops import _recurrent_samples as recurrent
from torchsmith.ops.gru import _ROW as _GRU
from torchsmith.ops.linear import _case as _linear
from torchsmith.ops.rnn import _ROW as _RNN
from torchsmith.spec import BenchCase, Sample

__all__ = ["EXTRA", "PLANS"]


def _conv(n, c, height, width, k, window, stride=1, padding=0, groups=1, dilation=1, **pool) -> BenchCase:
    """A convolution of (n, c, height, width) to k channels."""
    keywords = {"stride": stride, "padding": padding, "groups": groups, "dilation": dilation}
    keywords = {name: value for name, value in keywords.items() if value != (0 if name == "padding" else 1)} | pool

    def make(dtype, device):
        gen = torch.Generator(device).manual_seed(0)

        def new(*shape):
            return torch.randn(shape, dtype=dtype, device=device, generator=gen)

        fan_in = c // groups * window**2
        return Sample(
            "", (new(n, c, height, width), new(k, c // groups, window, window) / fan_in**0.5, new(k)), keywords
        )

    short = {"stride": "s", "padding": "p", "groups": "g", "dilation": "d", "pool_kernel_size": "pool"}
    more = "".join(f" {short[name]}{value}" for name, value in keywords.items())
    return BenchCase(f"{c}->{k} k{window}{more} {height}x{width} b{n}", make)


def _pool(n, c, height, width, window, stride, padding) -> BenchCase:
    def make(dtype, device):
        return Sample("", (torch.randn(n, c, height, width, dtype=dtype, device=device), window, stride, padding))

    return BenchCase(f"k{window} s{stride} p{padding} {n}x{c}x{height}x{width}", make)


#: (op, case). Labels are unique within an op.
EXTRA: tuple[tuple[str, BenchCase], ...] = (
    # ResNet-18
    ("conv2d", _conv(4, 3, 112, 112, 64, 7, stride=2, padding=3)),
    ("conv2d_relu", _conv(1, 64, 56, 56, 64, 3, padding=1)),
    ("conv2d_relu", _conv(4, 64, 56, 56, 128, 3, stride=2, padding=1)),
    ("conv2d", _conv(4, 64, 56, 56, 128, 1, stride=2)),
    ("conv2d_relu", _conv(4, 128, 28, 28, 128, 3, padding=1)),
    ("conv2d_relu", _conv(4, 256, 14, 14, 256, 3, padding=1)),
    ("conv2d_relu", _conv(8, 512, 7, 7, 512, 3, padding=1)),
    # VGG
    ("conv2d_relu", _conv(1, 3, 112, 112, 64, 3, padding=1)),
    ("conv2d_relu_maxpool2d", _conv(2, 64, 56, 56, 64, 3, padding=1, pool_kernel_size=2)),
    ("conv2d_relu_maxpool2d", _conv(2, 128, 28, 28, 256, 3, padding=1, pool_kernel_size=2)),
    # MobileNet: depthwise, then pointwise
    ("conv2d", _conv(4, 32, 56, 56, 32, 3, padding=1, groups=32)),
    ("conv2d", _conv(4, 64, 56, 56, 64, 3, stride=2, padding=1, groups=64)),
    ("conv2d", _conv(8, 256, 14, 14, 256, 3, padding=1, groups=256)),
    ("conv2d_relu", _conv(4, 32, 56, 56, 64, 1)),
    ("conv2d_relu", _conv(8, 256, 14, 14, 512, 1)),
    ("conv2d_relu", _conv(1, 512, 7, 7, 1024, 1)),
    # large images: U-Net, super-resolution, a segmentation head
    ("conv2d_relu", _conv(2, 16, 224, 224, 16, 3, padding=1)),
    ("conv2d_relu", _conv(2, 32, 112, 112, 32, 3, padding=1)),
    ("conv2d_relu_maxpool2d", _conv(2, 3, 224, 224, 32, 3, padding=1, pool_kernel_size=2)),
    ("conv2d", _conv(1, 64, 128, 128, 3, 3, padding=1)),
    ("conv2d", _conv(1, 512, 32, 32, 21, 3, padding=1)),
    # odd sizes, groups, dilation
    ("conv2d", _conv(1, 1, 28, 28, 10, 5)),
    ("conv2d", _conv(7, 13, 17, 19, 11, 3, padding=1)),
    ("conv2d", _conv(33, 7, 9, 31, 5, 2)),
    ("conv2d", _conv(5, 24, 23, 23, 36, 3, padding=1, groups=4)),
    ("conv2d", _conv(3, 17, 29, 29, 19, 3, padding=2, dilation=2)),
    ("conv2d_relu_maxpool2d", _conv(1024, 1, 28, 28, 10, 5, pool_kernel_size=2)),
    ("conv2d_relu_maxpool2d", _conv(3, 5, 27, 27, 9, 4, pool_kernel_size=3)),
    # linear: batch 1 to 4096
    ("linear", _linear(2, 784, 511)),
    ("linear", _linear(1, 1024, 1000)),
    ("linear", _linear(12, 512, 512)),
    ("linear", _linear(4096, 64, 10)),
    ("linear", _linear(4096, 256, 256)),
    ("linear", _linear(3, 5, 7)),
    ("linear", _linear(17, 33, 65)),
    ("linear_relu", _linear(31, 127, 129)),
    ("linear_relu", _linear(513, 511, 257)),
    ("linear_relu", _linear(128, 2048, 100)),
    ("linear_relu", _linear(8, 3000, 3000)),
    # max pooling
    ("max_pool2d", _pool(4, 64, 56, 56, 3, 2, 1)),
    ("max_pool2d", _pool(1, 3, 37, 41, 2, 2, 0)),
    ("max_pool2d", _pool(256, 16, 14, 14, 2, 2, 0)),
    ("max_pool2d", _pool(8, 32, 28, 28, 3, 1, 1)),
    ("max_pool2d", _pool(2, 128, 13, 13, 5, 3, 2)),
    # recurrent: hidden 8 to 1024
    ("rnn_cell", recurrent.cell_case(_RNN, 4096, 16, 32)),
    ("gru_cell", recurrent.cell_case(_GRU, 1, 8, 8)),
    ("gru_cell", recurrent.cell_case(_GRU, 17, 65, 33)),
    ("gru_cell", recurrent.cell_case(_GRU, 64, 512, 1024)),
    ("rnn", recurrent.sequence_case(_RNN, 50, 1, 16, 8)),
    ("rnn", recurrent.sequence_case(_RNN, 25, 7, 30, 129, 2)),
    ("rnn", recurrent.sequence_case(_RNN, 10, 256, 64, 512)),
    ("gru", recurrent.sequence_case(_GRU, 12, 1, 8, 8)),
    ("gru", recurrent.sequence_case(_GRU, 40, 3, 28, 64, 1, 2)),
    ("gru", recurrent.sequence_case(_GRU, 15, 33, 57, 100, 2, 2, lengths=True)),
    ("gru", recurrent.sequence_case(_GRU, 10, 512, 40, 128)),
    ("gru", recurrent.sequence_case(_GRU, 8, 16, 256, 512)),
)

#: What would cure a shape on which ours is the slower one, by label: said beside it in the report.
PLANS: dict[str, str] = {
    "512->512 k3 p1 7x7 b8": "49 cells fill 3.06 vectors: lanes over the cells of several images",
    "256->256 k3 p1 14x14 b4": "196 cells fill 12.25 vectors: lanes over the cells of several images",
    "512->1024 k1 7x7 b1": "49 cells fill 3.06 vectors, and dw is a sum over 49 cells alone: products by channels instead",
    "64->64 k3 p1 56x56 b8": "most loads cross cache lines: expanded rows packed for each tile",
    "64->64 k3 p1 56x56 b1": "most loads cross cache lines: expanded rows packed for each tile",
    "128->128 k3 p1 28x28 b4": "most loads cross cache lines: expanded rows packed for each tile",
    "128->256 k3 p1 pool2 28x28 b2": "most loads cross cache lines: expanded rows packed for each tile",
    "32->64 k1 56x56 b4": "memory-bound: whole lines written past the cache",
    "k2 s2 p0 1x3x37x41": "the call: an autograd node in C++",
    "5->7 b3": "the call: 1 us of checks in Python",
    "33->65 b17": "the call: 1 us of checks in Python",
    "128->64 b64": "the call: 1 us of checks in Python",
    "1024->1000 b1": "dw written past the cache",
}
