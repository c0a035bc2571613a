import gc
import os
import tempfile

import pytest

# What the user measured on this machine must not decide what is tested. Before torchsmith is imported: it reads it then.
_CACHE = tempfile.TemporaryDirectory(prefix="torchsmith-tests-")
os.environ["TORCHSMITH_CACHE"] = _CACHE.name

# Processes that a test starts are no workers.
_WORKER = os.environ.pop("PYTEST_XDIST_WORKER", None)
_LOST = []  # the test in which this process lost the GPU


def pytest_configure(config):
    if not _WORKER and config.getoption("numprocesses", None):
        return  # the workers run the tests: they need not wait until torch is imported here
    import torch

    if _WORKER:  # one of several at work: a core each; what is about threads sets its own number
        torch.set_num_threads(1)
    # TF32 is another contract. Set before the databases of torch.testing are imported, which forbid setting it.
    if os.environ.get("TORCHSMITH_TEST_DEVICE", "cpu").startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True  # for numeric second derivatives, which are ATen's


@pytest.fixture(autouse=True)
def _as_every_test_finds_it():
    """One fixture, for its cost: thousands of tests take a few milliseconds.

    What auto leaves to native unmeasured, such as small pools, would be compared with itself: no rules.
    """
    from torchsmith import dispatch
    from torchsmith.contract import seed

    seed(0)
    dispatch.RULES = False
    yield
    dispatch.RULES = True
    assert dispatch._active == "auto", "a test left another backend set"
    assert not dispatch.KNOWN, "a test left a table of measurements in use"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of the test's own for the measured table; what the test lets auto obey ends with it."""
    from torchsmith.tuned import Table

    monkeypatch.setenv("TORCHSMITH_CACHE", str(tmp_path))
    yield tmp_path
    Table().activate()


def pytest_runtest_logreport(report):
    """A kernel's fault ends the process's use of the GPU: so does the worker, and xdist starts another for what is left."""
    if _WORKER and report.failed and os.environ.get("TORCHSMITH_TEST_DEVICE", "cpu").startswith("cuda"):
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError:
            _LOST.append(report.nodeid)


def pytest_runtest_protocol():
    if _LOST:
        os._exit(3)


def pytest_collection_finish():
    """The million objects of torch and of thousands of tests stay: no need to walk over them again and again. Nor over what a
    test has just made: its tensors go without a collector, and the collector takes one second in twenty."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_sessionfinish():
    gc.unfreeze()


def pytest_collection_modifyitems(items):
    """The tests that take minutes go first, so that none is left for the end.

    With TORCHSMITH_TEST_DEVICE=cuda: what a row without CUDA kernels, or the CPU's threads and ISAs, cannot show is skipped.
    """
    from contract import DEVICE

    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("minutes")), default=0))
    if DEVICE.type == "cpu":
        return
    from torchsmith import _native
    from torchsmith.dispatch import _device_has_kernels

    for item in items:
        given = getattr(item, "callspec", None)
        given = given.params if given else {}
        spec = given.get("spec")
        if spec is not None and not _device_has_kernels(spec.name, DEVICE.type):
            item.add_marker(pytest.mark.skip(reason=f"{spec.name} has no kernel for {DEVICE.type}"))
        elif (
            "threads" in item.name
            or "short_way" in item.name
            or given.get("isa", _native.isa_active()) != _native.isa_active()
        ):
            item.add_marker(pytest.mark.skip(reason="about the CPU"))


def pytest_terminal_summary(terminalreporter):
    """How much of PyTorch's own databases was gone through, op by op."""
    counts = {}
    for report in terminalreporter.getreports("passed"):
        for what, count in report.user_properties:
            if "test_databases" in report.nodeid:
                name = report.nodeid.partition("[")[2].rstrip("]").partition("-")[0]
                of_op = counts.setdefault(name, {})
                of_op[what] = of_op.get(what, 0) + count
    if counts:
        terminalreporter.section("PyTorch's databases: what passed")
        for name, of_op in sorted(counts.items()):
            terminalreporter.line(f"{name}: " + ", ".join(f"{count} {what}" for what, count in sorted(of_op.items())))
