"""Every op, on every dtype and sample of its description, against the float64 reference."""

import contextlib
import inspect
import itertools

import pytest
import torch
from contract import DEVICE, Call, Record, cases, in_turn, samples_of

from torchsmith import _native, tuning
from torchsmith.contract import Expected
from torchsmith.dispatch import Decision, backend, explain, short
from torchsmith.spec import all_specs

pytestmark = pytest.mark.minutes(1.2)

ISAS = _native.isa_available()


@contextlib.contextmanager
def forced(isa):
    _native.force_isa(isa)
    try:
        yield
    finally:
        _native.force_isa(None)


@pytest.fixture
def isa(request):
    with forced(request.param):
        yield request.param


def check_against_reference(spec, sample, runs=None):
    assert not list(Expected(spec, sample, runs).wrong())


@pytest.mark.parametrize("spec, dtype, index", cases())
def test_values_and_gradients(spec, dtype, index):
    """Under every instruction set of this machine; a GPU has none of them."""
    expected, wrong = Expected(spec, samples_of(spec, dtype)[index]), {}
    for isa in ISAS if DEVICE.type == "cpu" else [None]:
        with forced(isa):
            wrong[isa] = list(expected.wrong())
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("spec, dtype, index", cases((torch.float32,)))
def test_every_subset_of_gradients(spec, dtype, index):
    call = Call(samples_of(spec, dtype)[index])
    _, full = call.gradients(spec.function)
    count = len(call.tensors)
    subsets = itertools.product([False, True], repeat=count)
    if count > 5:  # weights of a deep stack: each alone, and all but each
        alone = [[i == j for j in range(count)] for i in range(count)]
        subsets = alone + [[not w for w in one] for one in alone]
    for wanted in subsets:
        if not any(wanted):
            continue
        _, found = call.gradients(spec.function, list(wanted))
        for w, some, every in zip(wanted, found, full, strict=True):
            assert w or some is None
            if w and every is not None:
                assert torch.equal(some.nan_to_num(7), every.nan_to_num(7))


@pytest.mark.parametrize("spec, dtype, index", cases((torch.float32, torch.bfloat16)))
def test_inputs_unmodified_outputs_own_memory(spec, dtype, index):
    call = Call(samples_of(spec, dtype)[index])
    before = [t.clone() for t in call.tensors]
    with backend("cpp"):
        outputs = call.run(spec.function)
    for t, b in zip(call.tensors, before, strict=True):
        assert torch.equal(t.nan_to_num(7), b.nan_to_num(7))
    storages = {t.untyped_storage().data_ptr() for t in call.tensors if t.numel()}
    for o in outputs:
        if o.is_floating_point() and o.numel():
            assert o.untyped_storage().data_ptr() not in storages


@pytest.mark.parametrize("spec, dtype, index", cases((torch.float32,)))
def test_layout_of_outputs_is_native(spec, dtype, index):
    sample = samples_of(spec, dtype)[index]
    if "weight" in sample.name and "channels_last" in sample.name:
        pytest.skip("ATen's choice for a channels_last weight alone depends on which library computes it")
    call = Call(sample)
    with backend("cpp"):
        outputs = call.run(spec.function)
    for a, b in zip(outputs, call.run(spec.reference), strict=True):
        if a.dim() == 4 and a.numel():
            last = torch.channels_last
            assert a.is_contiguous(memory_format=last) == b.is_contiguous(memory_format=last), (a.stride(), b.stride())


def check_threads(spec, call):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            with backend("cpp"):
                outputs, grads = call.gradients(spec.function)
            results.append([*outputs, *(g for g in grads if g is not None)])
    finally:
        torch.set_num_threads(before)
    for one, two, again in zip(*results, strict=True):
        assert torch.equal(one.nan_to_num(7), two.nan_to_num(7))
        assert torch.equal(two.nan_to_num(7), again.nan_to_num(7))


@pytest.mark.parametrize("spec, dtype, index", cases((torch.float32, torch.bfloat16)))
def test_threads_do_not_change_a_bit(spec, dtype, index):
    check_threads(spec, Call(samples_of(spec, dtype)[index]))


