"""The Triton kernels without a GPU: executed by Triton's interpreter, compiled to machine code, chosen and refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from contract import PLUGINS_OFF

import torchsmith
from torchsmith import triton_backend
from torchsmith.spec import all_specs

ROOT = Path(__file__).parents[1]
ROWS = sorted(p.stem for p in (ROOT / "kernels").glob("[!_]*.py"))
triton_needed = pytest.mark.skipif(bool(triton_backend.absent()), reason=triton_backend.absent())
#: bytes of shared memory that a block may have
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


def run(command, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


@triton_needed
@pytest.mark.minutes(4)
def test_rows_interpreted_and_compiled(tmp_path):
    """float32 and float16 by the interpreter; those, TF32 and bfloat16 (compiled alone) to cubin."""
    launches, pytest_line = tmp_path / "launches.json", ["-m", "pytest", "-q", "-x", *PLUGINS_OFF]
    checks = {"TRITON_INTERPRET": "1", "TORCHSMITH_TEST_ROWS": " ".join(ROWS), "TORCHSMITH_TEST_OUT": str(launches)}
    done = run([*pytest_line, "tests/triton_checks.py"], **checks)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    # Triton's cache goes by what is compiled: a kernel that did not change since the last run is not compiled again.
    cache = {"TRITON_CACHE_DIR": str(ROOT / "build" / "triton")}
    # As a fork: this one need not start without Triton, as one must that interprets.
    done = processes.run("tests/triton_compile.py", launches, env={**os.environ, **cache}, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    entries = json.loads(done.stdout.splitlines()[-1])
    launched = {one["kernel"] for one in json.loads(launches.read_text())}
    for arch in (80, 90, 100):
        assert {entry["kernel"] for entry in entries if entry["arch"] == arch} == launched
    for entry in entries:
        assert entry["cubin"] > 0 and entry["shared"] <= SHARED[entry["arch"]], entry
        if "PRECISION" in entry["constants"] and entry["dtype"] != "float32":
            assert entry["tensor_cores"], entry
        if entry["constants"].get("PRECISION") == "ieee" and entry["dtype"] == "float32" and "BK" in entry["constants"]:
            assert not entry["chained"], entry
        # Registers suffice: with a block too large, a thread of gru's steps kept 6 KB in memory. Sixteen values may go there.
        assert entry["stack"] <= 64, entry

    def configurations(arch):
        return {
            (e["kernel"], *(v for name, v in sorted(e["constants"].items()) if re.fullmatch("B[A-Z]|BLOCK", name)))
            for e in entries
            if e["arch"] == arch
        }

    assert configurations(80) == configurations(90) == configurations(100)


@triton_needed
@pytest.mark.minutes(0.3)
def test_choosing(tmp_path):
    """In a process of its own, which interprets."""
    command = ["-m", "pytest", "-q", *PLUGINS_OFF, "tests/triton_tuning.py"]
    done = run(command, TRITON_INTERPRET="1", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]


@triton_needed
@pytest.mark.minutes(0.3)
def test_launching(tmp_path):
    """In a process of its own, which has a driver that only writes down what it would launch."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = processes.run("-m", "pytest", "-q", *PLUGINS_OFF, "tests/triton_launches.py", env=environment, cwd=ROOT)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]


@triton_needed
def test_every_kernel_file_is_a_row_and_computes_all_its_ops():
    rows = {spec.row: set() for spec in all_specs()}
    for spec in all_specs():
        rows[spec.row] |= set(spec.kernels)
    assert set(ROWS) == set(rows)
    for row in ROWS:
        assert all(map(triton_backend.has, rows[row])), row


@triton_needed
def test_on_the_cpu_without_the_interpreter_cpp_computes():
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    with torchsmith.backend("triton"):
        y = torchsmith.linear(x, w)
        said = torchsmith.explain()
    assert torch.equal(y, torchsmith.linear(x, w))
    assert said.implementation == "cpp" and "Triton does not run on device cpu" in said.reason


@triton_needed
def test_for_some_ops_alone():
    with torchsmith.backend("torch", ["max_pool2d", "linear"]) as chosen:
        assert repr(chosen) == "torchsmith.backend('torch', ops=('max_pool2d', 'linear'))"
        torchsmith.linear_relu(torch.randn(2, 3), torch.randn(4, 3))  # shares linear's kernels
        assert torchsmith.explain().implementation == "torch"
        with torchsmith.backend("cpp", ["linear"]):
            torchsmith.linear(torch.randn(2, 3), torch.randn(4, 3))
            assert torchsmith.explain().implementation == "cpp"
        torchsmith.max_pool2d(torch.randn(1, 1, 4, 4), 2)
        assert torchsmith.explain().implementation == "torch"
        torchsmith.rnn_cell(torch.randn(2, 3), torch.randn(2, 4), torch.randn(4, 3), torch.randn(4, 4))
        assert torchsmith.explain().implementation == "cpp"
    torchsmith.linear(torch.randn(2, 3), torch.randn(4, 3))
    assert torchsmith.explain().implementation == "cpp"


@pytest.mark.parametrize("ops, got", [("linear", "'linear'"), (["conv9"], "'conv9'")])
def test_unknown_ops_are_refused(ops, got):
    with pytest.raises(ValueError, match=f"backend: ops: expected .*got .*{got}"):
        torchsmith.backend("cpp", ops)


def test_without_triton_the_backend_is_absent_and_says_why():
    code = """
import sys
sys.modules["triton"] = None
import torch, torchsmith
print(torchsmith.linear(torch.ones(1, 2), torch.ones(1, 2)).item(), torchsmith.triton_backend.absent())
try:
    torchsmith.backend("triton")
except RuntimeError as error:
    print(error)
print(torchsmith.dispatch.chosen("linear"))
"""
    done = run(["-c", code])
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith("2.0 ModuleNotFoundError") and "triton" in first
    assert second.startswith("backend: 'triton' is absent: ModuleNotFoundError") and third == "auto"
