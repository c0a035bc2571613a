"""Every op of the specs on its benchmark shapes, forward without grad and forward with backward, against native."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch

import torchsmith  # noqa: F401  (declares the ops)
from torchsmith.bench import pairs, suite
from torchsmith.spec import BenchCase, OpSpec, all_specs

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")


def jobs_of(cases: Iterable[tuple[OpSpec, BenchCase]], shapes: str) -> Iterator[suite.Job]:
    for spec, case in cases:
        for mode in ("forward", "forward+backward"):

            def pair(dtype, wrap=None, spec=spec, case=case, mode=mode):
                return pairs.op_pair(spec, case, mode, dtype, wrap=wrap)

            # Each gradient of a product or convolution costs as much as the forward: the weight's, and the input's
            # where it is asked for.
            passes = 1 if mode == "forward" else 3 - (0 in case.frozen)

            def flops(dtype, spec=spec, case=case, passes=passes):
                return passes * spec.flops(case.make(dtype, torch.device("cpu")))

            yield suite.Job(spec.name, case.label, mode, pair, flops, dtypes=tuple(spec.dtypes), shapes=shapes)


def jobs() -> Iterator[suite.Job]:
    return jobs_of(((spec, case) for spec in all_specs() for case in spec.bench), "course")


@pytest.mark.benchmark(timer=suite.clock)
def test_op(job, measure):
    measure(job)
