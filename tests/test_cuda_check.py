"""The verdict of ``make cuda-check``, without its download."""

import json
from pathlib import Path

import cuda_check
import processes
import torch

from torchsmith.spec import all_specs

GOOD = {
    "torch": "2.15.0+cu132",
    "cuda": "13.2",
    "installed": True,
    "table": [{"row": "linear", "op": "linear", "kernels": ["linear_forward", "linear_backward"], "missing": []}],
    "wrong": {},
}


def test_nothing_missing():
    assert cuda_check.problems(GOOD, 10**7) == []
    assert "2 of 2" in cuda_check.table(GOOD)


def test_each_finding_is_named():
    def first(size=10**7, **change):
        (problem,) = cuda_check.problems({**GOOD, **change}, size)
        return problem

    missing = [{**GOOD["table"][0], "missing": ["linear_backward"]}]
    assert first(table=missing) == "linear: linear has no CUDA kernel for linear_backward"
    assert "60.0 MB" in first(size=60 * 10**6)
    assert "no CUDA build" in first(cuda=None)
    assert "checkout" in first(installed=False)
    assert "no op" in first(table=[])
    assert first(wrong={"rnn": "result 0: off by 1"}) == "rnn is wrong on the CPU: result 0: off by 1"


def test_the_probe_sees_every_op_and_no_cuda_kernel_under_a_cpu_torch():
    probe = Path(cuda_check.ROOT) / "tests" / cuda_check.PROBE
    done = processes.run(probe, check=True)
    report = json.loads(done.stdout)
    assert {op["op"] for op in report["table"]} == {spec.name for spec in all_specs()}
    if torch.version.cuda is None:
        assert report["cuda"] is None and all(op["missing"] == op["kernels"] for op in report["table"])
