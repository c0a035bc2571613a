"""Shapes at which max_pool2d's CUDA kernels take other ways than on the samples of its spec."""

import torch

from torchsmith.spec import Sample


def samples(dtype):
    def make(*shape):
        count = torch.Size(shape).numel()
        return (torch.randperm(count).reshape(shape) - count // 2).to(dtype) * (1 if dtype.itemsize == 2 else 0.25)

    def last(t):
        return t.contiguous(memory_format=torch.channels_last)

    yield Sample("2x2 whole chunks", (make(2, 3, 4, 32), 2))
    yield Sample("2x2 not whole chunks", (make(2, 3, 4, 36), 2))
    yield Sample("2x2 off the boundary", (make(1, 2, 5, 32)[:, :, 1:], 2))
    yield Sample("chunks of channels", (last(make(2, 16, 5, 6)), 3, 2, 1))
    yield Sample("channels and a bit", (last(make(2, 17, 5, 6)), 3, 2, 1))
    yield Sample("window of 289, channels_last", (last(make(1, 8, 20, 19)), (17, 17), 1))
    yield Sample("one channel, channels_last", (last(make(2, 1, 6, 6)), 2))
    ties = last(torch.zeros(2, 8, 6, 6, dtype=dtype))
    ties[0, 3, 1, 1], ties[0, 3, 0, 1], ties[1] = float("nan"), float("nan"), -float("inf")
    yield Sample("ties, nan and inf of channels", (ties, 3, 2, 1), differentiable=False)
    flat = make(1, 2, 4, 32)
    flat[0, 0, 0, 0], flat[0, 0, 1, 1], flat[0, 1] = float("nan"), float("nan"), -float("inf")
    yield Sample("ties, nan and inf in pairs", (flat, 2), differentiable=False)
