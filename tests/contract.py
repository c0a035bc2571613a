"""The samples as the contract tests take them: where they are made, and a readable id for each."""

import os

import pytest
import torch

from torchsmith import contract
from torchsmith.contract import SEED, Call, keeping_layout
from torchsmith.spec import FLOATS, all_specs

__all__ = ["DEVICE", "SEED", "Call", "cases", "keeping_layout", "samples_of"]

#: Where the samples are made; `make gpu` says cuda.
DEVICE = torch.device(os.environ.get("TORCHSMITH_TEST_DEVICE", "cpu"))


def samples_of(spec, dtype):
    return contract.samples_of(spec, dtype, DEVICE)


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
