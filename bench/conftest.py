"""Options of the suites, and the environment written into pytest-benchmark's records."""

from __future__ import annotations

import pytest
import torch

from torchsmith.bench import harness, suite


def pytest_addoption(parser):
    group = parser.getgroup("torchsmith", "torchsmith benchmarks")
    group.addoption("--op", action="append", default=[], help="only this op or model (may be given again)")
    group.addoption("--mode", action="append", default=[], help=f"only this mode: {', '.join(suite.MODES)}")
    group.addoption("--dtype", action="append", default=[], help="dtype by its torch name (default float32)")
    group.addoption("--threads", action="append", type=int, default=[], help="number of threads (default 1)")
    group.addoption("--quick", action="store_true", help="a tenth of the time, more noise")


def pytest_configure(config):
    for mode in config.getoption("--mode"):
        if mode not in suite.MODES:
            raise pytest.UsageError(f"--mode {mode}: choose from {', '.join(suite.MODES)}")
    for name in config.getoption("--dtype"):
        if not isinstance(getattr(torch, name, None), torch.dtype):
            raise pytest.UsageError(f"--dtype {name}: not a dtype of torch")
    for count in config.getoption("--threads"):
        if count < 1:
            raise pytest.UsageError(f"--threads {count}: must be at least 1")


def pytest_generate_tests(metafunc):
    if "job" in metafunc.fixturenames:
        jobs = list(suite.select(metafunc.module.jobs(), metafunc.config))
        metafunc.parametrize("job", jobs, ids=[j.id for j in jobs])


@pytest.fixture
def measure(benchmark, request):
    """measure(job): verifies the job's two arms, then times them by turns and keeps what the record needs."""
    return lambda job: suite.measure(benchmark, job, quick=request.config.getoption("--quick"))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_machine_info(config):
    return harness.environment()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_commit_info(config):
    return {}
