"""PyTorch's own databases of samples, OpInfo and ModuleInfo, through our ops and modules, against ATen in float64.

float32 takes all of it. Left out, so that the file takes about a minute: where the dtype is another, two of three
samples, twins and augmented ones, of max_pool2d's 960 combinations of the same few values 19 of 20; of max_pool2d's twins
and augmented ones 47 of 48; relu's samples of more than 100,000 elements; of RNN's and GRU's module inputs training mode
(they have no dropout). How many went through is asserted, printed (``-s``) and recorded as a property of each test.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from compare import compare, nudged
from contract import DEVICE, Call
from torch.nn.utils.rnn import PackedSequence

from torchsmith import nn, ops
from torchsmith.dispatch import explain
from torchsmith.spec import FLOATS, Sample

pytestmark = pytest.mark.minutes(1)


def database(name: str):
    """A file of torch.testing: imported by the first test that asks for it, as that takes seconds."""
    reason = f"this torch has no database {name}"
    return pytest.importorskip(f"torch.testing._internal.{name}", reason=reason, exc_type=ImportError)


def op_info(name: str):
    invocations = database("common_methods_invocations")
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


#: name: (entry of the database, our function, ATen's, samples at least: in float32, in another dtype)
OPS = {
    "conv2d": ("nn.functional.conv2d", ops.conv2d, F.conv2d, (180, 60)),
    "conv2d_relu": ("nn.functional.conv2d", ops.conv2d_relu, lambda *a, **k: F.relu(F.conv2d(*a, **k)), (180, 60)),
    "conv2d_relu_maxpool2d": ("nn.functional.conv2d", ops.conv2d_relu_maxpool2d, pooled, (140, 40)),
    "max_pool2d": ("nn.functional.max_pool2d", ops.max_pool2d, F.max_pool2d, (1050, 140)),
    "linear": ("nn.functional.linear", ops.linear, F.linear, (100, 30)),
    "linear_relu": ("nn.functional.linear", ops.linear_relu, lambda *a, **k: F.relu(F.linear(*a, **k)), (100, 30)),
    "relu in linear_relu": ("nn.functional.relu", lambda x: as_linear(x, ops.linear_relu), F.relu, (150, 50)),
    "relu in conv2d_relu": ("nn.functional.relu", lambda x: as_convolution(x, ops.conv2d_relu), F.relu, (120, 40)),
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
    """The sample augmented, None where that means nothing: no batch to repeat, a width that is the weight's."""
    x = sample.args[0]
    if kind == "wide rows" and (x.dim() == 0 or name.startswith("linear")):
        return None
    if kind == "batch" and x.dim() < (4 if name.startswith(("conv", "max_pool")) else 2):
        return None
    return changed(sample, AUGMENTED[kind])


@lru_cache(maxsize=1)
def made(entry: str, dtype: torch.dtype):
    return list(op_info(entry).reference_inputs(DEVICE, dtype, requires_grad=False))


def samples(name: str, dtype: torch.dtype):
    """(description, sample) of one op and dtype."""
    found = [
        (i, s)
        for i, s in enumerate(made(OPS[name][0], dtype))
        if "relu in" not in name or s.input.numel() <= 100_000
        if "in conv" not in name or s.input.numel()  # a convolution needs an image
    ]
    many = len(found) > 300
    step, spread = (1, 48 if many else 1) if dtype == torch.float32 else (20 if many else 3, 48 if many else 3)
    for i, sample in found[::step]:
        yield f"sample {i}", plain(sample)
    for i, sample in found[::spread]:
        yield f"non-contiguous twin of {i}", plain(sample.noncontiguous())
    for kind in AUGMENTED:
        for i, sample in found[::spread]:
            more = augmented(name, kind, plain(sample))
            if more is not None:
                yield f"{kind}, sample {i}", more


def too_small_to_pool(sample: Sample) -> bool:
    size = F.conv2d(*(t if t is None else t.to("meta") for t in sample.args), **sample.kwargs).shape
    return min(size[-2:]) < 2


def check(what: str, sample: Sample, ours, native, runs: int = 1) -> None:
    """Outputs and gradients by the rule; with more runs than one of native, on values that differ in their last bit."""
    call, plainly = Call(sample), Call(sample)
    others = [Call(sample) for _ in range(1, runs)]
    for other in others:  # all before the first is run, which seeds anew
        other.tensors = [nudged(t) for t in other.tensors]
    mine = call.gradients(ours)
    theirs = [each.gradients(native) for each in (plainly, *others)]
    # A pool chooses values: native's are exact, and a third run would only cost time.
    exact = theirs[0] if native is F.max_pool2d else Call(sample, torch.float64).gradients(native)
    try:
        for kind, values in enumerate(("output", "gradient")):
            assert len(mine[kind]) == len(exact[kind])
            for i, (a, *b, c) in enumerate(zip(mine[kind], *(t[kind] for t in theirs), exact[kind], strict=True)):
                assert (a is None) == (c is None), f"{values} {i}: {a} against {c}"
                if a is not None:
                    compare(a, b, c, f"{values} {i}")
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
    assert count >= least[dtype != torch.float32]
    assert kernels == count, "all of them are a kernel's"