REAL_SIZES = [
    pytest.param(spec, case, id=f"{spec.name}-{case.label}".replace(" ", "_"))
    for spec in all_specs()
    for case in spec.bench
]


@pytest.mark.parametrize("spec, case", REAL_SIZES)
def test_threads_on_real_sizes(spec, case):
    """Sizes at which the work is split; the samples above stay on one thread."""
    sample = case.make(torch.float32, torch.device("cpu"))
    if spec.flops(sample) > 2e9:
        pytest.skip("seconds a call; smaller sizes split alike")
    check_threads(spec, Call(sample))


def differentiable_call(spec, dtype, index, largest):
    call = Call(samples_of(spec, dtype)[index])
    if not 0 < sum(t.numel() for t in call.tensors) <= largest:
        pytest.skip("empty, or too large for numeric differentiation; compared with autograd's gradients instead")
    tensors = [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in call.tensors]

    def function(*tensors):
        return tuple(o for o in call.run(spec.function, tensors) if o.is_floating_point())

    return function, tensors


@pytest.mark.parametrize("spec, dtype, index", cases((torch.float64,), differentiable=True))
def test_gradcheck(spec, dtype, index):
    function, tensors = differentiable_call(spec, dtype, index, largest=3000)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True, nondet_tol=0.0)


@pytest.mark.parametrize("spec, dtype, index", cases((torch.float64,), differentiable=True)[::2])
def test_gradgradcheck(spec, dtype, index):
    """Of every second sample: second derivatives are those of the reference's ops, which autograd knows."""
    function, tensors = differentiable_call(spec, dtype, index, largest=800)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("spec", all_specs(), ids=lambda s: s.name)
def test_opcheck(spec):
    """Schema, fake kernels (shapes, dtypes, strides) and tracing of every native op, on the arguments the samples give it.

    Ops that share their kernels take turns with the samples that they have in common, and so do the dtypes."""
    seen, dtypes = set(), (torch.float32, torch.float64, torch.bfloat16)
    for turn, dtype in enumerate(dtypes):
        mine = in_turn(spec, {s.name: samples_of(s, dtype) for s in all_specs() if s.kernels == spec.kernels})
        for sample in mine[turn :: len(dtypes)]:
            with Record() as record:
                Call(sample).gradients(spec.function)
            for func, args, kwargs in record.calls:
                seen.add(func.name().split("::")[1])
                args, kwargs = torch.utils._pytree.tree_map(detached, (args, kwargs))
                torch.library.opcheck(func, args, kwargs, test_utils=("test_schema", "test_faketensor"))
    assert seen == set(spec.kernels)


@pytest.mark.parametrize("spec", all_specs(), ids=lambda s: s.name)
def test_opcheck_traced(spec):
    """The same through AOT autograd with dynamic shapes, on a sample each."""
    with Record() as record:
        Call(samples_of(spec, torch.float32)[2]).gradients(spec.function)
    assert record.calls
    for func, args, kwargs in record.calls:
        args, kwargs = torch.utils._pytree.tree_map(detached, (args, kwargs))
        torch.library.opcheck(func, args, kwargs)


def test_the_way_of_a_call():
    call = short(2, lambda *_: ["plain"], lambda *_: ["recorded"])
    plain, recorded, the_long_one = ["plain"], ["recorded"], None
    x, w = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True)
    assert call("linear", x, w.detach()) == call("linear", x, None) == plain
    assert call("linear", x, w) == call("linear", None, w, 2.5) == recorded
    with torch.no_grad():
        assert call("linear", x, w) == plain
    assert call("linear", x.to("meta"), w) == call("linear", x, w.to("meta")) == call("linear", x, 2.5) == the_long_one
    with torch.autocast("cpu", torch.bfloat16):
        assert call("linear", x, w) == the_long_one
    with torch.autograd.forward_ad.dual_level():
        assert call("linear", x, w) == the_long_one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "_is_compiling_flag", True)
        assert torch.compiler.is_compiling() and call("linear", x, w) == the_long_one
    seen = []
    torch.func.vmap(lambda row: seen.append(call("linear", row, w)) or row)(x)
    assert seen == [the_long_one]
    for name in ("torch", "cpp"):
        with backend(name, ops=["linear"]):
            assert call("linear", x, w) == (recorded if name == "cpp" else the_long_one)
            assert call("max_pool2d", x, None) == plain
    assert call("linear", x, w) == recorded


