"""PyTorch's own databases of samples, OpInfo and ModuleInfo, through our ops and modules, against ATen in float64.

float32 takes every sample; the other dtypes, the twins and the augmented ones take a spread where the database has hundreds
(max_pool2d: 960 samples, a combination of the same few values), so that the file stays under half a minute. How many
of each went through is asserted, printed (``-s``) and recorded as a property of the test.
"""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from compare import compare
from contract import DEVICE, Call

import torchsmith
from torchsmith import nn, ops
from torchsmith.dispatch import explain
from torchsmith.spec import FLOATS, Sample

invocations = pytest.importorskip(
    "torch.testing._internal.common_methods_invocations", reason="this torch has no OpInfo database"
)
modules = pytest.importorskip(
    "torch.testing._internal.common_modules", reason="this torch has no ModuleInfo database", exc_type=ImportError
)


def op_info(name: str):
    found = [info for info in invocations.op_db if info.name == name and not info.variant_test_name]
    if len(found) != 1:
        pytest.skip(f"the OpInfo database of this torch has {len(found)} entries {name}")
    return found[0]


# ------------------------------------------------------------------------------------------------------------- OpInfo


def pooled(input, weight, bias=None, **keywords):
    return F.max_pool2d(F.relu(F.conv2d(input, weight, bias, **keywords)), 2)


def as_linear(x, function):
    """relu of any tensor as the fused op's: its elements as rows, the weight 1."""
    return function(x.reshape(-1, 1), x.new_ones(1, 1)).reshape(x.shape)


def as_convolution(x, function):
    return function(x.reshape(1, 1, -1, 1), x.new_ones(1, 1, 1, 1)).reshape(x.shape)


#: name: (entry of the database, our function, ATen's, samples with gradients and without at least: float32 / another dtype)
OPS = {
    "conv2d": ("nn.functional.conv2d", ops.conv2d, F.conv2d, (200, 80)),
    "conv2d_relu": (
        "nn.functional.conv2d",
        ops.conv2d_relu,
        lambda *a, **k: F.relu(F.conv2d(*a, **k)),
        (200, 80),
    ),
    "conv2d_relu_maxpool2d": ("nn.functional.conv2d", ops.conv2d_relu_maxpool2d, pooled, (100, 40)),
    "max_pool2d": ("nn.functional.max_pool2d", ops.max_pool2d, F.max_pool2d, (1400, 240)),
    "linear": ("nn.functional.linear", ops.linear, F.linear, (120, 100)),
    "linear_relu": (
        "nn.functional.linear",
        ops.linear_relu,
        lambda *a, **k: F.relu(F.linear(*a, **k)),
        (120, 100),
    ),
    "relu in linear_relu": (
        "nn.functional.relu",
        lambda x: as_linear(x, ops.linear_relu),
        F.relu,
        (60, 60),
    ),
    "relu in conv2d_relu": (
        "nn.functional.relu",
        lambda x: as_convolution(x, ops.conv2d_relu),
        F.relu,
        (60, 60),
    ),
}


def plain(sample) -> Sample:
    """One of the database as one of ours."""
    return Sample(sample.name, (sample.input, *sample.args), dict(sample.kwargs))


def changed(sample: Sample, change) -> Sample:
    """The sample with another first argument."""
    return Sample(sample.name, (change(sample.args[0]), *sample.args[1:]), sample.kwargs)


def _nan_and_inf(x):
    flat = x.clone(memory_format=torch.contiguous_format).reshape(-1)
    for i, value in enumerate((float("nan"), float("inf"), -float("inf"), float("nan"))):
        flat[i * 7 % max(1, flat.numel()) : i * 7 % max(1, flat.numel()) + 1] = value
    return flat.reshape(x.shape)


AUGMENTED = {
    "ties": lambda x: x.round().clamp(-1, 1),
    "zeros": lambda x: x * 0,
    "nan and inf": _nan_and_inf,
    "wide rows": lambda x: x.repeat(*(1 for _ in x.shape[1:]), 9),
    "batch": lambda x: x.repeat(3, *(1 for _ in x.shape[1:])),
}


