"""A model of our layers trained by several processes, and what its hooks see: as of native ones."""

import socket
import sys

import processes  # noqa: F401  (what its processes have imported, those of forkserver here have, too)
import pytest
import torch
from compare import compare
from torch import multiprocessing as mp
from torch import nn as plain
from torch.utils._pytree import tree_map

from torchsmith import native_nn, nn


class Net(plain.Module):
    def __init__(self, library):
        super().__init__()
        self.images = plain.Sequential(library.Conv2dReLUMaxPool2d(1, 4, 3), plain.Flatten(), library.LinearReLU(36, 8))
        self.sequence = library.GRU(8, 8, batch_first=True)
        self.head = library.Linear(16, 2)

    def forward(self, x):
        rows = self.sequence(x.squeeze(1))[0][:, -1]
        return self.head(torch.cat([self.images(x), rows], 1))


def _data():
    torch.manual_seed(7)
    return torch.randn(8, 1, 8, 8), torch.randn(8, 2)


def _train(model, x, y, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def _wrapped(model, wrapper):
    if wrapper == "ddp":
        return plain.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for part in (model.images, model.sequence, model):
        fully_shard(part, mesh=mesh)
    return model


def _rank(rank, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        x, y = (t[rank * 4 : rank * 4 + 4] for t in _data())
        for wrapper in WRAPPERS:
            for library in (nn, native_nn):
                torch.manual_seed(3)
                model = _wrapped(Net(library), wrapper)
                _train(model, x, y)
                whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
                if rank == 0:
                    queue.put((wrapper, [p.detach().tolist() for p in whole]))
    finally:
        torch.distributed.destroy_process_group()


try:
    from torch.distributed.fsdp import fully_shard as _fully_shard  # noqa: F401

    WRAPPERS = ("ddp", "fsdp2")
except ImportError:
    WRAPPERS = ("ddp",)


@pytest.fixture
def trained_in_parallel():
    """wrapper -> parameters after training in two processes over gloo: (ours, native's)."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available() or sys.platform == "win32":
        pytest.skip("this torch has no gloo")
    queue = mp.get_context("forkserver").SimpleQueue()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(_rank, (port, queue), nprocs=2, start_method="forkserver")
    found = {}
    for _ in range(2 * len(WRAPPERS)):
        wrapper, parameters = queue.get()
        found.setdefault(wrapper, []).append([torch.tensor(p) for p in parameters])
    return found


def test_data_parallel(trained_in_parallel):
    """Three steps with momentum in two processes leave the parameters that one process leaves on the whole batch."""
    x, y = _data()
    alone = []
    for library, dtype in ((nn, torch.float32), (native_nn, torch.float64)):
        torch.manual_seed(3)
        model = Net(library).to(dtype)
        _train(model, x.to(dtype), y.to(dtype))
        alone.append([p.detach() for p in model.parameters()])
    assert set(trained_in_parallel) == set(WRAPPERS)
    for ours, native in trained_in_parallel.values():
        for a, b, whole, exact in zip(ours, native, *alone, strict=True):
            torch.testing.assert_close(a, whole, rtol=1e-4, atol=1e-5)
            compare(a, b, exact)


def test_hooks_see_the_modules():
    """Forward and backward hooks fire with what native's hand them, module by module."""
    seen = []
    for library in (nn, native_nn):
        torch.manual_seed(3)
        model, calls = Net(library), []
        for name, module in model.named_modules():
            if list(module.children()):
                continue
            module.register_full_backward_hook(
                lambda m, gi, go, n=name, c=calls: c.append((n, [None if g is None else g.shape for g in (*gi, *go)]))
            )
            module.register_forward_hook(lambda m, i, o, n=name, c=calls: c.append((n, tree_map(lambda t: t.shape, o))))
        x, y = _data()
        (model(x) - y).square().mean().backward()
        seen.append(sorted(calls, key=str))
    assert seen[0] == seen[1] and len(seen[0]) == 10
