"""Eight measurements to one probability: the first MLP; with --batch-size and --workers its mini-batch version."""

import click
from torch.nn import functional as F

from torchsmith.course.row import Metric, TrainingRow
from torchsmith.course.settings import Option
from torchsmith.data import load_diabetes
from torchsmith.models import DiabetesMLP
from torchsmith.models.small import ACTIVATIONS

ROW = TrainingRow(
    name="diabetes",
    lesson=6,
    summary="linear 8->6->4->1, activation inside, sigmoid at the end, BCE",
    data="the course's diabetes.csv (a folder or the file) or scikit-learn's diabetes set",
    goal='loss falls, accuracy printed (no figure; always "1" would be right for 65.3 % of the file)',
    reached="76.81 % (the course's file, 1000 epochs)",
    embedded="scikit-learn",
    source="--data",
    source_help="A folder that holds diabetes/diabetes.csv, or the file, or scikit-learn's set.",
    load=load_diabetes,
    model=lambda layers, settings, facts: DiabetesMLP(settings["activation"], layers=layers),
    loss=F.binary_cross_entropy,
    metrics={"accuracy": Metric(lambda output, target: ((output > 0.5) == (target > 0.5)).flatten())},
    defaults={"epochs": 1000, "batch_size": None, "lr": 0.1, "momentum": 0.0, "optimizer": "SGD", "seed": 0},
    options=[
        Option(
            "activation",
            click.Choice(list(ACTIVATIONS)),
            "relu",
            f"Between the layers: {', '.join(ACTIVATIONS)}.",
            "NAME",
        )
    ],
    quick={"epochs": 300},
    variants={
        "mini-batches": {"batch_size": 32, "workers": 2, "epochs": 50},
        "tanh": {"activation": "tanh", "epochs": 300},
    },
)