def augmented(name: str, kind: str, sample: Sample) -> Sample | None:
    """The sample augmented, None where that means nothing: without a batch to grow, or where the width is the weight's."""
    x = sample.args[0]
    images = "conv" in name or "pool" in name
    if kind == "batch" and x.dim() != (4 if images and "relu in" not in name else x.dim()):
        return None
    if kind in ("batch", "wide rows") and (x.dim() == 0 or (kind == "wide rows" and "linear" in name)):
        return None
    if kind == "batch" and "linear" in name and x.dim() == 1:
        return None
    return changed(sample, AUGMENTED[kind])


def samples(name: str, dtype: torch.dtype):
    """(description, sample) of one op and dtype."""
    info = op_info(OPS[name][0])
    made = [plain(s) for s in info.reference_inputs(DEVICE, dtype, requires_grad=False)]
    twins = [plain(s.noncontiguous()) for s in info.sample_inputs(DEVICE, dtype, requires_grad=False)]
    spread = 1 if len(made) < 200 else 11 if dtype == torch.float32 else 29
    for i, sample in enumerate(made):
        if dtype == torch.float32 or i % (spread // 4 or 1) == 0:
            yield f"sample {i}", sample
    for i, sample in enumerate(twins[::spread]):
        yield f"non-contiguous twin {i * spread}", sample
    for kind in AUGMENTED:
        for i, sample in enumerate(made[::spread]):
            more = augmented(name, kind, sample)
            if more is not None:
                yield f"{kind}, sample {i * spread}", more


def too_small_to_pool(sample: Sample) -> bool:
    keywords = {k: v for k, v in sample.kwargs.items()}
    try:
        size = F.conv2d(*(t if t is None else t.to("meta") for t in sample.args), **keywords).shape
    except RuntimeError:
        return True
    return min(size[-2:]) < 2


def check(what: str, sample: Sample, ours, native) -> None:
    exact, plainly, call = Call(sample, torch.float64), Call(sample), Call(sample)
    results = [c.gradients(f) for c, f in ((call, ours), (plainly, native), (exact, native))]
    (mine, my_grads), (theirs, their_grads), (expected, exact_grads) = results
    assert len(mine) == len(theirs)
    try:
        for i, (a, b, c) in enumerate(zip(mine, theirs, expected, strict=True)):
            compare(a, b, c, f"output {i}")
        for i, (a, b, c) in enumerate(zip(my_grads, their_grads, exact_grads, strict=True)):
            assert (a is None) == (b is None), f"gradient {i}: {a} against {b}"
            if a is not None:
                compare(a, b, c, f"gradient {i}")
    except AssertionError as error:
        shapes = [tuple(t.shape) for t in call.tensors]
        raise AssertionError(f"{what}: {error} ({shapes}, {sample.kwargs})") from None


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", OPS)
def test_samples(name, dtype, record_property):
    _, ours, native, least = OPS[name]
    count, kernels = 0, 0
    for what, sample in samples(name, dtype):
        if name == "conv2d_relu_maxpool2d" and too_small_to_pool(sample):
            continue
        check(what, sample, ours, native)
        kernels += explain().implementation == "cpp"
        count += 1
    record_property("samples", count)
    print(f"{name} {dtype}: {count} samples of the database right, {kernels} by a kernel")
    assert count >= least[dtype != torch.float32]
    assert kernels == count, "all of them are a kernel's"


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "linear"])
def test_other_dtypes_are_atens(name):
    """What the database lists beside the floats: integers and complex numbers, left to ATen with the reason."""
    info = op_info(OPS[name][0])
    _, ours, native, _ = OPS[name]
    others = sorted(info.supported_dtypes(DEVICE.type) - set(FLOATS), key=str)
    assert torch.int64 in others
    for dtype in others:
        for sample in list(info.sample_inputs(DEVICE, dtype))[:3]:
            torch.testing.assert_close(
                ours(sample.input, *sample.args, **sample.kwargs), native(sample.input, *sample.args, **sample.kwargs)
            )
            assert explain().implementation == "torch" and str(dtype) in explain().reason


