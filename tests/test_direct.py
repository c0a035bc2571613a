"""Native ops called without torch's dispatcher: the same results, and only where nothing would have been asked on the way."""

import contextlib
import pickle
import resource
import threading

import pytest
import torch
from contract import Record, samples_of
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import torchsmith
from torchsmith import _native, autograd, triton_backend
from torchsmith.spec import all_specs, kernel

LINEAR = "linear_forward"
pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API"
)


class Through(list):
    """Calls that went through torch: stands for the overload."""

    def __init__(self, overload):
        self.overload = overload

    def __call__(self, *arguments):
        self.append(arguments)
        return self.overload(*arguments)


def direct(name, elsewhere=autograd._BETWEEN):
    """The op called directly where it can be, and the calls that it could not."""
    through = Through(kernel(name))
    of = {"tensor": torch.Tensor, "parameter": nn.Parameter, "elsewhere": elsewhere}
    return _native.direct(name=name, otherwise=through, **of), through


def calls_of(spec, sample):
    """What a sample, forward and backward, asks of the native ops."""
    leaves = [
        t for t in tree_leaves((sample.args, sample.kwargs)) if isinstance(t, torch.Tensor) and t.is_floating_point()
    ]
    with Record() as native, contextlib.ExitStack() as stack:
        for t in leaves:
            t.requires_grad_()
            stack.callback(t.requires_grad_, False)
        out = spec.function(*sample.args, **sample.kwargs)
        outs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad]
        if outs:
            torch.autograd.backward(outs, [torch.randn_like(t) for t in outs])
        for t in leaves:
            t.grad = None
        stack.close()
        spec.function(*sample.args, **sample.kwargs)
    return native.calls


def with_defaults(func, args):
    """A record's arguments, which leave out what is at its default."""
    return (*args, *(a.default_value for a in func._schema.arguments[len(args) :]))


def same(a, b):
    numbers = torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    return numbers and torch.equal(
        a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan()
    )  # a cast may give NaN either sign


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spec", all_specs(), ids=lambda spec: spec.name)
def test_it_gives_what_the_op_gives(spec, dtype):
    """Every native call of every sample: bits, sizes, strides. Only what is large goes through torch."""
    seen = set()
    for sample in samples_of(spec, dtype):
        for func, args, _ in calls_of(spec, sample):
            args = with_defaults(func, args)
            call, through = direct(name := func._schema.name.partition("::")[2])
            with torch.no_grad():
                found, expected = call(*args), func(*args)
            sizes = [t.numel() for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
            assert not through or max(sizes) > 4096, (sample.name, name, sizes)
            if not through:
                seen.add(name)
            assert type(found) is type(expected) and len(tree_leaves(found)) == len(tree_leaves(expected))
            for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
                assert type(a) is torch.Tensor and not a.requires_grad and a._version == 0
                assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype), (sample.name, name)
                assert same(a, b), (sample.name, name)
    assert seen == set(spec.kernels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gradient_of_the_inputs_sizes(dtype):
    """Of one layer, which has it copied to where the input's gradient will be if it is of another type."""
    rnn, x = torchsmith.nn.RNN(3, 3).to(dtype), torch.randn(4, 2, 3, dtype=dtype, requires_grad=True)
    with Record() as native:
        y, _ = rnn(x)
        y.backward(torch.randn_like(y))
    ((func, args, _),) = [c for c in native.calls if "rnn_backward" in str(c[0])]
    call, through = direct("rnn_backward")
    args = with_defaults(func, args)
    with torch.no_grad():
        for a, b in zip(tree_leaves(call(*args)), tree_leaves(func(*args)), strict=True):
            assert same(a, b)
    assert not through


class Ours(torch.Tensor):
    pass


class Watched(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


X, W, B = torch.randn(3, 5), torch.randn(7, 5), torch.randn(7)
PLAIN = (X, W, B, False, False)


@pytest.mark.parametrize(
    "around",
    [Record, Watched, torch.autograd.profiler.profile, lambda: torch.device("cpu")],
    ids=["dispatch mode", "function mode", "profiler", "default device"],
)
def test_what_torch_asks_of_a_call_is_asked(around):
    call, through = direct(LINEAR)
    with around():
        y = call(*PLAIN)
    assert len(through) == 1 and torch.equal(y, call(*PLAIN)) and len(through) == 1


def test_a_kernel_of_triton_s_is_not_passed_by(monkeypatch):
    call, through = direct(LINEAR)
    monkeypatch.setitem(triton_backend._libraries, LINEAR, [])
    assert torch.equal(call(*PLAIN), kernel(LINEAR)(*PLAIN)) and len(through) == 1


def test_a_profile_names_the_op():
    with torch.autograd.profiler.profile() as profile:
        torchsmith.linear(X, W, B)
    assert "torchsmith::linear_forward" in {event.name for event in profile.function_events}


def test_tracing_and_transforms_go_through_torch():
    call, through = direct(LINEAR)
    traced = torch.jit.trace(lambda x: call(x, W, B, False, False), X, check_trace=False)
    assert len(through) == 1 and "torchsmith::linear_forward" in str(traced.graph)
    torch.func.jacrev(lambda x: call(X, W, B, False, False).sum() + x.sum())(X)
    assert len(through) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        (X.as_subclass(Ours), W, B, False, False),
        (X, W, B.as_subclass(Ours), False, False),
        (torch.zeros(3, 700).half(), torch.zeros(7, 700).half(), B.half(), False, False),
        (torch.zeros(3, 700).bfloat16(), torch.zeros(7, 700).bfloat16(), B.bfloat16(), False, False),
        (X.to("meta"), W.to("meta"), B.to("meta"), False, False),
        (torch.zeros(600, 500), torch.zeros(7, 500), B, False, False),
    ],
    ids=["subclass", "subclass of a later one", "float16", "bfloat16", "meta", "large"],
)
def test_tensors_that_go_through_torch(arguments):
    call, through = direct(LINEAR)
    y, expected = call(*arguments), kernel(LINEAR)(*arguments)
    assert len(through) == 1 and type(y) is type(expected)
    assert y.is_meta or torch.equal(y, expected)


