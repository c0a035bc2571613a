"""Ops on shapes that the course does not have and nobody tuned for: ``torchsmith bench --shapes extra``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from torchsmith.bench import shapes, suite
from torchsmith.bench.test_ops import jobs_of
from torchsmith.spec import all_specs

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")


def jobs() -> Iterator[suite.Job]:
    specs = {spec.name: spec for spec in all_specs()}
    return jobs_of(((specs[name], case) for name, case in shapes.EXTRA), "extra")


@pytest.mark.benchmark(timer=suite.clock)
def test_shape(job, measure):
    measure(job)
