"""The measuring itself: turns, medians, refusal of wrong kernels, records and tables, the command."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from click.testing import CliRunner
from torch.nn.utils.rnn import pack_sequence

from torchsmith.bench import harness, pairs, readme, report
from torchsmith.spec import BenchCase, Sample, all_specs

ROOT = Path(__file__).resolve().parents[1]

needs_pytest_benchmark = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("pytest_benchmark"), reason="pytest-benchmark is not installed"
)


# ---------------------------------------------------------------------------------------------- harness


def test_arms_take_turns_with_the_collector_off():
    seen = []

    def arm(name):
        def run(count):
            seen.append((name, gc.isenabled()))
            time.sleep(2e-4)

        return run

    plan = harness.Plan(budget_s=0.01, round_s=1e-4, warm_s=0.0, min_rounds=6, max_rounds=6)
    times = harness.interleave(pairs.Pair(arm("ours"), arm("native")), plan)
    timed = seen[-12:]
    assert [name for name, _ in timed] == ["native", "ours"] * 6
    assert not any(collecting for _, collecting in timed)
    assert gc.isenabled()
    assert len(times.ours) == len(times.native) == 6


def test_ratio_is_native_over_ours_per_call():
    pair = pairs.Pair(lambda n: time.sleep(n * 1e-3), lambda n: time.sleep(n * 3e-3))
    times = harness.interleave(pair, harness.Plan(budget_s=0.03, round_s=3e-3, warm_s=0.0, min_rounds=5, max_rounds=5))
    facts = harness.ratio_of(times)
    assert 2.0 < facts["ratio"] < 3.2
    assert facts["ratio_low"] <= facts["ratio_high"]
    assert 1e-3 <= min(times.ours) < 3e-3


def test_small_work_is_repeated_within_a_round():
    calls, rounds = harness.Plan().calls_and_rounds(pairs.Pair(lambda n: None, lambda n: None))
    assert calls > 100
    assert 9 <= rounds <= 300


def linear_case():
    def make(dtype, device):
        return Sample("x", tuple(torch.randn(size, dtype=dtype) for size in ((3, 4), (5, 4), (5,))))

    return BenchCase("x", make, frozen=(0,))


def broken_after(change):
    return lambda *args: change(torch.nn.functional.linear(*args))


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sign", lambda y: -y),
        ("nan", lambda y: y * torch.tensor([float("nan"), 1, 1, 1, 1])),
        ("one element", lambda y: y + torch.tensor([1, 0, 0, 0, 0])),
        ("shape", lambda y: y[:, :4]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_kernel_is_not_timed(mode, name, change, dtype):
    spec = SimpleNamespace(function=broken_after(lambda y: change(y).to(dtype)), reference=torch.nn.functional.linear)
    with pytest.raises((AssertionError, RuntimeError)):
        pairs.op_pair(spec, linear_case(), mode, dtype).verify()


@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
def test_a_right_kernel_is_timed(mode):
    spec = SimpleNamespace(function=broken_after(lambda y: y.clone()), reference=torch.nn.functional.linear)
    pair = pairs.op_pair(spec, linear_case(), mode, torch.float32)
    pair.verify()
    pair.ours(2)
    pair.native(2)


def test_a_wrong_gradient_is_not_timed():
    def wrong(x, w, b):
        return torch.nn.functional.linear(x, w, b.detach() + 0 * b)

    spec = SimpleNamespace(function=wrong, reference=torch.nn.functional.linear)
    pairs.op_pair(spec, linear_case(), "forward", torch.float32).verify()
    with pytest.raises(AssertionError, match="off by"):
        pairs.op_pair(spec, linear_case(), "forward+backward", torch.float32).verify()


def test_frozen_arguments_get_no_gradient():
    sample = linear_case().make(torch.float32, torch.device("cpu"))
    args, _, inputs = pairs._with_grad(sample, (0,))
    assert [a.requires_grad for a in args] == [False, True, True]
    assert len(inputs) == 2


def test_nests_of_tensors_are_walked():
    packed = pack_sequence([torch.zeros(3, 2), torch.zeros(1, 2)])
    nest = (packed, [torch.ones(1), {"a": torch.ones(2)}], None, 3)
    assert [tuple(t.shape) for t in pairs.leaves(nest)] == [(4, 2), (1,), (2,)]
    doubled = pairs.map_tensors(nest, lambda t: t + 1)
    assert torch.equal(doubled[0].batch_sizes, packed.batch_sizes)
    assert doubled[0].data.eq(1).all()
    assert doubled[2:] == (None, 3)


def test_module_pair_starts_from_the_same_weights():
    def module():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))

    ours, native = module(), module()
    batch = (torch.randn(5, 4),), torch.tensor([0, 1, 2, 0, 1])
    for mode in ("training step", "inference"):
        pair = pairs.module_pair(ours, native, *batch, mode)
        pair.verify()
        pair.ours(1)
        pair.native(1)
    with pytest.raises(ValueError, match="mode must be"):
        pairs.module_pair(ours, native, *batch, "step")


def test_environment_names_no_folder():
    text = json.dumps(harness.environment())
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert str(ROOT) not in text
    assert torch.__version__ in text


# ---------------------------------------------------------------------------------------------- record and tables


def row(**changes):
    base = {
        "kind": "op", "op": "linear", "label": "2x3", "mode": "forward", "dtype": "float32", "threads": 1,
        "ours_us": 10.0, "native_us": 25.0, "ratio": 2.5, "ratio_low": 2.4, "ratio_high": 2.6, "gflops": 12.34,
    }  # fmt: skip
    return {**base, **changes}


def data(*rows):
    env = {
        "processor": "P", "cores": 2, "isa": "avx2", "native_isa": "AVX2", "torch": "2", "torchsmith": "1",
        "python": "3", "compiler": "gcc",
    }  # fmt: skip
    return {"format": report.FORMAT, "when": "2025-01-02T03:04", "environment": env, "rows": list(rows)}


def test_markdown_has_a_table_for_each_mode_and_thread_count():
    text = report.markdown(data(row(), row(threads=2, ratio=0.8), row(kind="model", op="M", mode="inference")))
    assert "## Ops, forward, 1 thread, float32" in text
    assert "## Ops, forward, 2 threads, float32" in text
    assert "## Models, inference, 1 thread, float32" in text
    assert "| linear | 2x3 | 25.0 us | 10.0 us | 2.50 (2.40-2.60) | 12.3 |" in text
    assert "0.80" in text, "losses are shown as plainly as wins"


@pytest.mark.parametrize(
    ("us", "text"), [(0.1234, "0.12 us"), (12.34, "12.3 us"), (999.4, "999 us"), (1234.0, "1.23 ms"), (2.5e6, "2.50 s")]
)
def test_durations(us, text):
    assert report.duration(us) == text


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    report.write_atomic(path, "old")

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        report.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99, "rows": []}', '{"format": 1}'])
def test_a_bad_record_names_itself(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="bad.json"):
        report.load(path)


def test_save_and_load(tmp_path):
    saved, table = report.save(tmp_path / "new" / "folder", data(row()))
    assert report.load(saved) == data(row())
    assert table.read_text() == report.markdown(data(row()))


# ---------------------------------------------------------------------------------------------- README


def test_blocks_are_replaced_between_their_marks():
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"
    assert readme.replace_block(text, "x", "new\n") == text.replace("old", "new")
    with pytest.raises(ValueError, match="'y'"):
        readme.replace_block(text, "y", "")


def test_the_support_table_names_every_op():
    table = readme.support()
    for spec in all_specs():
        assert f"`{spec.name}`" in table


def test_every_record_is_quoted_by_its_models(tmp_path):
    step = row(kind="model", op="MnistMLP", mode="training step")
    op = row(kind="op", op="conv2d", mode="forward+backward", ratio=0.9)
    for name, models, year in (("cpu", [step, op], 2025), ("cpu-avx2", [{**step, "op": "MnistCNN"}], 2026)):
        record = {**data(), "rows": models, "when": f"{year}-01-01T00:00:00+00:00"}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    text = readme.figures(tmp_path / "cpu.json")
    assert text.index("measured 2026") < text.index("measured 2025")
    assert [name in text for name in ("MnistMLP", "conv2d", "MnistCNN")] == [True, False, True]
    assert text.count("measured 20") == 2
    assert "2 measurements: 1 at least as fast as their baseline, 1 slower" in text


def test_readme_is_current():
    path = ROOT / "README.md"
    if not path.is_file():
        pytest.skip("not in a checkout")
    text = path.read_text(encoding="utf-8")
    assert readme.render(text, ROOT / "bench" / "records" / "cpu.json") == text, "run `make readme`"


# ---------------------------------------------------------------------------------------------- the command


def invoke(*args: str):
    from torchsmith.bench_cli import bench

    return CliRunner().invoke(bench, list(args))


@pytest.mark.parametrize(
    ("args", "allowed"),
    [
        (("--op", "softmax"), "linear"),
        (("--mode", "sideways"), "training step"),
        (("--dtype", "int8"), "bfloat16"),
        (("--threads", "0"), "1"),
    ],
)
def test_wrong_options_say_what_is_allowed(args, allowed):
    result = invoke(*args)
    assert result.exit_code == 2
    assert allowed in result.output


@needs_pytest_benchmark
def test_bench_writes_its_record_and_tables(tmp_path):
    what = ["bench", "--quick", "--op", "linear", "--mode", "forward", "--json"]
    done = processes.run("-m", "torchsmith", *what, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = report.load(tmp_path / "out" / "bench.json")
    assert json.loads(done.stdout) == record
    labels = [case.label for spec in all_specs() if spec.name == "linear" for case in spec.bench]
    assert [r["label"] for r in record["rows"]] == labels
    for r in record["rows"]:
        assert r["ratio"] > 0
        assert r["threads"] == 1
        assert r["gflops"] > 0
        assert r["rounds"] >= 5
    assert (tmp_path / "out" / "bench.md").read_text() == report.markdown(record)
    raw = json.loads((tmp_path / "out" / "pytest-benchmark.json").read_text())
    assert {b["extra_info"]["op"] for b in raw["benchmarks"]} == {"linear"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "nothing is left where the command ran"


# Stopped in the second measurement, from inside, so that it comes at a known moment: argv[1] is how many times it has then,
# argv[2] the signal.
STOPPED_IN_THE_SECOND = """
import signal, sys
from torchsmith.bench import harness
from torchsmith.cli import main

# A shell starts its background jobs with Ctrl-C ignored, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Stopped(list):
    def append(self, seconds):
        if len(self) == int(sys.argv[1]):
            signal.raise_signal(int(sys.argv[2]))
        super().append(seconds)

made = []

class Times(harness.Times):
    def __init__(self):
        super().__init__(native=Stopped() if made else [])
        made.append(self)

harness.Times = Times
main(["bench", "--quick", "--op", "linear", "--mode", "forward", "--out", "out"], prog_name="torchsmith")
"""


@needs_pytest_benchmark
@pytest.mark.parametrize("times, number", [(0, signal.SIGINT), (1, signal.SIGINT), (1, signal.SIGTERM)])
def test_a_stop_keeps_what_was_measured(tmp_path, times, number):
    """Ctrl-C; and SIGTERM, which a time limit sends."""
    done = processes.run("-c", STOPPED_IN_THE_SECOND, times, int(number), cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    assert "stopped early" in done.stderr
    record = report.load(tmp_path / "out" / "bench.json")
    assert record["interrupted"]
    assert len(record["rows"]) == 1
