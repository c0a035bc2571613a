"""Every layer of torchsmith.nn, small: what the tests of autograd and of modes go through."""

import pytest

#: layer -> positional arguments, others, shape of an input
MODULES = {
    "Conv2d": ((2, 3, 3), {"padding": 1}, (2, 2, 6, 5)),
    "Conv2dReLU": ((2, 3, 3), {}, (2, 2, 6, 5)),
    "Conv2dReLUMaxPool2d": ((2, 3, 3), {}, (2, 2, 6, 6)),
    "MaxPool2d": ((2,), {}, (2, 3, 6, 4)),
    "AvgPool2d": ((3, 1, 1), {}, (30, 30, 6, 4)),
    "Linear": ((5, 3), {}, (2, 5)),
    "LinearReLU": ((5, 3), {}, (2, 5)),
    "RNNCell": ((5, 3), {}, (2, 5)),
    "GRUCell": ((5, 3), {}, (2, 5)),
    "RNN": ((5, 3), {"num_layers": 2}, (4, 2, 5)),
    "GRU": ((5, 3), {"num_layers": 2, "bidirectional": True}, (4, 2, 5)),
}
POOLS = ("MaxPool2d", "AvgPool2d")  #: without parameters
EVERY = pytest.mark.parametrize("name", MODULES)
