"""Real models, converted: outputs, gradients, and parameters after three steps, by the rule of compare.py."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from compare import compare, nudged
from torch.nn.functional import cross_entropy, max_pool2d

import torchsmith
from torchsmith.bench import real_models as real
from torchsmith.convert import TWINS, survey

pytestmark = pytest.mark.minutes(0.6)


def pictures(side: int, count: int = 2, channels: int = 3):
    return lambda: ((torch.randn(count, channels, side, side),), torch.randint(10, (count,)))


def characters():
    return (torch.randint(65, (3, 17)),), torch.randint(65, (3, 17))


def sentences():
    lengths = torch.tensor([5, 11, 3, 8])
    words, tags = torch.randint(1000, (4, 11)), torch.randint(12, (4, 11))
    tags[torch.arange(11) >= lengths[:, None]] = -100  # of no meaning, and ignored by the loss
    return (words, lengths), tags


@dataclass(frozen=True)
class Case:
    make: Callable[[], torch.nn.Module]
    batch: Callable[[], tuple[tuple[torch.Tensor, ...], torch.Tensor]]
    verdicts: dict[str, int]  #: of layers, as explain tells them
    runs: int = 1  #: of native, the worst of which is its error
    lr: float = 1e-3
    clear: bool = False  #: only runs in which no (unfused) pool breaks a tie are compared
    part: float | None = None  #: instead of lr: how much of its largest value a parameter moves by in the first step


CASES = {
    "ResNet-18": Case(real.ResNet18, pictures(40), {"swapped": 22, "fused": 0}, runs=6),
    "VGG-16": Case(
        lambda: real.VGG16(pooled=1, hidden=256), pictures(32), {"swapped": 1, "fused": 35}, runs=6, part=1e-3
    ),
    "MobileNetV2": Case(real.MobileNetV2, pictures(40, 4), {"swapped": 53, "fused": 0}, runs=6),
    "GoogLeNet": Case(real.GoogLeNet, pictures(40), {"swapped": 14, "fused": 114}, runs=6, clear=True),
    "LeNet-5": Case(real.LeNet5, pictures(28, 4, 1), {"swapped": 1, "fused": 5}),
    "MLP": Case(real.PlainMLP, lambda: ((torch.randn(5, 784),), torch.randint(10, (5,))), {"swapped": 1, "fused": 6}),
    "char-RNN": Case(real.CharRNN, characters, {"swapped": 1, "fused": 3}),
    "char-RNN, dropout": Case(lambda: real.CharRNN(dropout=0.3), characters, {"swapped": 1, "fused": 3}),
    "GRU tagger": Case(real.Tagger, sentences, {"swapped": 2, "fused": 0}),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def widened(values):
    return tuple(v.double() if v.is_floating_point() else v for v in values)


@torch.no_grad()
def away_from_kinks(model, inputs):
    """Weights with which what enters a ReLU is between 1 and 5, or -5 and -1 in every other channel.

    A gradient jumps where a unit is at 0 (or at ReLU6's 6). Of the half a million units of such a model some always are, but
    for rounding, and then it is luck on which side they fall, in each arm for itself; that is no error of anybody's.
    """

    def balance(module, args, output):
        channels = 1 if output.dim() == 4 else output.dim() - 1
        shape = [-1 if i == channels else 1 for i in range(output.dim())]
        others = [i for i in range(output.dim()) if i != channels]
        mean = output.mean(others, keepdim=True)
        scale = 2 / (output - mean).abs().max()
        module.weight.mul_(scale)
        if module.bias is None:
            return output * scale
        wanted = torch.full_like(module.bias, 3.0)
        wanted[1::2] = -3
        module.bias.mul_(scale).add_(wanted - scale * mean.flatten())
        return (output - mean) * scale + wanted.view(shape)

    kinds = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.BatchNorm2d)
    handles = [m.register_forward_hook(balance) for m in model.modules() if isinstance(m, kinds)]
    model(*inputs)
    for handle in handles:
        handle.remove()


def rates(model, inputs, target, case):
    """The learning rate of each parameter. In a deep model gradients of the first layers are 1e9 times those of the last."""
    if case.part is None:
        return {name: case.lr for name, _ in model.named_parameters()}
    names, parameters = zip(*model.named_parameters(), strict=True)
    torch.manual_seed(7)
    gradients = torch.autograd.grad(cross_entropy(model(*inputs), target), parameters)
    found = zip(names, parameters, gradients, strict=True)
    return {name: case.part * float(p.detach().abs().max() / g.abs().max()) if g.any() else 0.0 for name, p, g in found}


def trained(module, inputs, target, lr):
    """Output and gradients of the first step, and what the state is after three."""
    results = {}
    groups = [{"params": [p], "lr": lr[name]} for name, p in module.named_parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    torch.manual_seed(7)  # dropout draws the same masks
    for step in range(3):
        optimizer.zero_grad()
        output = module(*inputs)
        cross_entropy(output, target).backward()
        if step == 0:
            results = {"output": output.detach()}
            results |= {f"gradient of {k}": p.grad.clone() for k, p in module.named_parameters()}
        optimizer.step()
    after = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
    return results | {f"{k} after three steps": v for k, v in after.items()}


class PoolInputs:
    """What enters the max pools of a model, in the order of the calls."""

    def __init__(self, model):
        self.found = []
        self.handles = [
            m.register_forward_pre_hook(lambda module, args: self.found.append((module, args[0].detach())))
            for m in model.modules()
            if isinstance(m, (torch.nn.MaxPool2d, torchsmith.nn.MaxPool2d))
        ]

    def __enter__(self):
        return self.found

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


def chosen(pool, x):
    kernel, step, padding = pool.kernel_size, pool.stride, pool.padding
    return max_pool2d(x, kernel, step, padding, ceil_mode=pool.ceil_mode, return_indices=True)[1].flatten(2)


def tie_is_broken(run, native, exact):
    """Whether the first pool that takes another cell than in float64 does so where two are equal but for rounding: from there
    on the arms train different models, and that is no error of anybody's. Elsewhere it is one."""
    for (pool, a), (_, b), (_, e) in zip(run, native, exact, strict=True):
        taken, right = chosen(pool, a), chosen(pool, e)
        if not torch.equal(taken, right):
            cells = e.flatten(2)
            gap, rounding = (cells.gather(2, right) - cells.gather(2, taken)).max(), (b - e).abs().max()
            assert gap <= 4 * rounding, f"a pool takes a cell smaller by {gap}, native's error is {rounding}"
            return True
    return False


def arms(case):
    """Those of the first seed of five with which no pool breaks a tie."""
    for seed in range(5):
        torch.manual_seed(seed)
        found = arms_of_a_seed(case)
        if found is not None:
            return found
    raise AssertionError("with each of five seeds a pool took another cell than in float64")


def arms_of_a_seed(case):
    """Results of the converted model, of native once or more, and of native in float64, from the same weights.

    From the second time on native's weights and inputs differ in their last bit. Of the hundreds of results of a deep model or
    one with normalisation some come out better than they deserve in one run: both magnify rounding (the gradient of a bias in
    front of a normalisation is nothing else), and then twice the error of that run is no measure: native with the last bit of its
    values moved misses twice the error of native in 3.4 % of ResNet-18's results and 1.8 % of MobileNetV2's (four seeds); ours does
    in 0.6 % of either.
    """
    native = case.make()
    inputs, target = case.batch()
    away_from_kinks(native, inputs)
    exact = copy.deepcopy(native).double()
    ours = torchsmith.convert(copy.deepcopy(native), inplace=True)
    others = [copy.deepcopy(native) for _ in range(1, case.runs)]
    for other in others:
        for p in other.parameters():
            p.data = nudged(p.data)
    moved = [tuple(nudged(v) if v.is_floating_point() else v for v in inputs) for _ in others]

    lr = rates(exact, widened(inputs), target, case)

    def run(model, inputs):
        return trained(model, inputs, target, lr)

    found, entered = [], []
    for model, given in zip((exact, ours, native, *others), (widened(inputs), inputs, inputs, *moved), strict=True):
        with PoolInputs(model) as pools:
            found.append(run(model, given))
            entered.append(pools)
    of_exact, of_ours, *of_natives = found
    if case.clear:
        broken = [tie_is_broken(one, entered[2], entered[0]) for one in entered[1:]]
        if any(broken[:2]):  # ours, native
            return None
        of_natives = [of for of, tie in zip(of_natives, broken[1:], strict=True) if not tie]
    return of_ours, of_natives, of_exact


def test_training_gives_native_s_numbers(case):
    ours, natives, exact = arms(case)
    for what, value in exact.items():
        compare(ours[what], [native[what] for native in natives], value, what)


def test_inference_gives_native_s_numbers(case):
    native, (inputs, _) = case.make().eval(), case.batch()
    with torch.no_grad():
        expected, ours = native(*inputs), torchsmith.convert(native)(*inputs)
        compare(ours, expected, native.double()(*widened(inputs)))


def test_the_layers_that_can_be_are_converted(case):
    model = case.make()
    names = list(model.state_dict())
    planned = survey(model)
    ours = torchsmith.convert(model, inplace=True)
    assert list(ours.state_dict()) == names
    done = survey(ours)
    assert [line.verdict for line in done] == [line.verdict for line in planned]
    counts = {verdict: sum(line.verdict == verdict for line in done) for verdict in ("swapped", "fused")}
    assert counts == case.verdicts
    assert not [m for m in ours.modules() if type(m) in TWINS and type(m) is not torch.nn.Sequential]
