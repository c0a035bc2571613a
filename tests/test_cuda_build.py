"""The CUDA library without a GPU: what the build asks for, and what nvcc made of the kernels (gates on the build's own logs)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_gates
import cuda_host
import processes
import pytest

import torchsmith
from torchsmith import _native

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = Path(torchsmith.__file__).parent / "_cuda.so"
ROWS = sorted(p.stem for p in (ROOT / "csrc" / "cuda").glob("*.cu"))


@pytest.fixture
def toolchain(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "buildtools"))
    for name in ("FORCE_CUDA", "TORCHSMITH_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    import toolchain

    return toolchain


# ---------------------------------------------------------------------------------------------- finding the toolkit


def fake_nvcc(home: Path, release="13.0", archs="75 80 90 120", top=None, runtime=True) -> Path:
    (home / "bin").mkdir(parents=True)
    (home / "lib64").mkdir()
    if runtime:
        (home / "lib64" / "libcudart_static.a").touch()
    nvcc = home / "bin" / "nvcc"
    top = home if top is None else top
    listing = " ".join(f"compute_{a}" for a in archs.split())
    nvcc.write_text(
        f'#!/bin/sh\ncase "$1" in\n--version) echo "Cuda compilation tools, release {release}, V{release}.1";;\n'
        f"--dryrun) echo '#$ TOP={top}' >&2;;\n--list-gpu-arch) printf '%s\\n' {listing};;\nesac\n"
    )
    nvcc.chmod(0o755)
    return nvcc


def test_toolkit_is_where_nvcc_itself_says(toolchain, monkeypatch, tmp_path):
    """The nvcc on the PATH may be a script in a folder that is no toolkit."""
    real = tmp_path / "toolkit"
    fake_nvcc(real)
    wrapper = fake_nvcc(tmp_path / "wrapper", top=real, runtime=False)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:/usr/bin:/bin")
    cuda, why_not = toolchain.find_cuda()
    assert why_not == "" and cuda.nvcc == wrapper and cuda.lib == real / "lib64" and cuda.version == "13.0"


def test_default_architectures_are_those_the_toolkit_knows(toolchain, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path / "cuda", archs="50 75 80 86 90").parents[1]))
    cuda, _ = toolchain.find_cuda()
    assert cuda.archs == ("7.5", "8.0", "9.0+PTX")
    assert cuda.gencodes()[-2:] == [
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("8.0", ("8.0",)),
        ("8.0;9.0a", ("8.0", "9.0a")),
        ("7.5, 12.0+PTX", ("7.5", "12.0+PTX")),
        ("8.0 9.0", ("8.0", "9.0")),
    ],
)
def test_architectures_asked_for(toolchain, monkeypatch, text, archs):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert toolchain.cuda_archs({"75", "80", "90", "120"}) == archs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("80", "'80' is none of the forms"),
        ("Hopper", "'Hopper' is none"),
        ("8.7", "does not know 8.7; it knows 70, 75"),
        ("7.0", "7.5 or newer"),
    ],
)
def test_an_architecture_that_cannot_be_is_named(toolchain, monkeypatch, text, message):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    with pytest.raises(toolchain.BuildError, match=re.escape(message)):
        toolchain.cuda_archs({"70", "75", "80"})


def test_without_a_toolkit_there_is_a_note_or_an_error(toolchain, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    cuda, why_not = toolchain.find_cuda()
    assert cuda is None and re.search("CUDA_HOME is .* no bin/nvcc", why_not)
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(toolchain.BuildError, match="FORCE_CUDA=1, but CUDA_HOME is"):
        toolchain.find_cuda()
    monkeypatch.setenv("TORCHSMITH_CUDA", "0")
    with pytest.raises(toolchain.BuildError, match="contradict"):
        toolchain.find_cuda()
    monkeypatch.delenv("FORCE_CUDA")
    assert toolchain.find_cuda() == (None, "TORCHSMITH_CUDA=0")


@pytest.mark.parametrize(
    ("kind", "message"),
    [({"release": "11.8"}, "is CUDA 11.8; torchsmith needs 12.0"), ({"runtime": False}, "has no libcudart_static.a")],
)
def test_an_unusable_toolkit_is_named(toolchain, monkeypatch, tmp_path, kind, message):
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path / "cuda", **kind).parents[1]))
    cuda, why_not = toolchain.find_cuda()
    assert cuda is None and message in why_not


@pytest.mark.parametrize("found", [True, False])
def test_the_plan_has_the_library_where_there_is_a_toolkit(toolchain, monkeypatch, tmp_path, found):
    pytest.importorskip("pybind11", reason="the build's own requirements are not installed")
    import ninjafile

    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path / "cuda").parents[1] if found else tmp_path))
    plan = ninjafile.plan_all(ROOT, tmp_path / "out", "0.0.0")
    assert ("_cuda.so" in plan.products) == found
    assert {f"{row}.cuda.o: nvcc" in plan.text() for row in ROWS} == {found}
    assert ("12.0+PTX" in (tmp_path / "out" / "generated" / "build_info.h").read_text()) == found


# ---------------------------------------------------------------------------------------------- the library


@pytest.fixture(scope="module")
def built():
    """row -> kernel -> architecture -> facts, of the library beside this package."""
    logs = cuda_gates.logs()
    if not LIBRARY.is_file() or not logs:
        pytest.skip("no CUDA library was built here: no nvcc")
    return {row: cuda_gates.compiled(text) for row, text in logs.items()}


def test_every_row_is_compiled_for_every_architecture(built):
    archs = {re.sub(r"\.|\+PTX", "", a) for a in _native.build_info()["cuda_archs"]}
    assert archs and set(built) == set(ROWS)
    for row, kernels in built.items():
        assert kernels, row
        for kernel, facts in kernels.items():
            assert set(facts) == archs, kernel


def test_no_kernel_spills(built):
    spills = [
        f"{kernel} for sm_{arch}: {f['spilled']} bytes"
        for kernels in built.values()
        for kernel, facts in kernels.items()
        for arch, f in facts.items()
        if f["spilled"] > 0
    ]
    assert not spills, spills


def test_nothing_was_said_but_by_ptxas():
    for row, text in cuda_gates.logs().items():
        assert not re.search(r"warning|remark", text, re.I), f"{row}: {text[:2000]}"


def test_the_record_is_that_of_this_build(built, toolchain):
    cuda, why_not = toolchain.find_cuda()
    if cuda is None:
        pytest.skip(why_not)
    if not cuda_gates.RECORD.is_file():
        pytest.skip("no record beside these sources")
    record = json.loads(cuda_gates.RECORD.read_text())
    recorded = record["kernels"]
    assert set(recorded) == {f"{row}: {kernel}" for row, kernels in built.items() for kernel in kernels}, (
        "kernels came or went: python tests/cuda_gates.py"
    )
    if record["nvcc"] != cuda_gates.nvcc_version(cuda.nvcc):
        pytest.skip(f"recorded with nvcc {record['nvcc']}")
    for row, kernels in built.items():
        for kernel, facts in kernels.items():
            for arch, f in facts.items():
                assert recorded[f"{row}: {kernel}"]["sm"].get(arch, f) == f, f"{kernel}: python tests/cuda_gates.py"


def test_tensor_cores_where_they_are_meant(built):
    if cuda_gates.find_cuobjdump() is None:
        pytest.skip("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    archs = sorted({int(a) for kernels in built.values() for facts in kernels.values() for a in facts if int(a) >= 80})
    if not archs:
        pytest.skip("built for nothing newer than Turing")
    # One takes 15 s to disassemble; the others come from the same PTX.
    found = cuda_gates.instructions(LIBRARY, str(archs[-1]), ("HMMA", "LDGSTS"))
    gemms = {k: f for k, f in found.items() if k.startswith("gemm_kernel<")}
    assert gemms
    for kernel, count in gemms.items():
        assert (count["HMMA"] > 0) == ("Mma<" in kernel), f"{kernel} for sm_{archs[-1]}"
        assert count["LDGSTS"] > 0, f"{kernel} for sm_{archs[-1]}: no asynchronous copy"


def test_library_holds_no_path_and_needs_only_torch(built):
    dynamic = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED\)\s+Shared library: \[(.*)\]", dynamic))
    assert {"_cpu.so", "libtorch.so"} <= needed and not [n for n in needed if "cuda" in n]
    assert re.findall(r"(?:RPATH|RUNPATH)\)\s+Library \w+: \[(.*)\]", dynamic) == ["$ORIGIN"]
    assert str(ROOT).encode() not in LIBRARY.read_bytes()
    assert LIBRARY.stat().st_size < 60e6


def test_it_is_loaded_where_torch_has_cuda(built):
    """Here torch may be CPU-only: then nothing of CUDA is registered, and no attempt is made."""
    import torch

    from torchsmith._library import CUDA_KERNELS

    assert bool(CUDA_KERNELS) == (torch.version.cuda is not None)
    assert {r["op"] for r in _native.registry() if r["backend"] == "cuda"} == CUDA_KERNELS
    code = "import sys, torch; torch.version.cuda = None; import torchsmith; print(torchsmith._library.CUDA_KERNELS)"
    done = processes.run("-c", code, check=True)
    assert done.stdout.strip() == "frozenset()"


STUB = """
extern "C" __attribute__((visibility("default"))) int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }
"""
PRETEND = """
import torch
torch.version.cuda = "13.0"
import torchsmith
from torch._subclasses.fake_tensor import FakeTensorMode
from torchsmith import _native
names = sorted(r["op"] for r in _native.registry() if r["backend"] == "cuda")
for name in names:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torchsmith::{name}", "CUDA"), name
assert torch.equal(torchsmith.max_pool2d(torch.arange(16.).reshape(1, 1, 4, 4), 2).flatten(), torch.tensor([5., 7, 13, 15]))
with FakeTensorMode(), torchsmith.backend("cpp"):
    x = torch.empty(4, 6, device="cuda")
    y = torchsmith.linear_relu(x, torch.empty(3, 6, device="cuda"), None)
    assert y.device.type == "cuda" and torchsmith.explain().implementation == "cpp", torchsmith.explain()
    image = torch.empty(2, 8, 6, 6, device="cuda", memory_format=torch.channels_last)
    assert torchsmith.max_pool2d(image, 2).is_contiguous(memory_format=torch.channels_last)
    torch.backends.cuda.matmul.allow_tf32 = True
    assert torchsmith.dispatch.allow_tf32(x) and not torchsmith.dispatch.allow_tf32(x.double())