@pytest.mark.parametrize("name", ["conv2d", "max_pool2d", "linear"])
def test_other_dtypes_are_atens(name):
    """What the database lists beside the floats: integers and complex numbers, left to ATen with the reason."""
    info = op_info(OPS[name][0])
    _, ours, native, _ = OPS[name]
    others = sorted(info.supported_dtypes(DEVICE.type) - set(FLOATS), key=str)
    assert torch.int64 in others or DEVICE.type != "cpu"
    for dtype in others:
        for sample in islice(info.sample_inputs(DEVICE, dtype), 3):
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
    assert len(errors) >= 7


# --------------------------------------------------------------------------------------------------------- ModuleInfo

#: name: module inputs at least, in float32 and in another dtype
MODULES = {
    "Conv2d": (4, 4),
    "MaxPool2d": (3, 3),
    "AvgPool2d": (2, 2),
    "Linear": (3, 3),
    "RNNCell": (3, 3),
    "GRUCell": (2, 2),
    "RNN": (64, 22),
    "GRU": (32, 11),
}
RECURRENT = ("RNNCell", "GRUCell", "RNN", "GRU")


def module_info(name: str):
    modules = database("common_modules")
    found = [info for info in modules.module_db if info.module_cls is getattr(torch.nn, name)]
    if len(found) != 1:
        pytest.skip(f"the ModuleInfo database of this torch has {len(found)} entries {name}")
    return found[0]


def module_inputs(info, dtype: torch.dtype, name: str):
    """RNN's and GRU's with packed sequences among them."""
    keywords = {"with_packed_sequence": True} if name in ("RNN", "GRU") else {}
    step = 3 if keywords and dtype != torch.float32 else 1
    return info.module_inputs_func(info, DEVICE, dtype, False, False, **keywords)[::step]


def functional(module, given):
    """The module as a function of its parameters and inputs, so that :class:`contract.Call` can replace them."""
    names = [name for name, _ in module.named_parameters()]

    def call(args, kwargs, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), tuple(args), kwargs)

    parameters = [p.detach() for p in module.parameters()]
    return call, Sample(given.desc, (list(given.forward_input.args), given.forward_input.kwargs, *parameters))


def noncontiguous(value):
    def strided(t):
        if not isinstance(t, torch.Tensor) or not t.is_floating_point() or t.numel() < 2:
            return t
        return torch.stack([t, torch.full_like(t, float("nan"))], -1)[..., 0]

    return torch.utils._pytree.tree_map(strided, value)


def tidied(native):
    """cuDNN refuses states that are not contiguous: its arm gets the same values so."""

    def call(args, kwargs, *parameters):
        args = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.contiguous, args)
        return native(args, kwargs, *parameters)

    return call


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, dtype, record_property):
    info = module_info(name)
    count = 0
    # A gradient of RNN's and GRU's entries is four numbers, behind states whose last bit decides most of 1 - h^2: in one run it
    # is luck whether native is a tenth of an ulp off or ten.
    runs = 8 if name in RECURRENT else 1
    for given in module_inputs(info, dtype, name):
        construct = given.constructor_input
        native = info.module_cls(*construct.args, **construct.kwargs).to(DEVICE, dtype)
        ours = getattr(nn, name)(*construct.args, **construct.kwargs).to(DEVICE, dtype)
        ours.load_state_dict(native.state_dict())
        (theirs, sample), (mine, _) = functional(native, given), functional(ours, given)
        check(f"module input {count}", sample, mine, theirs, runs)
        twin = Sample("", noncontiguous(sample.args))
        check(f"non-contiguous twin of {count}", twin, mine, tidied(theirs), runs)
        inputs, keywords = given.forward_input.args, given.forward_input.kwargs
        # The database's own reference; it has none for packed sequences.
        if given.reference_fn is not None and not any(isinstance(x, PackedSequence) for x in inputs):
            torch.testing.assert_close(ours(*inputs, **keywords), given.reference_fn(ours, *inputs, **keywords))
        count += 1
    record_property("module inputs", count)
    assert count >= MODULES[name][dtype != torch.float32]


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
            if error.error_on == database("common_modules").ModuleErrorEnum.FORWARD_ERROR:
                module(*given.forward_input.args, **given.forward_input.kwargs)
    record_property("errors", len(errors))
    assert errors
