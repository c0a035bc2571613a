"""Whole models that nobody wrote for torchsmith, against themselves converted.

As their user would: ``torchsmith.convert``, and ``torchsmith.tune`` for the batch at hand, so that what native computes
faster on this machine stays native's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch

import torchsmith
from torchsmith import tuned
from torchsmith.bench import pairs, real_models, suite

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor]


def _pictures(count: int, side: int, channels: int = 3) -> Batch:
    return (torch.randn(count, channels, side, side),), torch.randint(10, (count,))


def _characters(count: int = 32, length: int = 64) -> Batch:
    return (torch.randint(65, (count, length)),), torch.randint(65, (count, length))


def _sentences(count: int = 32, longest: int = 30) -> Batch:
    """Lengths spread evenly from 5; what is behind a sentence's end has a tag that the loss ignores."""
    lengths = 5 + torch.arange(count) * (longest - 4) // count
    tags = torch.randint(12, (count, longest))
    tags[torch.arange(longest) >= lengths[:, None]] = -100
    return (torch.randint(1000, (count, longest)), lengths), tags


#: name -> the model (without dropout, whose masks would differ between the arms), a batch, its label
MODELS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], Batch], str]] = {
    "ResNet18": (real_models.ResNet18, lambda: _pictures(4, 64), "64x64 b4"),
    "VGG16": (lambda: real_models.VGG16(pooled=1, hidden=512, dropout=0.0), lambda: _pictures(4, 32), "32x32 b4"),
    "MobileNetV2": (lambda: real_models.MobileNetV2(dropout=0.0), lambda: _pictures(4, 64), "64x64 b4"),
    "GoogLeNet": (lambda: real_models.GoogLeNet(dropout=0.0), lambda: _pictures(4, 64), "64x64 b4"),
    "LeNet5": (real_models.LeNet5, lambda: _pictures(64, 28, 1), "28x28 b64"),
    "PlainMLP": (real_models.PlainMLP, lambda: ((torch.randn(64, 784),), torch.randint(10, (64,))), "784 b64"),
    "CharRNN": (real_models.CharRNN, _characters, "b32 T64"),
    "Tagger": (real_models.Tagger, _sentences, "b32 T30, lengths 5 to 30"),
}


def jobs() -> Iterator[suite.Job]:
    for name, (make, batch, label) in MODELS.items():
        for mode in ("training step", "inference"):

            def pair(dtype, wrap=None, make=make, batch=batch, mode=mode):
                torch.manual_seed(0)
                native = make()
                inputs, target = batch()
                ours = torchsmith.convert(copy.deepcopy(native), inplace=True).train(mode == "training step")
                with torch.set_grad_enabled(ours.training):
                    torchsmith.tune(ours, *inputs, save=False)
                return pairs.module_pair(ours, native, inputs, target, mode, wrap)

            yield suite.Job(name, label, mode, pair, kind="converted")


@pytest.fixture(autouse=True)
def _only_here():
    """What was tuned for a model holds for no other measurement."""
    yield
    tuned.Table.load().activate()


@pytest.mark.benchmark(timer=suite.clock)
def test_converted(job, measure):
    measure(job)
