"""Every op of the specs on its benchmark shapes, forward without grad and forward with backward, against native."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import torchsmith  # noqa: F401  (declares the ops)
from torchsmith.bench import harness, suite
from torchsmith.spec import all_specs

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")


def jobs() -> Iterator[suite.Job]:
    for spec in all_specs():
        for case in spec.bench:
            for mode in ("forward", "forward+backward"):

                def pair(dtype, spec=spec, case=case, mode=mode):
                    return harness.op_pair(spec, case, mode, dtype)

                def flops(dtype, spec=spec, case=case):
                    return spec.flops(case.make(dtype, torch.device("cpu")))

                # A backward's operations depend on which gradients are asked for: counted for forward alone.
                counted = flops if mode == "forward" else None
                yield suite.Job(spec.name, case.label, mode, pair, counted, dtypes=tuple(spec.dtypes))


@pytest.mark.benchmark(timer=suite.clock)
def test_op(job, measure):
    measure(job)
