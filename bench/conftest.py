"""Options of the suites, and the environment written into pytest-benchmark's records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from torchsmith.bench import baselines, ceiling, harness, report, suite

SKIPPED = pytest.StashKey[list]()


def pytest_addoption(parser):
    group = parser.getgroup("torchsmith", "torchsmith benchmarks")
    group.addoption("--op", action="append", default=[], help="only this op or model (may be given again)")
    group.addoption("--mode", action="append", default=[], help=f"only this mode: {', '.join(suite.MODES)}")
    group.addoption("--dtype", action="append", default=[], help="dtype by its torch name (default float32)")
    group.addoption("--threads", action="append", type=int, default=[], help="number of threads (default 1)")
    group.addoption("--quick", action="store_true", help="a tenth of the time, more noise")
    group.addoption("--shapes", default="course", choices=[*suite.SHAPES, "all"], help="which shapes (default course)")
    group.addoption(
        "--baseline", action="append", default=[], choices=baselines.BASELINES, help="compare with (default eager)"
    )
    group.addoption(
        "--details", action="store_true", help="also memory, error, determinism and this machine's ceilings"
    )
    group.addoption("--report", type=Path, metavar="DIR", help="--details, and all of it as JSON, Markdown and HTML")


@pytest.hookimpl(tryfirst=True)  # before pytest-benchmark reads where its own record goes
def pytest_configure(config):
    config.stash[SKIPPED] = []
    for mode in config.getoption("--mode"):
        if mode not in suite.MODES:
            raise pytest.UsageError(f"--mode {mode}: choose from {', '.join(suite.MODES)}")
    for name in config.getoption("--dtype"):
        if not isinstance(getattr(torch, name, None), torch.dtype):
            raise pytest.UsageError(f"--dtype {name}: not a dtype of torch")
    for count in config.getoption("--threads"):
        if count < 1:
            raise pytest.UsageError(f"--threads {count}: must be at least 1")
    folder = config.getoption("--report")
    if folder is not None:
        from torchsmith.bench import page  # noqa: F401  (says at once that matplotlib is missing)

        config.option.details = True
        folder.mkdir(parents=True, exist_ok=True)
        if not config.getoption("benchmark_json", None):
            config.option.benchmark_json = str(folder / "pytest-benchmark.json")


def pytest_generate_tests(metafunc):
    if "job" in metafunc.fixturenames:
        jobs = list(suite.select(metafunc.module.jobs(), metafunc.config))
        metafunc.parametrize("job", jobs, ids=[j.id for j in jobs])


def pytest_collection_modifyitems(items):
    """A suite of which nothing was asked for is not there, instead of skipped."""
    items[:] = [i for i in items if not getattr(getattr(i, "callspec", None), "id", "").startswith("NOTSET")]


@pytest.fixture
def measure(benchmark, request):
    """measure(job): verifies the job's two arms, then times them by turns and keeps what the record needs."""
    option = request.config.getoption

    def run(job):
        try:
            suite.measure(benchmark, job, quick=option("--quick"), details=option("--details"))
        except pytest.skip.Exception as skip:
            request.config.stash[SKIPPED].append({"what": job.id, "why": str(skip)})
            raise
        except KeyboardInterrupt:
            benchmark.has_error = True  # pytest-benchmark leaves it out of its record, instead of failing on no times
            raise

    return run


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_machine_info(config):
    return harness.environment()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_generate_commit_info(config):
    return {}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["skipped"] = config.stash[SKIPPED]
    if config.getoption("--details"):
        counts = sorted({b.extra_info["threads"] for b in benchmarks if "threads" in b.extra_info})
        output_json["ceilings"] = [ceiling.measure(count) for count in counts]


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session):
    yield  # pytest-benchmark writes its record here
    folder = session.config.getoption("--report")
    raw = Path(session.config.option.benchmark_json) if folder is not None else None
    if raw is not None and raw.is_file() and raw.stat().st_size:
        data = report.record(json.loads(raw.read_text(encoding="utf-8")))
        report.save(folder, data, with_page=True)
