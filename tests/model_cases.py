"""The course's models as the course states them: how they are made, what they take, their parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from torchsmith import models


def digits(count: int = 6) -> tuple[torch.Tensor, ...]:
    return (torch.randn(count, 1, 28, 28),)


def names(lengths: tuple[int, ...] = (9, 9, 7, 4, 4, 2, 1)) -> tuple[torch.Tensor, ...]:
    indices = torch.randint(128, (len(lengths), max(lengths)))  # what stands behind a name's end must not matter
    return indices, torch.tensor(lengths)


@dataclass(frozen=True)
class Case:
    """A model as the course states it: parameters by name and shape, and what it takes."""

    make: Callable[..., torch.nn.Module]
    count: int
    classes: int
    shapes: dict[str, tuple[int, ...]]  #: weights; a bias has as many numbers as its weight has rows
    inputs: Callable[[], tuple[torch.Tensor, ...]] = digits
    more: dict[str, tuple[int, ...]] = field(default_factory=dict)  #: parameters that are no weight with a bias

    def expected(self) -> dict[str, tuple[int, ...]]:
        weights = {f"{name}.weight": shape for name, shape in self.shapes.items()}
        return weights | {f"{name}.bias": shape[:1] for name, shape in self.shapes.items()} | self.more


def inception_a(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.branch_pool": (24, channels, 1, 1),
        f"{name}.branch1x1": (16, channels, 1, 1),
        f"{name}.branch5x5_1": (16, channels, 1, 1),
        f"{name}.branch5x5_2": (24, 16, 5, 5),
        f"{name}.branch3x3_1": (16, channels, 1, 1),
        f"{name}.branch3x3_2": (24, 16, 3, 3),
        f"{name}.branch3x3_3": (24, 24, 3, 3),
    }


def block(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{conv}": (channels, channels, 3, 3) for conv in ("conv1", "conv2")}


def gru_parameters() -> dict[str, tuple[int, ...]]:
    shapes = {"embedding.weight": (128, 100)}
    for layer, width in ((0, 100), (1, 200)):
        for end in (f"l{layer}", f"l{layer}_reverse"):
            shapes |= {f"gru.weight_ih_{end}": (300, width), f"gru.weight_hh_{end}": (300, 100)}
            shapes |= {f"gru.bias_ih_{end}": (300,), f"gru.bias_hh_{end}": (300,)}
    return shapes


CASES = {
    "mlp": Case(
        models.MnistMLP,
        575050,
        10,
        {f"l{i + 1}": shape for i, shape in enumerate([(512, 784), (256, 512), (128, 256), (64, 128), (10, 64)])},
    ),
    "cnn": Case(models.MnistCNN, 8490, 10, {"conv1": (10, 1, 5, 5), "conv2": (20, 10, 5, 5), "fc": (10, 320)}),
    "inception": Case(
        models.MnistInception,
        97298,
        10,
        {"conv1": (10, 1, 5, 5), "conv2": (20, 88, 5, 5), "fc": (10, 1408)}
        | inception_a("incep1", 10)
        | inception_a("incep2", 20),
    ),
    "resnet": Case(
        models.MnistResNet,
        41514,
        10,
        {"conv1": (16, 1, 5, 5), "conv2": (32, 16, 5, 5), "fc": (10, 512)}
        | block("rblock1", 16)
        | block("rblock2", 32),
    ),
    "densenet": Case(
        models.MnistDenseNet,
        39078,
        10,
        {"conv1": (16, 1, 5, 5), "conv2": (16, 40, 5, 5), "fc": (10, 832)}
        | {f"dense1.conv{i + 1}": (8, 16 + 8 * i, 3, 3) for i in range(3)}
        | {f"dense2.conv{i + 1}": (12, 16 + 12 * i, 3, 3) for i in range(3)},
    ),
    "names": Case(models.NameGRU, 318818, 18, {"fc": (18, 200)}, names, gru_parameters()),
}


def characters() -> torch.Tensor:
    return torch.randint(4, (3, 6))


#: The course's small models, and the resnet's exercise: how they are made, what they take, how many parameters they have.
SMALL = {
    "linear": (models.LinearModel, lambda: torch.randn(5, 1), 2),
    "logistic": (models.LogisticRegression, lambda: torch.randn(5, 1), 2),
    "diabetes": (models.DiabetesMLP, lambda: torch.randn(5, 8), 87),
    "diabetes, tanh": (partial(models.DiabetesMLP, "tanh"), lambda: torch.randn(5, 8), 87),
    "hello-rnncell": (models.HelloRNNCell, characters, 40),
    "hello-rnn": (models.HelloRNN, characters, 40),
    "hello-embedding": (models.HelloEmbedding, characters, 380),
    "hello-embedding, gru": (partial(models.HelloEmbedding, cell="gru"), characters, 988),
    "poem": (partial(models.CharGRU, 4, 16), characters, 1764),
    "resnet, constant-scaling": (partial(models.MnistResNet, "constant-scaling"), lambda: digits()[0], 41514),
    "resnet, conv-shortcut": (partial(models.MnistResNet, "conv-shortcut"), lambda: digits()[0], 42842),
    "inception of photographs": (partial(models.MnistInception, 3, 32), lambda: torch.randn(3, 3, 32, 32), 105718),
}
