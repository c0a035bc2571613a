"""Whole training steps and inference of the course's models, built from our layers and from torch.nn's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

import torchsmith
from torchsmith import models
from torchsmith.bench import harness, suite

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


MODELS = [
    ModelCase("MnistCNN", lambda layers: models.MnistCNN(layers=layers), _digits, "28x28 b64"),
]


def jobs() -> Iterator[suite.Job]:
    for case in MODELS:
        for mode in ("training step", "inference"):

            def pair(dtype, case=case, mode=mode):
                torch.manual_seed(0)
                ours, native = case.make(torchsmith.nn), case.make(torchsmith.native_nn)
                return harness.module_pair(ours, native, *case.batch(), mode)

            yield suite.Job(case.name, case.label, mode, pair, kind="model")


@pytest.mark.benchmark(timer=suite.clock)
def test_model(job, measure):
    measure(job)