@pytest.mark.parametrize("make", [torch._to_functional_tensor, lambda x: torch._efficientzerotensor(x.shape)])
def test_what_holds_no_memory_goes_through_torch(make):
    """A wrapper's values are elsewhere, and a zero tensor's nowhere: both say null where their memory is asked for."""
    call, through = direct(LINEAR)
    x = make(X)
    y = call(x, W, B, False, False)
    assert len(through) == 1 and torch.allclose(y + 0, nn.functional.linear(x, W, B) + 0)


def test_a_negated_view_is_read_as_negated():
    x = torch._neg_view(X)
    assert x.is_neg()
    for arguments in ((x, W, B), (X, torch._neg_view(W), B), (X, nn.Parameter(torch._neg_view(W)), B)):
        with torch.no_grad():
            torch.testing.assert_close(
                torchsmith.linear(*arguments), nn.functional.linear(*(t.resolve_neg() for t in arguments))
            )
    call, through = direct(LINEAR)
    call(x, W, B, False, False)
    assert len(through) == 1


@pytest.mark.parametrize(
    "arguments, error",
    [
        ((X, W, torch.zeros(6), False, False), RuntimeError),
        ((X, W[:, :4], None, False, False), RuntimeError),
        ((X, W.double(), None, False, False), RuntimeError),
        ((X, "W", None, False, False), (RuntimeError, TypeError)),
        ((X,), (RuntimeError, TypeError)),
        ((X, W, None, False, False, 1), (RuntimeError, TypeError)),
    ],
    ids=["bias", "features", "dtype", "no tensor", "too few", "too many"],
)
def test_errors_are_torch_s(arguments, error):
    call, through = direct(LINEAR)
    with pytest.raises(error) as ours:
        call(*arguments)
    with pytest.raises(error) as native:
        kernel(LINEAR)(*arguments)
    assert str(ours.value) == str(native.value) and len(through) == 1


def test_what_may_be_left_out_and_what_converts():
    call, through = direct(LINEAR)
    assert torch.equal(call(X, W, None, False), kernel(LINEAR)(X, W, None, False, False)) and not through
    call(X, W, None, 1, False)  # no bool: torch says what it takes for one
    assert len(through) == 1
    conv, through = direct("conv2d_forward")
    x, w = torch.randn(1, 2, 5, 6), torch.randn(3, 2, 3, 3)
    geometry = [torch.Size([1, 1]), (0, 0, 0, 0), [1, 1], 1, False, []]
    y, position = conv(x, w, None, *geometry)
    assert not through and torch.equal(y, kernel("conv2d_forward")(x, w, None, *geometry)[0]) and position.numel() == 0


def test_results_are_tensors_like_others():
    call, through = direct(LINEAR)
    y = call(*PLAIN)
    kept = y.clone()
    assert torch.equal(pickle.loads(pickle.dumps(y)), kept) and torch.equal(y.share_memory_(), kept) and y.is_shared()
    y = call(*PLAIN)
    y.add_(1).t_()
    assert torch.equal(y, (kept + 1).t()) and y.data_ptr() % 64 == 0
    z = call(X, W, B, False, False).requires_grad_()
    z.square().sum().backward()
    assert torch.equal(z.grad, 2 * kept)
    with torch.inference_mode():
        assert call(*PLAIN).is_inference()
    assert not through


def grown_by(call, arguments):
    """KB that the process has grown by 400 calls at its peak, after some."""

    def peak(calls):
        for _ in range(calls):
            call(*arguments)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = peak(20)
    return peak(400) - before


def test_memory_is_given_back():
    call, through = direct("gru_forward")
    weights = [torch.randn(192, 64), torch.randn(192, 64), torch.randn(192), torch.randn(192)]
    arguments = (
        torch.randn(8, 16, 64),
        torch.zeros(1, 16, 64),
        weights,
        None,
        None,
        False,
        True,
        False,
        True,
        False,
        None,
    )
    assert grown_by(call, arguments) < 16 * 1024 and not through  # each makes 160 KB, 64 MB in all


def test_a_call_given_up_gives_back_what_it_had_made():
    """Its result would have to be laid out as the image, channels last, and is more than a direct call copies."""
    call, through = direct("conv2d_forward")
    x = torch.randn(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    arguments = (x, torch.randn(32, 3, 3, 3), None, [1, 1], [0] * 4, [1, 1], 1, False, [])
    assert grown_by(call, arguments) < 16 * 1024 and len(through) == 420  # each made 115 KB


def test_threads_at_once():
    call, through = direct(LINEAR)
    expected, wrong = kernel(LINEAR)(*PLAIN), []

    def work():
        wrong.extend(not torch.equal(call(*PLAIN), expected) for _ in range(300))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(wrong) == 1200 and not any(wrong) and not through


def test_every_native_op_can_be_called_directly():
    for name in {name for spec in all_specs() for name in spec.kernels}:
        call, through = direct(name)
        assert call is not through, name


def test_a_torch_without_the_exchange_calls_the_op():
    def otherwise():
        pass

    of = {"otherwise": otherwise, "parameter": nn.Parameter, "elsewhere": ()}
    assert _native.direct(name=LINEAR, tensor=object, **of) is otherwise
    assert _native.direct(name="none_such", tensor=torch.Tensor, **of) is otherwise
