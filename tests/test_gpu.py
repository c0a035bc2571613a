"""``make gpu`` as far as it goes without a GPU: stages, record, layout of the package, the timing loop on CPU tensors."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchsmith.bench import gpu, gpu_build, gpu_sanitize, gpu_times, readme

ROOT = Path(__file__).parent.parent


ROW = '{"op": "linear", "label": "8->8", "mode": "forward", "tf32": true}'


def python(name, code, seconds=60, **more):
    return gpu.Stage(name, [sys.executable, "-c", code], seconds, **more)


def test_a_stage_that_fails_or_times_out_does_not_lose_the_others(tmp_path):
    out = tmp_path / "records" / "gpu.json"
    stages = [
        python("bad", "print('3 passed, 1 failed in 1s'); raise SystemExit(1)", read=gpu.pytest_counts),
        python(
            "slow", "import time; print('..F.\\n.s', flush=True); time.sleep(60)", seconds=3, read=gpu.pytest_counts
        ),
        python("unreadable", "print('no json')", read=gpu.timed_rows),
        python("absent", "", tool="no-such-tool-here"),
        gpu.Stage("nowhere", ["/no/such/program"], 1),
        python("good", f"print({ROW + chr(10) + ROW + chr(10) + '{cut'!r})", read=gpu.timed_rows),
    ]
    gpu.run_stages(stages, {"format": 1}, out)
    found = json.loads(out.read_text())["stages"]
    assert [e["status"] for e in found.values()] == ["failed", "timed out", "passed", "skipped", "failed", "passed"]
    assert found["bad"]["counts"] == {"passed": 3, "failed": 1}
    assert found["slow"]["counts"] == {"passed": 4, "failed": 1, "skipped": 1}
    assert "no-such-tool-here" in found["absent"]["note"] and found["good"]["rows"] == [json.loads(ROW)]
    assert os.listdir(out.parent) == ["gpu.json"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    line = [sys.executable, ROOT / "bench" / "gpu.py", "--out", tmp_path / "gpu.json"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1 and "no NVIDIA GPU" in done.stderr and not list(tmp_path.iterdir())


def test_the_whole_stays_under_nine_minutes(tmp_path):
    assert sum(s.seconds for s in gpu.stages(tmp_path, "9.0")) < 9 * 60


def test_the_package_laid_out_can_be_imported(tmp_path):
    home = Path(importlib.util.find_spec("torchsmith").origin).parent
    gpu_build.lay_out(tmp_path, {p.name: p for p in home.glob("*.so")})
    code = "import torchsmith, torchsmith.bench.gpu_times; print(torchsmith.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}; {code}"],
                          env=environment, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip().startswith(str(tmp_path))


def test_the_timing_loop_on_cpu_tensors():
    rows = list(gpu_times.measure(torch.device("cpu"), limit=3, rounds=1, calls=1))
    timed = [row for row in rows if "us" in row]
    assert timed and all(set(row["us"]) == {"auto", "native"} and min(row["us"].values()) > 0 for row in timed)
    assert all("time was up" in row["error"] for row in rows if "us" not in row)


def test_readme_quotes_the_record_alone(tmp_path):
    out = tmp_path / "gpu.json"
    assert readme.gpu(out) == "GPU speed: not yet measured on a GPU.\n"
    row = {"op": "linear", "label": "8->8 b1", "mode": "forward", "tf32": False, "us": {"cpp": 2.0, "native": 3.0}}
    slow = {**row, "label": "9->9 b1", "us": {"cpp": 4.0, "native": 3.0, "cpp graph": 1.0, "native graph": 2.5}}
    stages = {
        "tests": {"status": "passed", "counts": {"passed": 3900}},
        "memcheck": {"status": "passed", "calls": 573, "left out": 1, "summary": "ERROR SUMMARY: 0 errors"},
        "benchmarks": {"status": "timed out", "note": "Why.", "rows": [row, slow, {"op": "rnn", "error": "no"}]},
    }
    gpu.save({"device": "D", "driver": "1", "torch": "2.11", "date": "2026-01-02T00:00", "stages": stages}, out)
    said = readme.gpu(out)
    assert "| linear | forward | 0.75-1.50 | 2.50 | - | - |" in said and "- benchmarks: timed out. Why.\n" in said
    assert "- tests: passed (3,900 passed).\n" in said
    assert "- memcheck: passed (573 calls, 1 left out, error summary: 0 errors).\n" in said


def test_what_the_sanitizer_is_given_on_cpu_tensors():
    every, few = gpu_sanitize.run("cpu", 60), gpu_sanitize.run("cpu", 0)
    assert every["calls"] > 500 and few["calls"] == 0 and sum(every.values()) == sum(few.values())
    said = '{"calls": 3, "left out": 1}\n========= ERROR SUMMARY: 0 errors\n'
    assert gpu.sanitized(said) == {"calls": 3, "left out": 1, "summary": "ERROR SUMMARY: 0 errors"}