@pytest.mark.parametrize("name", ["conv2d", "conv2d_relu", "conv2d_relu_maxpool2d", "max_pool2d"])
def test_error_inputs(name, record_property):
    _, ours, _, _ = OPS[name]
    errors = list(op_info(OPS[name][0]).error_inputs(DEVICE))
    for error in errors:
        sample = error.sample_input
        with pytest.raises(error.error_type, match=error.error_regex):
            ours(sample.input, *sample.args, **sample.kwargs)
    record_property("errors", len(errors))
    print(f"{name}: {len(errors)} error inputs of the database right")
    assert len(errors) >= 7


# --------------------------------------------------------------------------------------------------------- ModuleInfo

#: name: module inputs at least (train and eval counted apart, where they differ)
MODULES = {"Conv2d": 4, "MaxPool2d": 3, "Linear": 3, "RNNCell": 3, "GRUCell": 2, "RNN": 128, "GRU": 64}


def module_info(name: str):
    found = [info for info in modules.module_db if info.module_cls is getattr(torch.nn, name)]
    if len(found) != 1:
        pytest.skip(f"the ModuleInfo database of this torch has {len(found)} entries {name}")
    return found[0]


def module_inputs(info, dtype: torch.dtype, name: str):
    """(training, module input); RNN and GRU also with packed sequences."""
    flags = (True, False) if info.train_and_eval_differ else (False,)
    keywords = {"with_packed_sequence": True} if name in ("RNN", "GRU") else {}
    for training in flags:
        for given in info.module_inputs_func(info, DEVICE, dtype, False, training, **keywords):
            yield training, given


def functional(module, given):
    """The module as a function of its parameters and inputs, so that :class:`contract.Call` can replace them."""
    names = [name for name, _ in module.named_parameters()]

    def call(args, kwargs, *parameters):
        dtype = parameters[0].dtype if parameters else None
        made = copy.deepcopy(module) if dtype is None else copy.deepcopy(module).to(dtype)
        return torch.func.functional_call(made, dict(zip(names, parameters, strict=True)), tuple(args), kwargs)

    parameters = [p.detach() for p in module.parameters()]
    return call, Sample(given.desc, (list(given.forward_input.args), given.forward_input.kwargs, *parameters))


def noncontiguous(value):
    def strided(t):
        if not isinstance(t, torch.Tensor) or not t.is_floating_point() or t.numel() < 2:
            return t
        return torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0]

    return torch.utils._pytree.tree_map(strided, value)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, dtype, record_property):
    info = module_info(name)
    count = 0
    for training, given in module_inputs(info, dtype, name):
        construct = given.constructor_input
        native = info.module_cls(*construct.args, **construct.kwargs).to(dtype).train(training)
        ours = getattr(nn, name)(*construct.args, **construct.kwargs).to(dtype).train(training)
        ours.load_state_dict(native.state_dict())
        (theirs, sample), (mine, _) = functional(native, given), functional(ours, given)
        for what, one in (
            (f"module input {count}", sample),
            (f"non-contiguous twin {count}", Sample("", noncontiguous(sample.args))),
        ):
            check(what, one, mine, theirs)
        if given.reference_fn is not None and not isinstance(
            given.forward_input.args[0] if given.forward_input.args else None, torch.nn.utils.rnn.PackedSequence
        ):
            expected = given.reference_fn(ours, *given.forward_input.args, **given.forward_input.kwargs)
            torch.testing.assert_close(ours(*given.forward_input.args, **given.forward_input.kwargs), expected)
        count += 1
    record_property("module inputs", count)
    print(f"{name} {dtype}: {count} module inputs of the database right, and their non-contiguous twins")
    assert count >= MODULES[name]


@pytest.mark.parametrize("name", MODULES)
def test_module_error_inputs(name, record_property):
    info = module_info(name)
    if info.module_error_inputs_func is None:
        pytest.skip(f"the database has no error inputs of {name}")
    errors = info.module_error_inputs_func(info, DEVICE, torch.float32, False, True)
    for error in errors:
        given = error.module_error_input
        construct = given.constructor_input
        with pytest.raises(error.error_type, match=error.error_regex):
            module = getattr(nn, name)(*construct.args, **construct.kwargs)
            if error.error_on == modules.ModuleErrorEnum.FORWARD_ERROR:
                module(*given.forward_input.args, **given.forward_input.kwargs)
    record_property("errors", len(errors))
    print(f"{name}: {len(errors)} error inputs of the database right")
    assert errors
