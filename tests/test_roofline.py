"""torchsmith explain: launch plans of the CUDA kernels and roofline estimates, worked out without a GPU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from contract import in_turn, samples_of

from torchsmith import _native, roofline
from torchsmith.cli import main
from torchsmith.spec import FLOATS, Sample, all_specs

ROOT = Path(__file__).parents[1]
H200 = roofline.DEVICES["h200"]
SPECS = {spec.name: spec for spec in all_specs()}


def run(*args):
    return CliRunner().invoke(main, ["explain", *args], prog_name="torchsmith")


def strict(text: str):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def plan(op, *arguments, device=H200):
    return _native.cuda_plan(op, list(arguments), device.sm, device.multiprocessors, device.shared_per_block)


def tensor(*sizes, dtype="float32"):
    return roofline._plain(torch.empty(sizes, dtype=getattr(torch, dtype), device="meta"))


@pytest.fixture(scope="module")
def everything():
    """device -> every line there is, TF32 left off."""
    return {name: list(roofline.explain(device)) for name, device in roofline.DEVICES.items() if name in ("h200", "l4")}


# ---------------------------------------------------------------------------------------------- by hand


def test_linear_forward_by_hand():
    """64 x 784 times 512 x 784 in float32: one row of 8 tiles of 64 x 64, k = 784 is 49 steps of 16.

    132 / 8 = 16 shares would fit the device, 49 / 8 = 6 are worth it: 9 steps each, so 6 shares.
    """
    product, reduction = plan("linear_forward", tensor(64, 784), tensor(512, 784), tensor(512), False, False)
    assert product["kernel"].startswith("ts::cuda::gemm_kernel<")
    assert product["grid"] == (8, 6, 1) and product["threads"] == 128
    # Two stages of two tiles of 64 rows of 16 + 4 floats.
    assert product["shared"] == 2 * 2 * 64 * 20 * 4
    assert product["flops"] == 2 * 64 * 784 * 512 and product["arithmetic"] == "fp32"
    shares = 6 * 64 * 512 * 4
    assert product["bytes"] == (64 * 784 + 512 * 784) * 4 + shares
    # A thread adds the shares of two columns; it reads them and the bias, and writes y.
    assert reduction["grid"] == (64 * 256 // 256, 1, 1) and reduction["threads"] == 256
    assert reduction["bytes"] == shares + 64 * 512 * 4 + 512 * 4 and reduction["flops"] == 6 * 64 * 512

    (line, second) = [
        found
        for found in roofline.explain(H200, ["linear"], ["float32"])
        if (found.shape, found.mode) == ("784->512 b64", "forward")
    ]
    assert (line.ctas, line.tile, line.flops, line.bytes) == (48, "64x64", product["flops"], product["bytes"])
    # 48 of 132 multiprocessors, 67 TFLOP/s; 4800 GB/s.
    assert line.compute_us == pytest.approx(51_380_224 / (67e12 * 48 / 132) * 1e6)
    assert line.memory_us == pytest.approx(2_592_768 / 4800e9 * 1e6)
    assert line.estimate_us == line.compute_us and line.bound == "few blocks"
    assert second.bound == "memory" and second.ctas == 64


def test_pool_by_hand():
    """2 x 2 windows of 64 x 10 planes of 24 x 24: two windows a thread in float32, a byte a position."""
    x, pair = tensor(64, 10, 24, 24), [2, 2]
    (forward,) = plan("maxpool2d_forward", x, pair, pair, [0, 0], [1, 1], False)
    windows = 64 * 10 * 12 * 12
    assert "pool_forward_2x2_kernel" in forward["kernel"]
    assert forward["grid"] == (windows // 2 // 256, 1, 1) and forward["threads"] == 256 and forward["shared"] == 0
    assert forward["bytes"] == 64 * 10 * 24 * 24 * 4 + windows * (4 + 1) and forward["flops"] == 0


def test_convolution_by_hand():
    """8 images of 64 x 56 x 56, 3 x 3, padded: one row of 392 tiles of 64 cells. The patches are gathered from x, read once."""
    arguments = [[1, 1], [1, 1, 1, 1], [1, 1], 1, False, []]
    x, w = tensor(8, 64, 56, 56), tensor(64, 64, 3, 3)
    (forward,) = plan("conv2d_forward", x, w, tensor(64), *arguments, False)
    assert forward["grid"] == (8 * 56 * 56 // 64, 1, 1) and forward["threads"] == 128
    assert forward["flops"] == 2 * 8 * 56 * 56 * 64 * 64 * 9
    image, weight = 8 * 64 * 56 * 56 * 4, 64 * 64 * 9 * 4
    assert forward["bytes"] == image + weight + 64 * 4 + image
    (dx,) = plan("conv2d_backward", x, x, w, None, None, *arguments, True, False, False, False)
    assert (dx["product"], dx["flops"], dx["bytes"]) == ("dx", forward["flops"], 2 * image + weight)


def test_fused_pool_by_hand():
    """64 images of 28 x 28, 5 x 5, ReLU, 2 x 2 pool: 12 x 12 results of 10 channels, each with a byte of position."""
    arguments = [[1, 1], [0, 0, 0, 0], [1, 1], 1, True, [2, 2, 2, 2, 0, 0]]
    x, w = tensor(64, 1, 28, 28), tensor(10, 1, 5, 5)
    (one,) = plan("conv2d_forward", x, w, tensor(10), *arguments, False)
    results = 64 * 10 * 12 * 12
    assert "conv_pool2x2_kernel" in one["kernel"] and one["flops"] == 2 * 4 * results * 25
    assert one["bytes"] == (64 * 28 * 28 + 10 * 25 + 10) * 4 + results * (4 + 1)


def test_gru_sequence_by_hand():
    """Two layers, both directions, 19 steps of 256 rows, hidden 100: a block takes 4 rows of a direction through all steps."""
    T, B, H, e = 19, 256, 100, 4
    weights = [w for i in (H, H, 2 * H, 2 * H) for w in (tensor(300, i), tensor(300, H), tensor(300), tensor(300))]
    x, h, flags = tensor(T, B, H), tensor(4, B, H), [None, None, True, True, False]
    forward = plan("gru_forward", x, h, weights, *flags, True, False)
    products, steps = forward[0], forward[2]
    assert [s["product"] for s in forward] == ["inputs", "inputs", "steps"] * 2
    assert products["flops"] == 2 * T * B * 300 * H and "gemm_kernel" in products["kernel"]
    assert products["bytes"] == (T * B * H + 300 * H + T * B * 300 + 300) * e
    # 128 / 2 blocks of 4 rows would do for 132 multiprocessors; shared: the weights, and the state twice.
    assert steps["grid"] == (B // 4, 2, 1) and steps["shared"] == (300 * H + 2 * 4 * H) * e
    assert steps["flops"] == 2 * (2 * T * B * 300 * H)
    # a direction: gates and the result of every row, what backward needs of it; W_hh, b_hh; the state in and out
    assert steps["bytes"] == 2 * (T * B * H * (3 + 1 + 4) + 300 * H + 300 + 2 * B * H) * e
    backward = plan("gru_backward", x, None, x, h, weights, *flags[:2], x, x, True, True, False, True, True, False)
    wide = [s for s in backward if "steps" in s["product"]]
    assert len(wide) == 2 and all(s["grid"] == (B // 4, 2, 1) and not s["cooperative"] for s in wide)
    assert [s["product"] for s in backward if "reduce" not in s["kernel"]] == [
        "steps back", "dw_ih, db_ih", "dw_hh, db_hh", "dx of a layer", "dw_ih, db_ih", "dw_hh, db_hh", "dx of a layer",
        "steps back", "dw_ih, db_ih", "dw_hh, db_hh", "dx", "dw_ih, db_ih", "dw_hh, db_hh", "dx",
    ]  # fmt: skip


def test_a_large_recurrent_layer_needs_the_whole_grid():
    weights = [tensor(1024, 64), tensor(1024, 1024)]
    steps = plan(
        "rnn_forward", tensor(7, 3, 64), tensor(1, 3, 1024), weights, None, None, False, False, True, True, False
    )[-1]
    assert steps["cooperative"] and steps["grid"][0] <= 132 and steps["flops"] == 2 * 7 * 3 * 1024 * 1024


def test_packed_sequences_send_their_offsets():
    weights, sizes = [tensor(5, 3), tensor(5, 5)], tensor(300, dtype="int64")
    packed = plan("rnn_forward", tensor(301, 3), tensor(1, 2, 5), weights, None, sizes, False, False, True, True, False)
    assert [s["product"] for s in packed] == ["offsets", "offsets", "inputs", "steps"]  # 301 offsets, 256 a launch
    assert [s["bytes"] for s in packed[:2]] == [256 * 8, 45 * 8]


def test_cells_by_hand():
    B, I, H, e = 64, 100, 100, 2
    x = tensor(B, I, dtype="float16")
    (one,) = plan("gru_cell_forward", x, x, *[tensor(300, 100, dtype="float16")] * 2, None, None, False, True)
    assert one["grid"] == (4 * 4, 1, 1) and one["flops"] == 2 * B * 300 * (I + H)
    assert one["bytes"] == (3 * B * H + 2 * 300 * 100) * e + 4 * B * H * 4


def test_a_row_of_linear_is_read_once():
    (one,) = plan("linear_forward", tensor(1, 784), tensor(512, 784), None, True, True)
    assert "linear_few_rows_kernel" in one["kernel"] and one["grid"] == (512 // 4, 1, 1)
    assert one["arithmetic"] == "fp32"  # by multiply-adds, whatever TF32 says
    assert one["bytes"] == (784 + 512 * 784 + 512) * 4


def test_backward_of_relu_reads_the_mask_in_each_product():
    g, x, w = tensor(64, 512, dtype="float16"), tensor(64, 784, dtype="float16"), tensor(512, 784, dtype="float16")

    def bytes_of(relu, product, *need):
        steps = plan("linear_backward", g, x, w, g if relu else None, relu, *need, False)
        assert {s["product"] for s in steps} == {product}
        return sum(s["bytes"] for s in steps)

    mask = 64 * 512 * 2
    assert bytes_of(True, "dx", True, False, False) - bytes_of(False, "dx", True, False, False) == mask
    assert bytes_of(True, "dw", False, True, False) - bytes_of(False, "dw", False, True, False) == mask
    bias = bytes_of(False, "dw, db", False, True, True) - bytes_of(False, "dw", False, True, False)
    assert bias == 512 * 2


def test_tf32_needs_the_setting_and_a_device_that_has_it():
    arguments = [tensor(64, 784), tensor(512, 784), None, False]
    assert plan("linear_forward", *arguments, False)[0]["arithmetic"] == "fp32"
    assert plan("linear_forward", *arguments, True)[0]["arithmetic"] == "tf32"
    turing = _native.cuda_plan("linear_forward", [*arguments, True], 75, 40, 65536)
    assert turing[0]["arithmetic"] == "fp32"


@pytest.mark.parametrize(
    ("device", "threads", "shared", "registers", "blocks", "warps", "limit"),
    [
        # 80 registers x 32 = 2560 a warp: 25 warps fit, in fours 24, 4 a block. Shared: 31 KiB a block, 7 fit.
        ("h200", 128, 30720, 80, 6, 24, "registers"),
        ("h200", 128, 30720, None, 7, 28, "shared memory"),
        # 61440 bytes and 1 KiB of the system's: 3 blocks of 61 KiB in 228.
        ("h200", 256, 61440, None, 3, 24, "shared memory"),
        # 37 x 32 = 1184, rounded up to 1280: 51 warps, 48, 8 a block.
        ("a100", 256, 0, 37, 6, 48, "registers"),
        ("a100", 32, 0, 16, 32, 32, "blocks"),
        ("l4", 256, 0, 32, 6, 48, "threads"),
        ("l4", 256, 100 * 1024, 32, 0, 0, "shared memory"),  # more than a block may have
    ],
)
def test_occupancy_by_hand(device, threads, shared, registers, blocks, warps, limit):
    found = roofline.occupancy(roofline.DEVICES[device], threads, shared, registers)
    assert (found.blocks, found.warps, found.limit) == (blocks, warps, limit)
    assert found.fraction == pytest.approx(warps * 32 / roofline.DEVICES[device].threads_per_sm)


def test_registers_are_those_of_the_code_that_runs():
    l4, recorded = roofline.DEVICES["l4"], {"75": 1, "80": 2, "86": 3, "90": 4}
    assert roofline.registers_on(l4, recorded) == 3  # machine code for 8.6 runs on 8.9
    assert roofline.registers_on(l4, {**recorded, "89": 5}) == 5
    assert roofline.registers_on(H200, recorded) == 4
    assert roofline.registers_on(H200, {"80": 2}) is None and roofline.registers_on(H200, {}) is None


def test_roofline_by_hand():
    compute, memory = roofline.roofline(H200, "fp16", 989_500_000, 4_800_000, 132)
    assert compute == pytest.approx(1.0) and memory == pytest.approx(1.0)
    assert roofline.roofline(H200, "fp16", 989_500_000, 0, 66)[0] == pytest.approx(2.0)  # half of the device


# ---------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("name", roofline.DEVICES)
def test_a_device_agrees_with_itself(name):
    device = roofline.DEVICES[name]
    assert device.multiprocessors * device.lanes * 2 * device.clock / 1e3 == pytest.approx(
        device.peak["fp32"], rel=0.01
    )
    assert set(device.peak) == {"fp64", "fp32", "tf32", "fp16", "bf16"} and device.source
    assert device.shared_per_block == device.shared_per_sm - 1024


def test_unknown_device_names_the_known_ones():
    result = run("--device", "h300")
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert "'h300'" in result.output and all(name in result.output for name in roofline.DEVICES)
    with pytest.raises(ValueError, match="no device 'h300'; known are: h200, h100, a100, l4, rtx4090"):
        roofline.get_device("h300")


# ---------------------------------------------------------------------------------------------- every op


def test_ops_with_cuda_kernels_are_told_or_named(everything):
    """All launches of every benchmark of an op, in every dtype, or its name among those that have no plan yet."""
    missing = roofline.unplanned()
    assert not missing, "an op with CUDA kernels has no csrc/plans/<row>.cpp"
    wanted = {
        (spec.name, case.label, str(dtype).removeprefix("torch."), mode)
        for spec in all_specs()
        if spec.name not in missing
        for case in spec.bench
        for dtype in spec.dtypes
        for mode in ("forward", "backward")
    }
    for lines in everything.values():
        assert {(line.op, line.shape, line.dtype, line.mode) for line in lines} == wanted
    registered = set()
    for path in (ROOT / "csrc/cuda").glob("*.cu"):
        registered |= set(re.findall(r'm\.impl\("(\w+)"', path.read_text()))
    assert set(_native.cuda_planned()) <= registered, "a plan of an op without CUDA kernels"
    for op in registered - set(_native.cuda_planned()):
        assert any(op in kernels for kernels in missing.values())


def test_launches_are_those_on_record(everything):
    """Names, threads and shared memory as the compiler and the tests' own launches have them."""
    record = json.loads((ROOT / "bench/records/cuda_kernels.json").read_text())["kernels"]
    for lines in everything.values():
        for line in lines:
            known = (
                record.get(f"{SPECS[line.op].row}: {line.kernel}") or record[f"rnn: {line.kernel}"]
            )  # as gru's products
            if "steps" not in line.product:  # those grow with the hidden size
                assert line.threads <= known["threads"] and line.shared <= known["shared"], line
            assert line.registers and 0 < line.occupancy <= 1, line