def test_what_a_short_call_hands_on():
    given = []

    def kernel(*arguments):
        given.append(arguments)
        return tuple(arguments[2:])

    def refuses(*_):
        raise RuntimeError("refused")

    x = torch.randn(2)
    assert short(1, kernel, refuses)("linear", x, None, "first", "second") == "first"
    assert given == [(x, None, "first", "second")] and explain() == Decision("linear", "cpp", "cpu kernel")
    assert short(2, kernel, kernel)("linear", x, x) == ()
    assert short(1, refuses, kernel)("linear", x) is None
    with pytest.raises(ZeroDivisionError):  # what is no refusal is not hidden
        short(1, lambda t: 1 // 0, kernel)("linear", x)
    with pytest.raises(TypeError, match="expected the op's name and at least 2 tensors, got 2 arguments"):
        short(2, kernel, kernel)("linear", x)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("spec", [s for s in all_specs() if s.name not in ("rnn", "gru")], ids=lambda s: s.name)
def test_a_plain_call_goes_the_short_way(spec, grad):
    """A short call that fails is made again the long way: a mistake in it would only be slow."""
    for sample in samples_of(spec, torch.float32)[:3]:
        call = Call(sample)
        call.run(spec.function, [t.requires_grad_(grad) for t in call.tensors])
        assert explain() == Decision(spec.name, "cpp", "cpu kernel")


@pytest.mark.parametrize("name", ["cpp", "torch", "auto", "auto, recorded"])
@pytest.mark.parametrize("spec", all_specs(), ids=lambda s: s.name)
def test_what_is_no_tensor_is_a_type_error_that_names_the_argument(spec, name):
    sample = next(spec.samples(torch.float32, torch.device("cpu")))
    names = list(inspect.signature(spec.function).parameters)
    for place, (argument, value) in enumerate(zip(names, sample.args, strict=False)):
        if not isinstance(value, (torch.Tensor, list)):
            continue
        for wrong, kind in (([1.0], "list|float"), (2.5, "float")):
            if isinstance(value, list):
                wrong = [*value[:-1], wrong]
            arguments = (*sample.args[:place], wrong, *sample.args[place + 1 :])
            around = tuning.record() if "recorded" in name else backend(name)
            with around, pytest.raises(TypeError, match=rf"{spec.name}\(\): argument '{argument}' .*({kind})"):
                spec.function(*arguments, **sample.kwargs)


@pytest.mark.parametrize("name", ["cpp", "torch", "auto"])
@pytest.mark.parametrize(
    "spec, case", [pytest.param(s, c, id=f"{s.name}-{c.name}".replace(" ", "_")) for s in all_specs() for c in s.errors]
)
def test_errors(spec, case, name):
    sample = case.make()
    with backend(name), pytest.raises(case.error, match=case.pattern):
        spec.function(*sample.args, **sample.kwargs)


@pytest.mark.parametrize("spec", all_specs(), ids=lambda s: s.name)
def test_devices_do_not_mix(spec):
    call = Call(samples_of(spec, torch.float32)[1])
    for i in range(1, len(call.tensors)):
        tensors = [t.to("meta") if i == j else t for j, t in enumerate(call.tensors)]
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            call.run(spec.function, tensors)


@pytest.mark.parametrize("spec", all_specs(), ids=lambda s: s.name)
def test_meta_tensors(spec):
    for sample in samples_of(spec, torch.float32)[:8]:
        call = Call(sample)
        real = call.run(spec.function)
        fake = call.run(spec.function, [t.to("meta") for t in call.tensors])
        for r, f in zip(real, fake, strict=True):
            if r.is_floating_point():
                assert f.device.type == "meta" and f.shape == r.shape and f.dtype == r.dtype
