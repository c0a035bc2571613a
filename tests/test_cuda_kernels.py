"""The CUDA kernels, executed on the host (no GPU): the rows' checks in a process with the sanitizers, one for all rows (each
process more takes some seconds, to import torch and to make the samples).

What is checked is in cuda_checks.py; how a kernel runs without a GPU in cuda_host.py and cuda_shim/.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_host
import pytest
import torch
from contract import PLUGINS_OFF

ROOT = Path(__file__).parents[1]
ROWS = os.environ.get("TORCHSMITH_TEST_ROWS", "").split() or cuda_host.rows()


@pytest.mark.minutes(4)
def test_rows_on_the_host():
    if cuda_host.compiler() is None:
        pytest.skip("g++ is not installed")
    for row in ROWS:
        cuda_host.build(row)  # outside of the sanitizers' process
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *PLUGINS_OFF, "tests/cuda_checks.py"]
    environment = {**cuda_host.environment(), "TORCHSMITH_TEST_ROWS": " ".join(ROWS)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]


@pytest.mark.parametrize("row", ROWS)
def test_row_registers_ops_that_exist(row):
    ops = cuda_host.registered(row)
    assert ops
    for op in ops:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torchsmith::{op}", "CPU"), f"{op} has no schema"
    source = (cuda_host.SOURCES / f"{row}.cu").read_text()
    listed = set(re.findall(r'Registered \w+\{"(\w+)"\}', source))
    assert listed == ops, "the registry and the dispatcher are told different names"


def test_sources_keep_the_rules():
    """One launch function, one file of PTX, one kind of shared memory, no waiting for the device."""
    for path in sorted(cuda_host.SOURCES.glob("*.cu*")):
        code = "\n".join(line.partition("//")[0] for line in path.read_text().splitlines())
        assert "<<<" not in code, path.name
        assert "asm" not in code or path.name == "mma.cuh", path.name
        assert "__shared__" not in code or path.name == "platform.cuh", path.name
        assert "atomicAdd" not in code, f"{path.name}: sums in no fixed order"
        for waits in ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaMalloc", "cudaMemcpy("):
            assert waits not in code, f"{path.name}: {waits} is not allowed in a graph capture"


def test_plans_cover_every_product(tmp_path):
    if cuda_host.compiler() is None:
        pytest.skip("g++ is not installed")
    out = tmp_path / "plans"
    # Without sanitizers: numbers alone. -fwrapv: a product of three sizes of 2^31 is counted modulo 2^64 on both sides.
    command = [cuda_host.compiler(), "-std=c++20", "-O1", "-fwrapv", *cuda_host.WARNINGS, f"-I{cuda_host.SHIM}"]
    subprocess.run([*command, str(cuda_host.SHIM / "plans.cpp"), "-o", str(out)], check=True, capture_output=True)
    done = subprocess.run([out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
