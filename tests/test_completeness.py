"""No cell of the house is missing: every row has its files, every native op a spec, a fake kernel and a kernel for every dtype."""

import re
from pathlib import Path

import pytest
import torch
from bugs import all_bugs

import torchsmith
from torchsmith import _native
from torchsmith.spec import FLOATS, all_specs

ROOT = Path(__file__).parent.parent
ROWS = sorted({spec.row for spec in all_specs()})


def native_ops() -> set[str]:
    return {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("torchsmith::")}


def test_the_rows_are_the_ones_promised():
    assert ROWS == ["conv2d", "gru", "linear", "maxpool2d", "rnn"]
    assert {s.name for s in all_specs()} == {
        "conv2d",
        "conv2d_relu",
        "conv2d_relu_maxpool2d",
        "max_pool2d",
        "linear",
        "linear_relu",
        "rnn_cell",
        "rnn",
        "gru_cell",
        "gru",
    }


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("cell", ["csrc/contract/{}.h", "csrc/cpu/{}.cpp", "kernels/{}.py", "pyext/ops/{}.py"])
def test_every_row_has_its_cells(row, cell):
    assert (ROOT / cell.format(row)).is_file()


def test_every_source_is_a_row_or_shared():
    shared = {"ceiling", "common", "direct", "isa", "vmath_probe"}
    assert {p.stem for p in (ROOT / "csrc/cpu").glob("*.cpp")} - shared == set(ROWS)
    assert {p.stem for p in (ROOT / "pyext/ops").glob("[!_]*.py")} == set(ROWS)


def test_cuda_sources_are_rows_in_full():
    """A row with CUDA kernels has both its files, and registers a CUDA kernel for every native op of its specs."""
    files = {p.name for p in (ROOT / "csrc/cuda").iterdir()}
    shared = {f"{n}.cuh" for n in ("gemm", "gemm_product", "gemm_sources", "glue", "launch", "mma", "platform")}
    shared |= {"conv_gemm.cuh", "conv_grouped.cuh", "conv_pool.cuh"}  # conv2d's
    shared |= {f"{n}.cuh" for n in ("cell", "recurrent_glue", "sequence", "steps")}  # rnn's and gru's
    rows = {Path(name).stem for name in files - shared}
    assert files - shared == {f"{row}.{suffix}" for row in rows for suffix in ("cu", "cuh")}
    assert rows == set(ROWS)
    for row in rows:
        ops = {kernel for spec in all_specs() if spec.row == row for kernel in spec.kernels}
        assert set(re.findall(r'm\.impl\("(\w+)"', (ROOT / f"csrc/cuda/{row}.cu").read_text())) == ops


def test_every_native_op_is_described():
    described = {kernel for spec in all_specs() for kernel in spec.kernels}
    assert native_ops() == described
    assert {row["op"] for row in _native.registry()} == described


@pytest.mark.parametrize("op", sorted(native_ops()))
def test_every_native_op_has_kernels(op):
    for key in ("CPU", "Meta"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torchsmith::{op}", key), f"{op}: no {key} kernel"
    (row,) = [r for r in _native.registry() if r["op"] == op and r["backend"] == "cpu"]
    assert {getattr(torch, name) for name in row["dtypes"]} == set(FLOATS)


def test_planted_bugs_replace_what_is_there():
    """A bug whose text has gone from the sources would end ``make mutants`` before it shows anything."""
    bugs = all_bugs()
    assert len(bugs) > 100  # of every file
    assert not [bug.name for bug in bugs if bug.right not in (ROOT / bug.file).read_text()]
    assert len({bug.name for bug in bugs}) == len(bugs)


@pytest.mark.parametrize("spec", all_specs(), ids=lambda s: s.name)
def test_every_spec_is_filled(spec):
    samples = list(spec.samples(torch.float32, torch.device("cpu")))
    names = [s.name for s in samples]
    assert len(names) == len(set(names)) >= 8
    for kind in ("nan", "stride 0", "offset view"):
        assert any(kind in name for name in names), f"{spec.name}: no sample «{kind}»"
    assert any(
        0 in t.shape for s in samples for t in torch.utils._pytree.tree_leaves(s.args) if isinstance(t, torch.Tensor)
    )
    assert len(spec.errors) >= 5 and spec.bench and spec.function.__doc__
    assert getattr(torchsmith, spec.name) is spec.function
    for case in spec.bench:
        sample = case.make(torch.float32, torch.device("cpu"))
        assert spec.flops(sample) > 0 or spec.row == "maxpool2d"
