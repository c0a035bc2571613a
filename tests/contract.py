"""The samples as the contract tests take them: where they are made, and a readable id for each."""

import functools
import os
import zlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchsmith import contract
from torchsmith.contract import SEED, Call, keeping_layout, seed
from torchsmith.spec import FLOATS, all_specs

__all__ = [
    "DEVICE",
    "PLUGINS_OFF",
    "SEED",
    "Call",
    "Record",
    "cases",
    "in_turn",
    "keeping_layout",
    "samples_of",
    "seed",
]

#: Where the samples are made; `make gpu` says cuda.
DEVICE = torch.device(os.environ.get("TORCHSMITH_TEST_DEVICE", "cpu"))

#: For a pytest in a process of its own: it uses none of these, and hypothesis takes seconds to import.
PLUGINS_OFF = [f"-pno:{name}" for name in ("cacheprovider", "hypothesispytest", "xdist", "benchmark")]


def samples_of(spec, dtype):
    """The samples of an op, made once for the tests that follow each other with it; no test changes one."""
    found = _samples_of(spec.name, dtype)
    seed(SEED)  # what a test draws does not depend on whether they were there already
    return found


@functools.lru_cache(maxsize=8)
def _samples_of(name, dtype):
    (spec,) = (spec for spec in all_specs() if spec.name == name)
    return contract.samples_of(spec, dtype, DEVICE)


def in_turn(spec, samples: dict):
    """Of ``samples`` (op -> its samples) those of ``spec`` that are its turn: ops which share their kernels have most samples
    in common, and what does not depend on the op need not be tested on each with each."""
    sharing = {name: {sample.name for sample in those} for name, those in samples.items()}
    found = []
    for sample in samples[spec.name]:
        takers = sorted(name for name, names in sharing.items() if sample.name in names)
        if takers[zlib.crc32(sample.name.encode()) % len(takers)] == spec.name:
            found.append(sample)
    return found


def cases(dtypes=FLOATS, differentiable=False):
    """(spec, dtype, index of the sample) with a readable id, for pytest.mark.parametrize."""
    found = []
    for spec in all_specs():
        for dtype in dtypes:
            if dtype not in spec.dtypes:
                continue
            for index, sample in enumerate(samples_of(spec, dtype)):
                if differentiable and not sample.differentiable:
                    continue
                name = f"{spec.name}-{str(dtype)[6:]}-{sample.name}".replace(" ", "_")
                found.append(pytest.param(spec, dtype, index, id=name))
    return found


class Record(TorchDispatchMode):
    """Keeps the arguments of every native op that a call makes."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "torchsmith":  # what the kernel refuses is not its business: the call goes to ATen
            self.calls.append((func, args, kwargs or {}))
        return result
