"""Whole training steps and inference of the course's models, built from our layers and from torch.nn's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

import torchsmith
from torchsmith import models
from torchsmith.bench import pairs, suite

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")


@dataclass(frozen=True)
class ModelCase:
    """A model, and a batch for it: inputs and class targets."""

    name: str
    make: Callable[[ModuleType], torch.nn.Module]
    batch: Callable[[], tuple[tuple[torch.Tensor, ...], torch.Tensor]]
    label: str


def _digits(size: int = 64) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    return (torch.randn(size, 1, 28, 28),), torch.randint(10, (size,))


def _names(size: int = 256, longest: int = 19, shortest: int = 6) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Rows of lower-case letters, their lengths spread evenly, the longest first, 0 after each name's end."""
    lengths = shortest + torch.arange(size).flip(0) * (longest - shortest + 1) // size
    letters = torch.randint(ord("a"), ord("z") + 1, (size, longest))
    indices = torch.where(torch.arange(longest) < lengths[:, None], letters, 0)
    return (indices, lengths), torch.randint(18, (size,))


MODELS = [
    ModelCase("MnistMLP", lambda layers: models.MnistMLP(layers=layers), _digits, "28x28 b64"),
    ModelCase("MnistCNN", lambda layers: models.MnistCNN(layers=layers), _digits, "28x28 b64"),
    ModelCase("MnistInception", lambda layers: models.MnistInception(layers=layers), _digits, "28x28 b64"),
    ModelCase("MnistResNet", lambda layers: models.MnistResNet(layers=layers), _digits, "28x28 b64"),
    ModelCase("NameGRU", lambda layers: models.NameGRU(layers=layers), _names, "b256 T19, lengths 6 to 19"),
]


def jobs() -> Iterator[suite.Job]:
    for case in MODELS:
        for mode in ("training step", "inference"):

            def pair(dtype, wrap=None, case=case, mode=mode):
                torch.manual_seed(0)
                ours, native = case.make(torchsmith.nn), case.make(torchsmith.native_nn)
                return pairs.module_pair(ours, native, *case.batch(), mode, wrap)

            yield suite.Job(case.name, case.label, mode, pair, kind="model")


@pytest.mark.benchmark(timer=suite.clock)
def test_model(job, measure):
    measure(job)
