"""y = w x + b on three points, with torch's optimizers."""

import torch
from torch.nn import functional as F

from torchsmith.course.row import TrainingRow
from torchsmith.data import Splits
from torchsmith.models import LinearModel

X, Y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0]])


@torch.no_grad()
def results(model, splits):
    device = model.linear.weight.device
    return {
        "w": float(model.linear.weight),
        "b": float(model.linear.bias),
        "y(4)": float(model(torch.tensor([[4.0]], device=device))),
    }


ROW = TrainingRow(
    name="linear",
    lesson=4,
    summary="linear 1->1 on (1,2), (2,4), (3,6), MSE",
    data="three points",
    goal="w ~ 2, b ~ 0, y(4) ~ 8",
    reached="w 1.996, b 0.010, y(4) 7.993 (SGD, 2000 epochs)",
    embedded="three points",
    load=lambda source: Splits("three points", "torchsmith", (X, Y)),
    model=lambda layers, settings, facts: LinearModel(layers=layers),
    loss=F.mse_loss,
    results=results,
    defaults={"epochs": 2000, "batch_size": None, "lr": 0.01, "momentum": 0.0, "optimizer": "SGD", "seed": 0},
    course={"w": 2.0, "b": 0.0, "y(4)": 8.0},
    variants={"optimizers": {"compare_optimizers": True, "epochs": 500}},
)
