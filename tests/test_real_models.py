"""Real models, converted: outputs, gradients, and parameters after three steps, by the rule of compare.py."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from compare import compare
from torch.nn.functional import cross_entropy

import torchsmith
from torchsmith.bench import real_models as real
from torchsmith.convert import survey


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


CASES = {
    "ResNet-18": Case(real.ResNet18, pictures(64), {"swapped": 22, "fused": 0}),
    "VGG-16": Case(lambda: real.VGG16(pooled=1, hidden=256), pictures(32), {"swapped": 1, "fused": 35}),
    "MobileNetV2": Case(real.MobileNetV2, pictures(64), {"swapped": 53, "fused": 0}),
    "GoogLeNet": Case(real.GoogLeNet, pictures(64), {"swapped": 14, "fused": 114}),
    "LeNet-5": Case(real.LeNet5, pictures(28, 4, 1), {"swapped": 1, "fused": 5}),
    "MLP": Case(real.PlainMLP, lambda: ((torch.randn(5, 784),), torch.randint(10, (5,))), {"swapped": 1, "fused": 6}),
    "char-RNN": Case(real.CharRNN, characters, {"swapped": 2, "fused": 0}),
    "char-RNN, dropout": Case(lambda: real.CharRNN(dropout=0.3), characters, {"swapped": 2, "fused": 0}),
    "GRU tagger": Case(real.Tagger, sentences, {"swapped": 2, "fused": 0}),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def widened(values):
    return tuple(v.double() if v.is_floating_point() else v for v in values)


def three(case):
    """Converted, native, and native in float64, of the same weights; and a batch for each."""
    native = case.make()
    ours = torchsmith.convert(copy.deepcopy(native), inplace=True)
    inputs, target = case.batch()
    return (ours, native, copy.deepcopy(native).double()), (inputs, inputs, widened(inputs)), target


def states(module):
    return {k: v for k, v in module.state_dict().items() if v.is_floating_point()}


def test_training_gives_nativ_s_numbers(case):
    modules, inputs, target = three(case)
    found = []
    for module, values in zip(modules, inputs, strict=True):
        torch.manual_seed(7)  # dropout draws the same masks
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
        results = {}
        for step in range(3):
            optimizer.zero_grad()
            output = module(*values)
            cross_entropy(output, target).backward()
            if step == 0:
                results = {"output": output.detach()}
                results |= {f"gradient of {k}": p.grad.clone() for k, p in module.named_parameters()}
            optimizer.step()
        results |= {f"{k} after three steps": v for k, v in states(module).items()}
        found.append(results)
    for what in found[0]:
        compare(*(results[what] for results in found), what)


def test_inference_gives_native_s_numbers(case):
    modules, inputs, _ = three(case)
    with torch.no_grad():
        compare(*(m.eval()(*values) for m, values in zip(modules, inputs, strict=True)))


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
    convertible = tuple(torchsmith.convert.__globals__["TWINS"])
    assert not [m for m in ours.modules() if type(m) in convertible and type(m) is not torch.nn.Sequential]
