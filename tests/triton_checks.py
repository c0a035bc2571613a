"""Some rows' Triton kernels under Triton's interpreter: run by test_triton.py, in a process with TRITON_INTERPRET=1.

Every sample of their specs that is small enough for an interpreter, forward and backward, against the float64 reference
by the rule of compare.py. What was launched is written down for the ahead-of-time compilation that follows.
"""

import importlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
import triton_fast
from compare import compare
from contract import SEED, Call, in_turn, samples_of, seed
from triton.runtime import interpreter

from torchsmith import triton_backend
from torchsmith.dispatch import backend, explain
from torchsmith.kernels import _gemm
from torchsmith.kernels._shared import Config
from torchsmith.ops._recurrent_samples import maker, weights_for
from torchsmith.spec import Sample, all_specs

triton_fast.install()

ROWS = os.environ["TORCHSMITH_TEST_ROWS"].split()
SPECS = [spec for spec in all_specs() if spec.row in ROWS and all(map(triton_backend.has, spec.kernels))]
MOST = {torch.float32: 6000, torch.float16: 1500}  # elements of a sample: a program of a launch takes milliseconds
LAUNCHED: dict[str, dict] = {}


@pytest.fixture(autouse=True)
def _write_down(monkeypatch):
    run = interpreter.InterpretedFunction.run

    def recorded(self, *args, grid, warmup, **kwargs):
        given = dict(zip(self.arg_names, args, strict=False)) | kwargs
        types = {name: str(v.dtype).removeprefix("torch.") for name, v in given.items() if isinstance(v, torch.Tensor)}
        constants = {k: v for k, v in kwargs.items() if k in self.arg_names}
        one = {"kernel": self.fn.__name__, "file": Path(self.fn.__code__.co_filename).stem, "tensors": types,
               "constants": constants, "options": {k: v for k, v in kwargs.items() if k not in self.arg_names}}  # fmt: skip
        LAUNCHED[json.dumps(one, sort_keys=True)] = one
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", recorded)


def edges_of(spec, dtype):
    """The samples that the CUDA kernels have at the edges of their tiles, some of them large: float32 alone."""
    if dtype != torch.float32 or not (Path(__file__).parent / "cuda_rows" / f"{spec.row}.py").is_file():
        return []
    seed(SEED)
    samples = importlib.import_module(f"cuda_rows.{spec.row}").samples(dtype)
    return list(samples[spec.name] if isinstance(samples, dict) else samples)


def configured(spec, dtype):
    """Small samples, one for each configuration that those of the specs do not reach in float16."""
    if dtype != torch.float16 or spec.name != spec.row:  # an op for each file of kernels
        return []
    seed(SEED)
    make = maker(dtype, "cpu")
    if spec.row == "conv2d":
        return [
            Sample(f"{C} channels to {K}", (make(1, C, 3, 3), make(K, C, 2, 2), make(K)))
            for C, K in ((20, 40), (40, 20))
        ]
    gates = {"rnn": 1, "gru": 3}.get(spec.row)
    return [
        Sample(f"hidden {H}", (make(2, 1, 2), make(1, 1, H), weights_for(make, gates, 2, H)))
        for H in (20, 40, 100)
        if gates
    ]


def slow(spec, sample):
    """What an interpreter takes seconds for and other samples show: a window of 289 cells, but in float32, planes and
    max_pool2d itself; under overlapping windows an image of the course, and all depthwise ones but one (without such windows each
    is there); float16 of both nonlinearities and of depthwise ones.
    What Triton's kernels do not have: a cooperative launch, steps in shares, depthwise in channels_last by a kernel of its own.
    """
    half, name = Call(sample).tensors[0].dtype == torch.float16, sample.name
    if "cooperative" in name or name.startswith(("steps in shares", "channels_last, depthwise")):
        return True
    if re.search("window (of|over)", name):
        return half or "channels_last" in name or spec.row == "conv2d"
    if sample.kwargs.get("pool_stride") and re.match(r"course 1|depthwise(?! \{)", name):  # not the plain one
        return True
    return half and name.startswith(("depthwise", "relu: "))


