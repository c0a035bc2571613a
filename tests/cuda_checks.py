"""The CUDA kernels of some rows executed on the host: run by test_cuda_kernels.py, in a process that has the sanitizers.

Every sample of a row's specs, and those of tests/cuda_rows/<row>.py, forward and backward, by the CUDA sources: results
against the float64 reference by the rule of compare.py, bit for bit the same in two thread orders, on devices for which
plans differ. Then: no kernel that the row can launch was left out. Ops that share kernels take turns with samples that they
have in common, but for small ones.

That is float32. The other dtypes and TF32 instantiate the same templates: ops that share kernels take turns with them, in
one order, and of the specs' samples each takes every second one, float16 and TF32 those that bfloat16 leaves out.
"""

import functools
import importlib
import itertools
import json
import os
from pathlib import Path

import cuda_gates
import cuda_host
import pytest
import torch
from compare import compare
from contract import SEED, Call, in_turn, samples_of, seed

from torchsmith.dispatch import backend
from torchsmith.ops import _recurrent
from torchsmith.spec import FLOATS, all_specs

ROWS = os.environ["TORCHSMITH_TEST_ROWS"].split()
SPECS = [spec for spec in all_specs() if spec.row in ROWS]
RECURRENT = ("rnn", "gru")

RELU = "relu: "  # of a recurrent row: tanh's sample with the other nonlinearity, a branch of its cell
EXPECTED: dict = {}  # with the sample, so that its id stays its own
SMALL = 300  # elements of a sample that every op takes


@functools.cache
def extra_samples(spec, dtype):
    if not (Path(__file__).parent / "cuda_rows" / f"{spec.row}.py").is_file():
        return []
    seed(SEED)
    # A row whose ops take different arguments gives samples by op.
    samples = importlib.import_module(f"cuda_rows.{spec.row}").samples(dtype)
    return list(samples[spec.name] if isinstance(samples, dict) else samples)


@functools.cache
def own_samples(spec, dtype):
    # On CUDA an embedding is looked up by ATen, and the kernels see rows like any others.
    return [sample for sample in samples_of(spec, dtype) if "embedding" not in sample.kwargs]


def every_sample(spec, dtype):
    return [*own_samples(spec, dtype), *extra_samples(spec, dtype)]


def size(sample):
    return sum(t.numel() for t in Call(sample).tensors)


def sharing(spec):
    return [other for other in SPECS if other.kernels == spec.kernels]


def every_in_turn(spec, dtype, of=every_sample, most=10**6):
    return [s for s in in_turn(spec, {o.name: of(o, dtype) for o in sharing(spec)}) if size(s) <= most]


def extra_in_turn(spec, dtype):
    return every_in_turn(spec, dtype, extra_samples)


def own_in_turn(spec, dtype):
    """The small ones, but for images of the course: it takes as many runs as there are subsets, and other tests execute every
    sample."""
    own = every_in_turn(spec, dtype, own_samples, 2000)
    return [s for s in own if spec.flops(s) <= 4 * 10**5 and not s.name.startswith(RELU)]


def by_turns(spec, dtype, first):
    """Every second sample of the specs, and all of the row's extra ones."""
    own = every_in_turn(spec, dtype, own_samples)
    # A window over 256 cells has kernels of its own.
    own = [s for i, s in enumerate(own) if i % 2 == first or "window" in s.name]
    return [s for s in own if not s.name.startswith(RELU)] + extra_in_turn(spec, dtype)


def by_dtype(spec, dtype):
    if dtype == torch.float32:
        mine = {sample.name for sample in every_in_turn(spec, dtype, own_samples)}
        return [s for s in own_samples(spec, dtype) if s.name in mine or size(s) <= SMALL] + extra_samples(spec, dtype)
    return by_turns(spec, dtype, dtype == torch.bfloat16)


def for_tf32(spec, dtype):
    return by_turns(spec, dtype, 0) if tf32_settings(spec) else []


def cases(dtypes=FLOATS, of=every_sample):
    return [
        pytest.param(spec, sample, id=f"{spec.name}-{str(dtype)[6:]}-{sample.name}".replace(" ", "_"))
        for spec in SPECS
        for dtype in dtypes
        for sample in of(spec, dtype)
    ]


def on_host(call, spec, order, device, wanted=None):
    with cuda_host.HostCuda(spec.row, order, device) as host, backend("cpp"):
        outputs, grads = call.gradients(spec.function, wanted)
    return host.calls, [*outputs, *grads]


def expected(sample, spec, dtype=None, wanted=None):
    """What native computes, and what is right: worked out once for the tests that take the sample."""
    key = id(sample), spec.name, dtype, None if wanted is None else tuple(wanted)
    if key not in EXPECTED:
        exact, exact_grads = Call(sample, torch.float64).gradients(spec.reference, wanted)
        native, native_grads = Call(sample, dtype).gradients(spec.reference, wanted)
        EXPECTED[key] = sample, ([*native, *native_grads], [*exact, *exact_grads])
    return EXPECTED[key][1]


def check(ours, native, exact):
    assert len(ours) == len(native) == len(exact)
    for i, (a, b, c) in enumerate(zip(ours, native, exact, strict=True)):
        assert (a is None) == (b is None), f"result {i}"
        if a is not None:
            compare(a, b, c, f"result {i}")


def bits(t):
    return None if t is None else t.contiguous().view(-1).view(torch.uint8) if t.numel() else t.shape


