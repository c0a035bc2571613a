"""What a report is made of: passes under each instruction set and with MKL let loose, shapes, memory, errors."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from torchsmith import _native, bench_cli
from torchsmith.bench import baselines, memory, report, shapes
from torchsmith.bench_cli import _passes
from torchsmith.spec import all_specs

# ---------------------------------------------------------------------------------------------- passes and baselines


def test_passes_put_together_what_one_process_can_measure():
    everything = _passes(("eager", "compile", "mkl-avx512"), ("best", "avx2"))
    assert [(p.baselines, p.name) for p in everything] == [
        (("eager", "compile"), ""),
        (("eager", "compile"), "avx2"),
        (("mkl-avx512",), "mkl-avx512"),
    ]
    assert [p.name for p in _passes((), ())] == [""]
    assert [p.name for p in _passes(("mkl-avx512",), ())] == ["mkl-avx512"]


def test_mkl_with_avx512_and_a_forced_lower_isa_contradict():
    result = CliRunner().invoke(bench_cli.bench, ["--baseline", "mkl-avx512", "--isa", "avx2"])
    assert result.exit_code == 2
    assert "it is about AVX-512" in result.output


def test_an_isa_the_machine_lacks_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(_native, "isa_available", lambda: ["base"])
    with pytest.raises(baselines.Unavailable, match="--isa avx2: this machine and build have base"):
        baselines.isa_environment("avx2")


@pytest.mark.skipif("avx2" not in _native.isa_available(), reason="needs AVX2")
def test_an_isa_is_forced_on_both_sides():
    variables = baselines.isa_environment("avx2")
    assert variables["TORCHSMITH_ISA"] == "avx2"
    assert set(variables) == {
        "TORCHSMITH_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS",
    }  # fmt: skip


def test_mkl_is_left_alone_where_it_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    with pytest.raises(baselines.Unavailable, match="has no MKL"):
        baselines.mkl_environment(tmp_path)


def test_without_a_c_compiler_mkl_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines.shutil, "which", lambda name: None)
    with pytest.raises(baselines.Unavailable, match="no C compiler"):
        baselines.build_answer(tmp_path)


def test_the_answer_is_built_and_says_yes(tmp_path):
    import ctypes

    try:
        library = baselines.build_answer(tmp_path)
    except baselines.Unavailable as reason:
        pytest.skip(str(reason))
    assert ctypes.CDLL(str(library)).mkl_serv_intel_cpu_true() == 1


def test_records_of_passes_are_joined():
    def ceiling(rate):
        return {"threads": 1, "isa": "avx2", "gflops": rate, "gbytes_s": 10 / rate}

    parts = [
        {"datetime": d, "machine_info": d, "benchmarks": [d], "ceilings": [ceiling(c)]}
        for d, c in (("a", 5), ("b", 10))
    ]
    assert report.merge([*parts, {"benchmarks": ["c"], "skipped": ["s"]}]) == {
        "datetime": "a",
        "machine_info": "a",
        "benchmarks": ["a", "b", "c"],
        "ceilings": [{"threads": 1, "isa": "avx2", "gflops": 10, "gbytes_s": 2}],
        "skipped": ["s"],
    }
    assert report.merge([]) is None


# ---------------------------------------------------------------------------------------------- shapes, memory, probe


def test_extra_shapes_are_many_new_and_right():
    specs = {spec.name: spec for spec in all_specs()}
    ids = [(op, case.label) for op, case in shapes.EXTRA]
    assert len(ids) == len(set(ids)) >= 40
    assert {op for op, _ in ids} == set(specs)
    assert not {(s.name, c.label) for s in specs.values() for c in s.bench} & set(ids)
    with torch.no_grad():
        for op, case in shapes.EXTRA:
            sample = case.make(torch.float32, torch.device("cpu"))
            assert specs[op].flops(sample) > 0 or op == "max_pool2d", case.label


def test_saved_bytes_count_each_storage_once_without_what_exists_anyway():
    x, w = torch.randn(10, 8), torch.randn(8, 8, requires_grad=True)

    def run():
        y = torch.tanh(x @ w)  # keeps x and w, which exist, and y of 320 bytes
        return (y * y.view(-1).view(10, 8)).sum()  # y twice more

    assert memory.saved_bytes(run, (x, w)) == 320
    assert memory.saved_bytes(run, (w,)) == 640


def test_peak_is_what_was_out_at_once():
    def one_after_the_other():
        for _ in range(5):
            torch.empty(1 << 16, dtype=torch.uint8)

    def together():
        return [torch.empty(1 << 16, dtype=torch.uint8) for _ in range(5)]

    peak = memory.peak_bytes(one_after_the_other)
    if peak is None:
        pytest.skip("this torch's profiler does not tell")
    assert peak == 1 << 16
    assert memory.peak_bytes(together) == 5 << 16


def test_error_is_relative_to_each_tensor_and_keeps_nan():
    exact = [torch.tensor([1.0, 100.0]), torch.tensor([1e-3])]
    assert memory.relative_error([exact[0] + 1, exact[1]], exact) == pytest.approx(0.01)
    assert memory.relative_error([exact[0], exact[1] * 1.5], exact) == pytest.approx(0.5)
    nan = memory.relative_error([exact[0] * float("nan"), exact[1]], exact)
    assert nan != nan


@pytest.mark.parametrize("isa", _native.isa_available())
def test_the_fma_probe_runs_under_every_isa(isa):
    _native.force_isa(isa)
    try:
        assert 0.1 < _native.fma_ceiling(0.001) < 2000
    finally:
        _native.force_isa(None)