def test_lines_make_sense(everything):
    for name, lines in everything.items():
        device = roofline.DEVICES[name]
        for line in lines:
            x, y, z = line.grid
            assert line.ctas == x * y * z > 0 and 0 < line.threads <= 1024
            assert line.shared <= device.shared_per_block
            assert line.bytes > 0 and line.flops >= 0
            assert line.estimate_us == max(line.compute_us, line.memory_us) > 0
            assert line.waves == pytest.approx(line.ctas / line.blocks_per_sm / device.multiprocessors)


def test_forward_flops_are_at_least_the_specs(everything):
    for spec in all_specs():
        for case in spec.bench:
            flops = spec.flops(case.make(torch.float32, torch.device("cpu")))
            found = [
                line.flops
                for line in everything["h200"]
                if (line.op, line.shape, line.dtype, line.mode) == (spec.name, case.label, "float32", "forward")
            ]
            assert not found or sum(found) >= flops


@pytest.mark.parametrize("name", [spec.name for spec in all_specs()])
def test_every_sample_has_a_plan(name):
    """Ragged, empty, strided and transposed arguments, too: the launchers take them, and every launch is described."""
    spec = SPECS[name]
    if name in roofline.unplanned():
        pytest.skip("no plan exposed yet")
    sharing = [other for other in all_specs() if other.kernels == spec.kernels]
    others = [
        dtype for dtype in FLOATS if dtype != torch.float32
    ]  # each for a third: a plan depends on sizes, theirs among them
    for dtype in FLOATS:
        every = {other.name: samples_of(other, dtype) for other in sharing}
        some = every[name] if dtype == torch.float32 else in_turn(spec, every)[others.index(dtype) :: len(others)]
        for sample in some:
            for _, native, arguments in roofline.trace(spec, sample, (), False):
                try:
                    plan(native, *arguments)
                except RuntimeError:  # what the kernels refuse, and the op then leaves to ATen
                    assert any(isinstance(a, dict) and 0 in a["sizes"] for a in arguments), (sample.name, arguments)