def same_bits(one, other):
    for a, b in zip(one, other, strict=True):
        a, b = bits(a), bits(b)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, "thread orders give different bits: a race"


@pytest.mark.parametrize("spec, sample", cases(of=by_dtype))
def test_values_in_every_order(spec, sample):
    """A third order, ascending, is that of the tests of subsets."""
    results, call = [], Call(sample)
    for order in ("descending", "random") if call.tensors[0].dtype == torch.float32 else ["random"]:
        calls, ours = on_host(call, spec, order, "h200")
        assert calls, "no CUDA kernel was called"
        results.append(ours)
    native, exact = expected(sample, spec)
    check(results[0], native, exact)
    for other in results[1:]:
        same_bits(results[0], other)
    layouts = [
        [t.is_contiguous(memory_format=torch.channels_last) for t in r if t is not None and t.dim() == 4]
        for r in (ours, native)
    ]
    assert layouts[0][:1] == layouts[1][:1], "the output's layout is not native's"


@pytest.mark.parametrize("spec, sample", cases(of=extra_in_turn))
def test_values_on_a_small_device(spec, sample):
    """One multiprocessor: large tiles, no shares."""
    _, ours = on_host(Call(sample), spec, "random", "one multiprocessor")
    check(ours, *expected(sample, spec))


def tf32_settings(spec):
    """Where a row reads torch's settings of TF32."""
    module = importlib.import_module(f"torchsmith.ops.{spec.row}")
    return [
        (module, name)
        for module in (module, *([_recurrent] if spec.row in RECURRENT else []))
        for name in ("allow_tf32", "recurrent_tf32")
        if hasattr(module, name)
    ]


def factors_are_given(spec, sample):
    """Whether what is multiplied are values of the call, not sums of some.

    A recurrent row multiplies its own states and gates' gradients, and windows of a pool that overlap add up gradients.
    """
    window, step = sample.kwargs.get("pool_kernel_size"), sample.kwargs.get("pool_stride")
    return spec.row not in RECURRENT and (step is None or step == window)


@pytest.mark.parametrize(
    "device, spec, sample",
    [
        pytest.param(device, *case.values, id=f"{device}-{case.id}")
        for device in cuda_host.DEVICES
        for case in cases((torch.bfloat16,), of=for_tf32 if device == "h200" else extra_in_turn)
        if tf32_settings(case.values[0])
    ],
)
def test_values_in_tf32(device, spec, sample, monkeypatch):
    """float32 with values that TF32 holds: products are exact, so float32's tolerance holds for the sums.

    Factors that are sums are rounded to TF32's eleven bits, which are float16's: native in float16 is then the measure.
    Turing has no TF32 and computes in float32.
    """
    for module, name in tf32_settings(spec):
        monkeypatch.setattr(module, name, lambda t: t.dtype == torch.float32)
    _, ours = on_host(Call(sample, torch.float32), spec, "random", device)
    judged = torch.float32 if factors_are_given(spec, sample) or device == "turing" else torch.float16
    rounded = [t.to(judged) if t is not None and t.is_floating_point() else t for t in ours]
    check(rounded, *expected(sample, spec, judged))


def subsets(count):
    """Kernels are asked for the input's, the state's and the weights' gradients: of many weights the first and last alone."""
    if count <= 5:
        yield from itertools.product([False, True], repeat=count)
        return
    for i in (0, 1, 2, count - 1):
        alone = [j == i for j in range(count)]
        yield alone
        yield [not w for w in alone]


@pytest.mark.parametrize("spec, sample", cases((torch.float32,), of=own_in_turn))
def test_every_subset_of_gradients(spec, sample):
    call = Call(sample)
    count = len(call.tensors)
    _, full = on_host(call, spec, "ascending", "h200")
    for wanted in subsets(count):
        if any(wanted):
            _, some = on_host(call, spec, "ascending", "h200", list(wanted))
            for w, one, every in zip(wanted, some[-count:], full[-count:], strict=True):
                assert w or one is None
                if w and every is not None:
                    assert torch.equal(one.nan_to_num(7), every.nan_to_num(7))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_real_sizes(spec):
    """The smallest shape of the benchmarks, with the gradients that they take."""
    case = min(spec.bench, key=lambda c: spec.flops(c.make(torch.float32, torch.device("cpu"))))
    sample = case.make(torch.float32, torch.device("cpu"))
    if sum(t.numel() for t in sample.args if isinstance(t, torch.Tensor)) > 10**6 or spec.flops(sample) > 10**8:
        pytest.skip("too large for threads that are fibers")
    call = Call(sample)
    wanted = [i not in case.frozen for i in range(len(call.tensors))]
    _, ours = on_host(call, spec, "random", "h200", wanted)
    check(ours, *expected(sample, spec, wanted=wanted))


@pytest.mark.parametrize("row", ROWS)
def test_every_kernel_was_executed(row):
    """Runs last. Every instantiation in the row's library is launched by some test above."""
    kernels = cuda_host.kernels(row)
    never = [name for name, k in kernels.items() if k.launches == 0]
    assert kernels and not never, never
    named = {name.split("<")[0].rpartition("::")[2] for name in kernels}
    assert cuda_host.declared(row) <= named
    table = {cuda_gates.short(name): {"threads": k.threads, "shared": k.shared} for name, k in sorted(kernels.items())}
    (cuda_gates.LAUNCHES / f"{row}.launches.json").write_text(json.dumps(table, indent=1))