def empty(*shape):
    return torch.empty(shape, device="cuda")
for dtype in (torch.float16, torch.bfloat16):
    with FakeTensorMode(), torch.no_grad(), torchsmith.backend("cpp"):
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        h = torchsmith.gru_cell(empty(2, 5), empty(2, 3), empty(9, 5), empty(9, 3), empty(9), empty(9))
        assert h.dtype == dtype and torchsmith.explain().implementation == "cpp", (h.dtype, torchsmith.explain())
        weights = [empty(9, 5), empty(9, 3), empty(9), empty(9)]
        y, hn = torchsmith.gru(empty(4, 2, 5), empty(1, 2, 3), weights)
        assert y.dtype == hn.dtype == dtype and torchsmith.explain().implementation == "cpp", (y.dtype, torchsmith.explain())
        torch.set_autocast_enabled("cuda", False)
print(*names)
"""


def test_a_torch_with_cuda_gets_the_kernels(built, tmp_path):
    """The one function that a CPU torch lacks is put in its place: then the library loads here, too, and registers."""
    if cuda_host.compiler() is None:
        pytest.skip("g++ is not installed")
    (tmp_path / "stub.cpp").write_text(STUB)
    stub = tmp_path / "stub.so"
    subprocess.run(["g++", "-shared", "-fPIC", tmp_path / "stub.cpp", "-o", stub], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(stub)}
    done = subprocess.run([sys.executable, "-c", PRETEND], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {op for row in ROWS for op in cuda_host.registered(row)}
