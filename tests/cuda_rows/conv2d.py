"""Shapes at which conv2d's CUDA kernels take other ways than on the samples of its spec."""

import torch

from torchsmith.spec import Sample


def samples(dtype):
    def make(*shape):
        return torch.randn(shape, dtype=dtype)

    def last(t):
        return t.contiguous(memory_format=torch.channels_last)

    def case(name, x, w, **keywords):
        return Sample(name, (make(*x), make(*w), make(w[0])), keywords)

    yield case("large tiles, ragged", (1, 66, 12, 11), (65, 66, 1, 1))
    yield case("1x1, whole chunks", (2, 17, 4, 8), (9, 17, 1, 1))
    yield case("weights of whole chunks", (1, 8, 5, 7), (9, 8, 3, 3), padding=1)
    yield case("taps in shares", (1, 130, 4, 3), (3, 130, 2, 2))
    yield case("cells in shares", (2, 2, 24, 25), (3, 2, 2, 2))
    x = last(make(2, 8, 6, 5))
    yield Sample("channels_last, 3x3", (x, make(10, 8, 3, 3), make(10)), {"padding": 1})
