"""torchsmith._native: build facts, instruction sets found and forced, threads, the registry of kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import processes
import pytest
import torch

import torchsmith
from torchsmith import _native
from torchsmith.spec import all_specs

AVAILABLE = _native.isa_available()


@pytest.fixture(autouse=True)
def _unforced():
    yield
    _native.force_isa(None)


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    return processes.run("-c", code, env={**os.environ, **env}, timeout=120)


def test_build_info_names_what_the_build_depends_on():
    info = _native.build_info()
    assert set(info) == {
        "version", "compiler", "flags", "torch", "torch_target", "python", "pybind11", "isa", "cuda_archs"
    }  # fmt: skip
    assert info["version"] == torchsmith.__version__
    assert info["compiler"].startswith(("gcc ", "clang "))
    assert "-std=c++20" in info["flags"]
    assert "-ffast-math" not in info["flags"]
    assert info["torch"][:2] == "2."
    assert info["torch_target"] == "2.10"
    assert info["python"] == sys.version.split()[0]
    assert info["isa"] == _native.isa_built()
    assert bool(info["cuda_archs"]) == Path(torchsmith.__file__).with_name("_cuda.so").is_file()


def test_instruction_sets_are_ordered_and_the_best_is_used():
    built = _native.isa_built()
    assert built[0] == "base"
    assert built[: len(AVAILABLE)] == AVAILABLE
    assert _native.isa_found() == AVAILABLE[-1]
    expected = os.environ.get("TORCHSMITH_ISA") or AVAILABLE[-1]
    assert _native.isa_active() == expected


def test_found_agrees_with_torch():
    if torch.backends.cpu.get_cpu_capability() == "AVX512" and "avx512" in _native.isa_built():
        assert _native.isa_found().startswith("avx512")


def test_bf16_products_are_found_where_torch_finds_them():
    if hasattr(torch.cpu, "_is_avx512_bf16_supported") and "avx512_bf16" in _native.isa_built():
        assert ("avx512_bf16" in AVAILABLE) == torch.cpu._is_avx512_bf16_supported()


def test_the_matrix_unit_is_found_where_torch_finds_it():
    if hasattr(torch.cpu, "_is_amx_tile_supported") and "avx512_amx" in _native.isa_built():
        assert ("avx512_amx" in AVAILABLE) == torch.cpu._is_amx_tile_supported()


@pytest.mark.parametrize(
    "rows", [1, 9, 40]
)  # straight from the weight; on the matrix unit where there is one, whole tiles and a rest
@pytest.mark.parametrize("name", AVAILABLE)
def test_bf16_sums_in_pairs_under_its_own_instruction_sets_alone(name, rows):
    """2^-130 is a bfloat16, but denormal: the pair instruction takes it for zero, float32 arithmetic does not."""
    _native.force_isa(name)
    tiny = torch.full((rows, 2), 2.0**-130, dtype=torch.bfloat16)
    scale = torch.full((1, 2), 2.0**100, dtype=torch.bfloat16)
    pairs = name in ("avx512_bf16", "avx512_amx")
    assert (torchsmith.linear(tiny, scale) == (0.0 if pairs else 2.0**-29)).all()
    assert (torchsmith.linear(tiny.float(), scale.float()) == 2.0**-29).all()


@pytest.mark.parametrize("name", AVAILABLE)
def test_force_and_undo(name):
    before = _native.isa_active()
    _native.force_isa(name)
    assert _native.isa_active() == name
    _native.force_isa(None)
    assert _native.isa_active() == before


@pytest.mark.parametrize("name", AVAILABLE)
def test_bf16_results_are_rounded_to_nearest_even(name):
    """1 + u ulp by a sum of two exact products, u = 0.75, 0.5, 1.5, 0.25: the contract's tolerance would pass a cut."""
    _native.force_isa(name)
    ulp = 2.0**-7
    weight = torch.tensor(
        [[1.0, 0.75 * ulp], [1.0, 0.5 * ulp], [1.0, 1.5 * ulp], [-1.0, -0.75 * ulp], [1.0, 0.25 * ulp]]
    )
    found = torchsmith.linear(torch.ones(1, 2, dtype=torch.bfloat16), weight.bfloat16())
    assert found.tolist() == [[1 + ulp, 1.0, 1 + 2 * ulp, -1 - ulp, 1.0]]


def test_force_reaches_every_thread():
    seen = []
    _native.force_isa("base")
    thread = threading.Thread(target=lambda: seen.append(_native.isa_active()))
    thread.start()
    thread.join()
    assert seen == ["base"]


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "", " base"])
def test_unknown_names_are_refused_with_the_allowed_ones(name):
    before = _native.isa_active()
    with pytest.raises(ValueError, match=f"not an instruction set; allowed here: {', '.join(map(repr, AVAILABLE))}"):
        _native.force_isa(name)
    assert _native.isa_active() == before


def test_force_takes_names_only():
    with pytest.raises(TypeError):
        _native.force_isa(3)


@pytest.mark.parametrize("name", AVAILABLE)
def test_environment_chooses(name):
    code = (
        "import torchsmith._native as n; print(n.isa_active()); "
        "n.force_isa('base'); n.force_isa(None); print(n.isa_active())"
    )
    done = run_python(code, TORCHSMITH_ISA=name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [name, name]


def test_an_empty_environment_variable_means_unset():
    done = run_python("import torchsmith._native as n; print(n.isa_active())", TORCHSMITH_ISA="")
    assert done.stdout.split() == [_native.isa_found()]


def test_environment_that_cannot_be_honoured_fails_at_import():
    done = run_python("import torchsmith", TORCHSMITH_ISA="sse9")
    assert done.returncode != 0
    assert "TORCHSMITH_ISA: 'sse9' is not an instruction set; allowed here: 'base'" in done.stderr


def test_threads_follow_torch():
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert _native.threads() == count
    finally:
        torch.set_num_threads(before)


def test_registry_rows_are_well_formed_and_unique():
    rows = _native.registry()
    assert rows
    for row in rows:
        assert set(row) == {"op", "backend", "dtypes"}
        assert row["dtypes"]
        assert all(isinstance(getattr(torch, name), torch.dtype) for name in row["dtypes"])
    keys = [(r["op"], r["backend"]) for r in rows]
    assert keys == sorted(set(keys))


def test_registry_and_dispatcher_agree():
    for row in _native.registry():
        name = f"torchsmith::{row['op']}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, row["backend"].upper())


@pytest.mark.parametrize("spec", all_specs(), ids=lambda s: s.name)
def test_every_kernel_of_an_op_is_registered_for_every_dtype_it_declares(spec):
    rows = {r["op"]: set(r["dtypes"]) for r in _native.registry() if r["backend"] == "cpu"}
    declared = {str(d).removeprefix("torch.") for d in spec.dtypes}
    for kernel in spec.kernels:
        assert declared <= rows.get(kernel, set()), f"{kernel} lacks {declared - rows.get(kernel, set())}"