def cases():
    """Ops that share their kernels take turns with float16, which is float32's code, and with what is not small."""
    found = []
    for dtype in (torch.float32, torch.float16):
        for source, most in ((samples_of, MOST[dtype]), (edges_of, 300_000), (configured, 300_000)):
            every = {spec.name: source(spec, dtype) for spec in SPECS}
            for spec in SPECS:
                mine = in_turn(spec, {o.name: every[o.name] for o in SPECS if o.kernels == spec.kernels})
                mine = {id(sample) for sample in mine}
                for sample in every[spec.name]:
                    size = sum(t.numel() for t in Call(sample).tensors)
                    wanted = id(sample) in mine or (dtype == torch.float32 and size <= 300)
                    if wanted and size <= most and not slow(spec, sample):
                        name = f"{spec.name}-{str(dtype)[6:]}-{sample.name}".replace(" ", "_")
                        found.append(pytest.param(spec, sample, id=name))
    return found


@pytest.mark.parametrize("spec, sample", cases())
def test_values(spec, sample):
    before, call = len(LAUNCHED), Call(sample)
    exact, exact_grads = Call(sample, torch.float64).gradients(spec.reference)
    native, native_grads = call.gradients(spec.reference)
    with backend("triton"):
        ours, grads = call.gradients(spec.function)
        chosen = explain()
    if chosen.reason != "no channels":  # which is native's on every backend
        assert chosen.op == spec.name and chosen.implementation == "triton", chosen
    assert LAUNCHED and (before or any(t.numel() == 0 for t in call.tensors) or len(LAUNCHED) > before)
    for i, (a, b, c) in enumerate(zip([*ours, *grads], [*native, *native_grads], [*exact, *exact_grads], strict=True)):
        assert (a is None) == (b is None), f"result {i}"
        if a is not None:
            compare(a, b, c, f"result {i}")


@pytest.mark.parametrize("config", _gemm.CONFIGS, ids=lambda c: f"{c['BM']}x{c['BN']}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.skipif("linear" not in ROWS, reason="once is enough")
def test_every_configuration_of_the_product(config, dtype, monkeypatch):
    """Not only the one that small samples get."""
    monkeypatch.setattr(_gemm, "choose", lambda M, N: config)
    for spec in SPECS:
        for sample in samples_of(spec, dtype) if spec.row == "linear" else []:
            if sample.name in ("29x257x65", "transposed", "no rows"):
                test_values(spec, sample)


def test_what_the_kernels_do_not_compute_is_cpps():
    spec = SPECS[0]
    with backend("triton"):
        for sample in samples_of(spec, torch.float64)[:2]:
            ours = Call(sample).run(spec.function)
            assert explain().implementation == "cpp" and "float64" in explain().reason
            torch.testing.assert_close(ours, Call(sample).run(spec.reference))


def configurations(module):
    """The configurations that a file of kernels keeps: tuples of them, some by size."""
    for value in vars(module).values():
        for one in value.values() if type(value) is dict else [value]:
            if isinstance(one, tuple):
                yield from (config for config in one if isinstance(config, Config))


def test_every_configuration_was_launched_in_float16():
    """What is compiled afterwards is what was launched. The product's are linear's to show."""
    launches = [one for one in LAUNCHED.values() if "float16" in one["tensors"].values()]
    for file in {one["file"] for one in launches if "linear" in ROWS or one["file"] != "_gemm"}:
        here = [one["constants"].items() for one in launches if one["file"] == file]
        for config in configurations(importlib.import_module(f"torchsmith.kernels.{file}")):
            assert any(config.items() <= constants for constants in here), (file, config.label)


def test_every_kernel_was_launched():
    """Runs last: every kernel of the rows' files, and of the shared ones they import, was executed above; launches are kept."""
    folder = Path(triton_backend.__file__).parents[1] / "kernels"
    source = "".join((folder / f"{row}.py").read_text() for row in ROWS)
    files = sorted(folder.glob("_[a-z]*.py"))
    for shared in files + files:  # twice: of what is imported by what is imported
        source += shared.read_text() if f"from .{shared.stem} import" in source else ""
    kernels = set(re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE))
    assert kernels and kernels <= {one["kernel"] for one in LAUNCHED.values()}
    Path(os.environ["TORCHSMITH_TEST_OUT"]).write_text(json.dumps(list(LAUNCHED.values())))
