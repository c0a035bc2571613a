"""The course's models: their sizes, and that the arm on our ops computes what the arm on torch.nn computes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from compare import compare
from model_cases import CASES, SMALL, Case, digits, names
from torch.nn.functional import cross_entropy

from torchsmith import _native, models, native_nn, nn
from torchsmith.models.inception import InceptionA
from torchsmith.models.resnet import DenseBlock, ResidualBlock

ISAS = _native.isa_available()


@pytest.fixture(params=ISAS)
def isa(request):
    _native.force_isa(request.param)
    yield request.param
    _native.force_isa(None)


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def three(case: Case) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """Ours, native, and native in float64, from the same weights."""
    ours, native = case.make(), case.make(layers=native_nn)
    native.load_state_dict(ours.state_dict())
    return ours, native, copy.deepcopy(native).double()


def compare_all(ours: list[torch.Tensor], native: list[torch.Tensor], exact: list[torch.Tensor], what: str) -> None:
    for i, arms in enumerate(zip(ours, native, exact, strict=True)):
        compare(*arms, f"{what} {i}")


def wide(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(t.double() if t.is_floating_point() else t for t in inputs)


# --------------------------------------------------------------------------------------------------- what they are


def test_every_model_is_tested():
    small = {getattr(make, "func", make).__name__ for make, _, _ in SMALL.values()}
    assert {case.make.__name__ for case in CASES.values()} | small == set(models.__all__)


@pytest.mark.parametrize("name", SMALL)
def test_small_models(name: str):
    """Sizes, and outputs and gradients of both arms against float64."""
    make, inputs, count = SMALL[name]
    arms = make(), make(layers=native_nn)
    arms[1].load_state_dict(arms[0].state_dict())
    arms = (*arms, copy.deepcopy(arms[1]).double())
    assert sum(p.numel() for p in arms[0].parameters()) == count
    x = inputs()
    outputs = [model(*batch) for model, batch in zip(arms, ((x,), (x,), wide((x,))), strict=True)]
    compare(*outputs, "outputs")
    for output in outputs:
        output.square().sum().backward()
    compare_all(*([p.grad for p in model.parameters()] for model in arms), "gradients")


@pytest.mark.parametrize(
    ("kind", "shortcut"),
    [("constant-scaling", lambda b, x, y: 0.5 * x + 0.5 * y), ("conv-shortcut", lambda b, x, y: b.shortcut(x) + y)],
)
def test_other_residual_blocks(kind: str, shortcut: Callable):
    x, b = torch.randn(2, 8, 5, 6), ResidualBlock(8, kind)
    y = torch.conv2d(torch.relu(torch.conv2d(x, *conv1(b), padding=1)), *conv2(b), padding=1)
    torch.testing.assert_close(b(x), torch.relu(shortcut(b, x, y)))


def test_dense_block_keeps_what_it_was_given():
    x = torch.randn(2, 5, 4, 4)
    block = DenseBlock(5, 3)
    y = block(x)
    assert y.shape == (2, 14, 4, 4) and torch.equal(y[:, :5], x)
    torch.testing.assert_close(y[:, 11:], block.conv3(y[:, :11]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.DiabetesMLP("swish"), "activation: expected one of relu, .*, got swish"),
        (lambda: models.HelloEmbedding(cell="lstm"), "cell: expected rnn or gru, got lstm"),
        (lambda: models.MnistResNet("bottleneck"), "kind: expected one of plain, .*, got bottleneck"),
        (lambda: models.MnistInception(1, 15), "side: expected at least 16, got 15"),
    ],
)
def test_models_that_cannot_be(make: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("layers", [nn, native_nn], ids=["ours", "native"])
def test_parameters_are_the_courses(case: Case, layers: ModuleType):
    state = case.make(layers=layers).state_dict()
    assert {name: tuple(t.shape) for name, t in state.items()} == case.expected()
    assert sum(t.numel() for t in state.values()) == case.count


def test_the_arms_differ_in_their_layers_alone(case: Case):
    ours, native = case.make(), case.make(layers=native_nn)
    assert list(ours.state_dict()) == list(native.state_dict())
    own = {type(m).__name__ for m in ours.modules() if type(m).__module__ == "torchsmith.nn"}
    assert own and own <= set(nn.__all__)
    assert not any(type(m).__module__ == "torchsmith.nn" for m in native.modules())


def test_a_seed_gives_both_arms_the_same_weights(case: Case):
    states = []
    for layers in (nn, native_nn):
        torch.manual_seed(1)
        states.append(case.make(layers=layers).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_inception_block_shape():
    assert InceptionA(10)(torch.randn(2, 10, 12, 11)).shape == (2, 88, 12, 11)


def test_residual_block_is_its_formula():
    x, b = torch.randn(2, 16, 12, 12), ResidualBlock(16)
    expected = torch.relu(x + torch.conv2d(torch.relu(torch.conv2d(x, *conv1(b), padding=1)), *conv2(b), padding=1))
    torch.testing.assert_close(b(x), expected)


def conv1(b: ResidualBlock):
    return b.conv1.weight, b.conv1.bias


def conv2(b: ResidualBlock):
    return b.conv2.weight, b.conv2.bias


# --------------------------------------------------------------------------------------------------- what they compute


def test_outputs_and_gradients(case: Case, isa):
    """Of a fixed seed: where two pixels of a pooling window tie within rounding, float32 and float64 may choose apart."""
    ours, native, exact = three(case)
    inputs = case.inputs()
    target = torch.randint(case.classes, (inputs[0].shape[0],))
    results = [m(*i) for m, i in ((ours, inputs), (native, inputs), (exact, wide(inputs)))]
    assert results[0].shape == (inputs[0].shape[0], case.classes)
    compare(*results, "logits")
    for result in results:
        cross_entropy(result, target).backward()
    gradients = [[p.grad for p in model.parameters()] for model in (ours, native, exact)]
    assert not any(g is None for arm in gradients for g in arm)
    compare_all(*gradients, "gradients")


def test_gradient_of_the_images(case: Case):
    if case.inputs is not digits:
        pytest.skip("indices have no gradient")
    (x,) = digits()
    grads = []
    for model, dtype in zip(three(case), (torch.float32, torch.float32, torch.float64), strict=True):
        leaf = x.to(dtype, copy=True).requires_grad_()
        model(leaf).square().sum().backward()
        grads.append(leaf.grad)
    compare(*grads, "gradient of the images")


def test_three_steps_stay_together(case: Case, isa):
    """Parameters after three steps: the arms may differ by rounding, which SGD neither hides nor lets grow."""
    arms = three(case)
    before = [p.detach().clone() for p in arms[0].parameters()]
    batches = [case.inputs() for _ in range(3)]
    targets = [torch.randint(case.classes, (b[0].shape[0],)) for b in batches]
    for model in arms:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
        for batch, target in zip(batches, targets, strict=True):
            batch = wide(batch) if model is arms[2] else batch
            optimizer.zero_grad()
            cross_entropy(model(*batch), target).backward()
            optimizer.step()
    after = [[p.detach() for p in model.parameters()] for model in arms]
    compare_all(*after, "parameters")
    assert not any(torch.equal(a, b) for a, b in zip(after[0], before, strict=True)), "a parameter was not trained"


def test_float64(case: Case):
    ours, _, exact = three(case)
    inputs = wide(case.inputs())
    torch.testing.assert_close(ours.double()(*inputs), exact(*inputs))


def test_a_batch_of_none_gives_no_logits(case: Case):
    if case.inputs is not digits:
        pytest.skip("torch packs no empty batch")
    assert case.make()(digits(0)[0]).shape == (0, 10)


def test_mlp_takes_rows_of_pixels_too():
    model, x = models.MnistMLP(), torch.randn(3, 1, 28, 28)
    assert torch.equal(model(x), model(x.reshape(3, 784)))


def test_names_ignore_what_stands_behind_their_end():
    model, (indices, lengths) = models.NameGRU(), names()
    behind = torch.arange(indices.shape[1]) >= lengths[:, None]
    assert torch.equal(model(indices, lengths), model(indices.masked_fill(behind, 0), lengths))


def test_a_name_does_not_depend_on_its_batch():
    model, (indices, lengths) = models.NameGRU(), names()
    alone = torch.cat([model(i[None, :n], [n]) for i, n in zip(indices, lengths.tolist(), strict=True)])
    torch.testing.assert_close(model(indices, lengths), alone)


def test_names_are_read_in_the_courses_order():
    """The backward state comes first: with its half of the linear layer gone, only the forward one counts."""
    model = models.NameGRU(num_layers=1, hidden_size=8).requires_grad_(False)
    model.fc.weight[:, :8] = 0
    one, other = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3, 4]])
    backwards = model.gru.weight_ih_l0_reverse
    before = model(one, [3])
    backwards += 1
    assert torch.equal(model(one, [3]), before)
    assert not torch.equal(model(other, [4]), before)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_names_arguments(bidirectional):
    arguments = {"characters": 30, "hidden_size": 12, "classes": 5, "num_layers": 3, "bidirectional": bidirectional}
    ours, native = models.NameGRU(**arguments), models.NameGRU(**arguments, layers=native_nn)
    native.load_state_dict(ours.state_dict())
    inputs = torch.randint(30, (4, 6)), [6, 5, 5, 1]
    assert ours(*inputs).shape == (4, 5)
    torch.testing.assert_close(ours(*inputs), native(*inputs))


# --------------------------------------------------------------------------------------------------- bad input

IMAGES = {
    "three colours": ((2, 3, 28, 28), r"to have 1 channels, but got 3 channels|\(2x2352 and 784x512\)"),
    "another size": ((2, 1, 32, 32), r"shapes cannot be multiplied \(2x\d+ and \d+x\d+\)"),
    "too small": ((2, 1, 4, 4), r"Kernel size can't be greater than actual input size|\(2x16 and 784x512\)"),
    "no batch": ((28, 28), r"input of size: \[28, 28\]|\(28x28 and 784x512\)"),
}


@pytest.mark.parametrize("layers", [nn, native_nn], ids=["ours", "native"])
@pytest.mark.parametrize("kind", IMAGES)
def test_bad_images(case: Case, kind: str, layers: ModuleType):
    if case.inputs is not digits:
        pytest.skip("takes no images")
    shape, message = IMAGES[kind]
    with pytest.raises(RuntimeError, match=message):
        case.make(layers=layers)(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_bad_image_dtype(case: Case, dtype: torch.dtype):
    if case.inputs is not digits:
        pytest.skip("takes no images")
    with pytest.raises(RuntimeError, match="should be the same|same dtype"):
        case.make()(torch.zeros(2, 1, 28, 28, dtype=dtype))


FOUR = torch.ones(3, 4, dtype=torch.int64)
NAMES = {
    "one name without a batch": (FOUR[0], [4], ValueError, r"indices must be \[batch, time\], got \[4\]"),
    "a length beyond the end": (FOUR, [5, 4, 1], ValueError, "a length is 5, but indices have 4 columns"),
    "ascending": (FOUR, [1, 2, 4], RuntimeError, "sorted in decreasing order"),
    "an empty name": (FOUR, [4, 2, 0], RuntimeError, "greater than 0"),
    "a length too few": (FOUR, [4, 2], RuntimeError, r"Expected `len\(lengths\)` to be equal to batch_size"),
    "no names": (FOUR[:0], torch.zeros(0, dtype=torch.int64), RuntimeError, "Cannot pack empty tensors"),
    "not ASCII": (FOUR * 0x142, [4, 2, 1], IndexError, "index out of range"),
    "negative": (-FOUR, [4, 2, 1], IndexError, "index out of range"),
    "not integers": (FOUR.float(), [4, 2, 1], RuntimeError, "Long, Int"),
}


@pytest.mark.parametrize("layers", [nn, native_nn], ids=["ours", "native"])
@pytest.mark.parametrize("kind", NAMES)
def test_bad_names(kind: str, layers: ModuleType):
    indices, lengths, error, message = NAMES[kind]
    with pytest.raises(error, match=message):
        models.NameGRU(layers=layers)(indices, lengths)


def test_another_models_weights_are_refused():
    with pytest.raises(RuntimeError, match="Missing key"):
        models.MnistCNN().load_state_dict(models.MnistMLP().state_dict())


def test_logits_are_raw():
    """No softmax at the end: rows do not sum to one, and the first loss is about that of guessing."""
    for case in CASES.values():
        logits = case.make()(*case.inputs())
        loss = float(cross_entropy(logits.detach(), torch.zeros(len(logits), dtype=torch.int64)))
        assert abs(loss - math.log(case.classes)) < 0.5
        assert not torch.allclose(logits.exp().sum(1), torch.ones(len(logits)), atol=1e-2)


def test_operations_of_an_embedding_and_its_reader_are_counted():
    """torch's counter hooks the positional arguments of layers, and refuses leaves among them."""
    from torch.utils.flop_counter import FlopCounterMode

    for layers in (nn, native_nn):
        model = models.NameGRU(layers=layers)
        with FlopCounterMode(display=False) as counter:
            found = torch.autograd.grad(model(FOUR, [4, 3, 1]).sum(), tuple(model.parameters()))
        assert len(found) == 19 and (layers is nn or counter.get_total_flops() > 0)  # it does not know our ops
