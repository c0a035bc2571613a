"""The residual network on handwritten digits, with the blocks of the identity-mappings exercise."""

import click
from torch.nn import functional as F

from torchsmith.course.digits import DIGITS
from torchsmith.course.row import TrainingRow
from torchsmith.course.settings import Option
from torchsmith.models import MnistDenseNet, MnistResNet
from torchsmith.models.resnet import BLOCKS


def model(layers, settings, facts):
    if settings["block"] == "densenet":
        return MnistDenseNet(layers=layers)
    return MnistResNet(settings["block"], layers=layers)


ROW = TrainingRow(
    name="resnet",
    lesson=13,
    summary="conv 1->16 k5, residual block(16), conv 16->32 k5, residual block(32), linear 512->10",
    goal="10 epochs: at least 98.7 % of MNIST's test images (native: 99.1 %)",
    reached="98.94 % (MNIST, 10 epochs, 1 thread)",
    model=model,
    loss=F.cross_entropy,
    options=[
        Option(
            "block",
            click.Choice([*BLOCKS, "densenet"]),
            "plain",
            f"What stands at the blocks' places: {', '.join(BLOCKS)}, or densenet, a model of the same size.",
            "NAME",
        )
    ],
    course={"test accuracy": "98.7 % (MNIST)"},
    variants={name: {"block": name} for name in (*list(BLOCKS)[1:], "densenet")},
    **DIGITS | {"quick": {"epochs": 6}},
)
