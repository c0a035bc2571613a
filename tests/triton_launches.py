"""What is kept of a launch and launched again, on a driver that is not there: run by test_triton.py.

The kernels are compiled to machine code, and the driver's launcher writes down what it would have launched.
"""

from types import SimpleNamespace

import pytest
import torch
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from torchsmith import triton_backend
from torchsmith.kernels import _gemm, _shared, linear, maxpool2d

SEEN = SimpleNamespace(launches=[], bound=0)  # one for all tests: a kernel compiled for one is launched by the next


@pytest.fixture
def device(monkeypatch):
    """A GPU of which only the launches can be seen, and how many of them the JIT bound."""
    seen = SEEN
    seen.launches, seen.bound = [], 0

    class Launcher:
        def __init__(self, src, metadata):
            self.name = metadata.name

        def __call__(self, x, y, z, stream, function, metadata, launch_metadata, enter, leave, *args):
            seen.launches.append((self.name, (x, y, z), args))

    utils = SimpleNamespace(
        load_binary=lambda *a: (object(), 1, 32, 0, 1024), unload_module=lambda module: None,
        get_device_properties=lambda d: {"max_shared_mem": 227 * 1024},
    )  # fmt: skip
    fake = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda d: 0, launcher_cls=Launcher, utils=utils,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )  # fmt: skip
    run = JITFunction.run

    def counted(self, *args, **keywords):
        seen.bound += 1
        return run(self, *args, **keywords)

    driver.set_active(fake)
    monkeypatch.setattr(JITFunction, "run", counted)
    _shared._ready.clear()
    yield seen
    _shared._ready.clear()


def same(a, b):
    return a is b or (not isinstance(a, torch.Tensor) and type(a) is type(b) and a == b)


def test_the_second_launch_is_the_first_without_the_jit(device):
    x, w, b, y = (torch.randn(*size, dtype=torch.float16) for size in ((70, 33), (40, 33), (40,), (70, 40)))
    x2, y2 = torch.randn_like(x), torch.empty_like(y)
    linear.forward(y, x, w, b, True)
    linear.forward(y2, x2, w, b, True)
    (name, grid, first), (name2, grid2, second) = device.launches
    assert device.bound == 1 and (name, grid) == (name2, grid2)
    names = _gemm.gemm_kernel.arg_names
    assert len(first) == len(second) == len(names)
    of_x, of_y = names.index("a_ptr"), names.index("c_ptr")
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        where = {of_x: x2, names.index("mask_ptr"): x2, names.index("sums_ptr"): x2, of_y: y2}
        if i in where:  # views of the tensors given, at their places
            assert other.data_ptr() == where[i].data_ptr(), names[i]
        elif isinstance(one, torch.Tensor):
            assert one.data_ptr() == other.data_ptr(), names[i]
        else:
            assert same(one, other), names[i]


@pytest.mark.parametrize(
    "change",
    [
        lambda x, w: (x[1:], w),  # 33 halves on: no multiple of 16 bytes
        lambda x, w: (x[:32], w),  # M becomes a multiple of 16
        lambda x, w: (x.float(), w.float()),
        lambda x, w: (x[:, :16].contiguous(), w[:, :16].contiguous()),
    ],
    ids=["alignment", "size", "dtype", "inner size"],
)
def test_what_needs_other_code_is_bound_anew(device, change):
    x, w = torch.randn(70, 33, dtype=torch.float16), torch.randn(40, 33, dtype=torch.float16)
    for a, b in ((x, w), change(x, w), (x, w), change(x, w)):
        linear.forward(a.new_empty(len(a), 40), a, b, None, False)
    assert device.bound == 2 and len(device.launches) == 4
    assert [grid for _, grid, _ in device.launches[:2]] == [grid for _, grid, _ in device.launches[2:]]


def test_a_configuration_measured_later_brings_its_own_grid(device):
    a, b, c = torch.randn(200, 32), torch.randn(32, 200), torch.empty(200, 200)
    keys = []

    def attempt(kernel, arguments, runners):
        keys.append((kernel, arguments))
        return list(runners)[0]

    triton_backend.use_configurations({}, attempt)
    _gemm.gemm(a, b, c)
    for config in _gemm.CONFIGS:
        triton_backend.use_configurations({keys[0]: config.label})
        for _ in range(2):
            _gemm.gemm(a, b, c)
            _, grid, args = device.launches[-1]
            assert grid == (-(-200 // config["BM"]), -(-200 // config["BN"]), 1)
            assert args[_gemm.gemm_kernel.arg_names.index("BM")] == config["BM"]
    triton_backend.use_configurations({})


def test_an_empty_launch_is_none(device):
    y, position = torch.empty(0, 1, 2, 2), torch.empty(0, 1, 2, 2, dtype=torch.uint8)
    maxpool2d.forward((y, position), torch.empty(0, 1, 4, 4), [2, 2], [2, 2], [0, 0], [1, 1], False)
    assert not device.launches


def test_lengths_that_never_repeat_do_not_fill_the_memory(device, monkeypatch):
    monkeypatch.setattr(_shared, "KEPT", 3)
    w = torch.randn(4, 8)
    for rows in range(17, 27):
        linear.forward(torch.empty(rows, 4), torch.randn(rows, 8), w, None, False)
    assert len(_shared._ready) <= 3 and len(device.launches) == 10