def test_the_plans_are_of_rows():
    stems = {path.stem for path in (ROOT / "csrc/plans").glob("*.cpp")}
    assert stems - {"bind"} <= {path.stem for path in (ROOT / "csrc/cuda").glob("*.cu")}


def test_trace_calls_nothing_and_sees_the_backward():
    x = torch.full((3, 5), float("nan"), requires_grad=True)
    calls = roofline.trace(SPECS["linear"], Sample("", (x, torch.ones(2, 5), torch.ones(2))), (1,), True)
    assert [(mode, native) for mode, native, _ in calls] == [
        ("forward", "linear_forward"),
        ("backward", "linear_backward"),
    ]
    assert calls[0][2][-1] is True and calls[1][2][5:8] == [True, False, True]  # TF32; no gradient for a frozen weight
    assert x.grad is None


# ---------------------------------------------------------------------------------------------- refusals and the command


def test_unknown_op_names_those_there_are():
    with pytest.raises(ValueError, match="'conv9' has no plan; there are: .*'linear_forward'"):
        plan("conv9")


def test_wrong_arguments_are_errors_not_crashes():
    for arguments in ([], [None] * 5, [tensor(2, 3), tensor(4, 5), None, False, False], [1, 2, 3, False, False]):
        with pytest.raises((RuntimeError, ValueError, IndexError)):
            plan("linear_forward", *arguments)
    integers = tensor(2, 3, dtype="int64")
    with pytest.raises(ValueError, match="no kernel for int64"):
        plan("linear_forward", integers, integers, None, False, False)


def test_json_is_strict():
    result = run("--json", "--device", "a100", "--op", "linear", "--op", "gru", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    facts = strict(result.stdout)
    assert facts["measured"] is False and "ESTIMATE" in facts["note"]
    assert facts["device"]["name"] == "a100" and facts["device"]["source"]
    assert {line["op"] for line in facts["launches"]} - {"gru"} == {"linear"}
    assert {line["dtype"] for line in facts["launches"]} == {"float32"}
    assert set(facts["no_plan_exposed_yet"]) == {"gru"} & set(roofline.unplanned())


def test_table_says_what_it_is():
    result = run("--op", "linear_relu", "--op", "conv2d", "--dtype", "float16")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "ESTIMATE, not measured" in text and "H200" in text and "data sheet" in text
    assert "784->512 b64" in text and "gemm 64x64 fp16" in text and "max_pool2d" not in text
    if "conv2d" in roofline.unplanned():
        assert "conv2d: no plan exposed yet (conv2d_forward, conv2d_backward)" in text


def test_help():
    result = run("--help")
    assert result.exit_code == 0 and result.output.startswith("Usage: torchsmith explain ")
    for option in ("--device", "--op", "--dtype", "--tf32", "--json"):
        assert option in result.output
