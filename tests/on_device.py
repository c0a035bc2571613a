"""What only a GPU can show, beyond the contract tests on its tensors: run by ``make gpu``.

The Triton kernels as machine code, bit for bit the same results every time and on any stream, TF32, and the course's shapes.
"""

import pytest
import torch
from contract import DEVICE, Call, cases, samples_of, seed
from torch.nn.utils.rnn import pack_padded_sequence

import torchsmith
from torchsmith import dispatch, triton_backend
from torchsmith.bench import gpu_times, pairs
from torchsmith.contract import Expected
from torchsmith.dispatch import backend, explain
from torchsmith.ops._recurrent import _dropout_masks
from torchsmith.spec import all_specs

IMPLEMENTATIONS = ["cpp"] if triton_backend.absent() else ["cpp", "triton"]
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
# float32 all, the 16-bit types by turns: each sample is other code to Triton, and compiling takes most of the time.
HALF, BRAIN = cases((torch.float16,)), cases((torch.bfloat16,))
BY_TRITON = [*cases((torch.float32,)), *HALF[::2], *BRAIN[1::2]]


@pytest.mark.skipif("triton" not in IMPLEMENTATIONS, reason=triton_backend.absent())
@pytest.mark.parametrize("spec, dtype, index", BY_TRITON)
def test_values_and_gradients_by_triton(spec, dtype, index):
    """Twice: the second time by the launches that were kept."""
    expected = Expected(spec, samples_of(spec, dtype)[index])
    assert not list(expected.wrong("triton"))
    assert not list(expected.wrong("triton")), "by the launches that were kept"


def bits(spec, sample, implementation):
    with backend(implementation):
        outputs, gradients = Call(sample).gradients(spec.function)
    return [t for t in (*outputs, *gradients) if t is not None]


@implementations
@pytest.mark.parametrize("spec, dtype, index", cases((torch.float32,)))
def test_the_same_bits_again_and_on_another_stream(spec, dtype, index, implementation):
    sample = samples_of(spec, dtype)[index]
    found = [bits(spec, sample, implementation) for _ in range(2)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found.append(bits(spec, sample, implementation))
    torch.cuda.current_stream().wait_stream(side)
    for one, again, aside in zip(*found, strict=True):
        assert torch.equal(one.nan_to_num(7), again.nan_to_num(7))
        assert torch.equal(one.nan_to_num(7), aside.nan_to_num(7))


COURSE = [
    pytest.param(spec, case, id=f"{spec.name}-{case.label}".replace(" ", "_"))
    for spec in all_specs()
    for case in spec.bench
]


@pytest.fixture(params=[False, True], ids=["float32", "TF32"])
def tf32(request):
    gpu_times.allow_tf32(DEVICE, request.param)
    yield request.param
    gpu_times.allow_tf32(DEVICE, False)


@implementations
@pytest.mark.parametrize("spec, case", COURSE)
def test_the_courses_shapes(spec, case, tf32, implementation):
    """Values and gradients are native's, and the same bits twice, at sizes that fill the GPU."""
    with backend(implementation):
        pair = pairs.op_pair(spec, case, "forward+backward", torch.float32, DEVICE)
        one, again = pair.ours_results(), pair.ours_results()
        assert explain().implementation == implementation, explain()
        pair.verify()
    for a, b in zip(one, again, strict=True):
        assert torch.equal(a, b)


@implementations
@pytest.mark.parametrize("op", [torchsmith.rnn, torchsmith.gru], ids=lambda op: op.__name__)
def test_dropout_between_layers(op, implementation):
    """Its masks are no one else's: a stack with dropout is its layers, the masks between them."""
    gates, (T, B, H) = (3 if op is torchsmith.gru else 1), (5, 33, 40)

    def new(*shape):
        return torch.randn(shape, device=DEVICE) / 6

    x, h = new(T, B, H), new(3, B, H)
    layers = [[new(gates * H, H), new(gates * H, H), new(gates * H), new(gates * H)] for _ in range(3)]
    with backend(implementation):
        seed(1)
        found, last = op(x, h, sum(layers, []), dropout=0.4, training=True)
        assert explain().implementation == implementation, explain()
        seed(1)
        masks = _dropout_masks(x, 3, (T, B, H), 0.4)
        for layer, w in enumerate(layers):
            x = x if layer == 0 else x * masks[layer - 1]
            x, state = op(x, h[layer : layer + 1], w)
            torch.testing.assert_close(last[layer : layer + 1], state)
    torch.testing.assert_close(found, x)
    assert sorted(masks.unique().tolist()) == pytest.approx([0, 1 / 0.6])
    assert (masks == 0).double().mean().item() == pytest.approx(0.4, abs=0.03)


def packed(T, B, I):
    return pack_padded_sequence(torch.randn(T, B, I, device=DEVICE), torch.arange(T, 0, -1)[:B])


@pytest.mark.parametrize(
    "op, shapes, more, ours",
    [
        ("conv2d", [(2, 3, 9, 9), (4, 3, 3, 3)], {}, False),
        ("conv2d_relu_maxpool2d", [(2, 3, 9, 9), (4, 3, 3, 3)], {}, True),
        ("conv2d_relu_maxpool2d", [(64, 64, 64, 64), (64, 64, 3, 3)], {}, False),
        ("max_pool2d", [(64, 10, 24, 24)], {"kernel_size": 2}, False),
        ("linear", [(4, 6), (3, 6)], {}, False),
        ("linear_relu", [(4, 6), (3, 6)], {}, True),
        ("linear_relu", [(1024, 1024), (1024, 1024)], {}, False),
        ("rnn_cell", [(4, 6), (4, 5), (5, 6), (5, 5)], {}, True),
        ("rnn_cell", [(256, 512), (256, 512), (512, 512), (512, 512)], {}, False),
    ],
)
def test_what_auto_leaves_to_native(op, shapes, more, ours, monkeypatch):
    monkeypatch.setattr(dispatch, "RULES", True)
    getattr(torchsmith, op)(*(torch.randn(shape, device=DEVICE) for shape in shapes), **more)
    found = explain()
    assert found.op == op and (found.implementation == "cpp" or found.reason == dispatch.NATIVE_ON_CUDA), found
    assert found.implementation == ("cpp" if ours else "torch"), found


@pytest.mark.parametrize("hidden, is_packed, ours", [(100, True, True), (100, False, False), (1024, True, False)])
def test_what_auto_leaves_to_cudnns_sequences(hidden, is_packed, ours, monkeypatch):
    monkeypatch.setattr(dispatch, "RULES", True)
    x = packed(6, 4, 5) if is_packed else torch.randn(6, 4, 5, device=DEVICE)
    weights = [torch.randn(3 * hidden, n, device=DEVICE) for n in (5, hidden)]
    torchsmith.gru(x, None, weights)
    assert explain().implementation == ("cpp" if ours else "torch"), explain()
