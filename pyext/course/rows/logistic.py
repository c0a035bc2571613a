"""Hours of study and whether the exam was passed: logistic regression, and BCE worked out on four predictions."""

import torch
from torch.nn import functional as F

from torchsmith.course.row import Metric, TrainingRow
from torchsmith.data import Splits
from torchsmith.models import LogisticRegression

X, Y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.0], [0.0], [1.0]])
TARGETS, PREDICTIONS = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0.2, 0.8, 0.3, 0.7])


@torch.no_grad()
def results(model, splits):
    device = model.linear.weight.device
    hours = torch.tensor([[1.0], [4.0]], device=device)
    one, four = model(hours).flatten().tolist()
    return {"P(pass | 1 h)": one, "P(pass | 4 h)": four}


def worked():
    each = F.binary_cross_entropy(PREDICTIONS, TARGETS, reduction="none")
    return {"BCE": each.tolist(), "mean BCE": float(each.mean())}


@torch.no_grad()
def panel(axes, models):
    hours = torch.linspace(0, 10, 200).unsqueeze(1)
    for name, model in models.items():
        device = model.linear.weight.device
        axes.plot(hours.flatten(), model(hours.to(device)).flatten().cpu(), "--" if name == "ours" else "-", label=name)
    axes.axhline(0.5, color="red", linewidth=1)
    axes.set_xlabel("hours")
    axes.set_ylabel("probability of passing")
    axes.set_title("what the model learnt")
    axes.grid(alpha=0.3)
    axes.legend()


ROW = TrainingRow(
    name="logistic",
    lesson=5,
    summary="logistic regression on (1,0), (2,0), (3,1), BCE",
    data="three points",
    goal="P(pass) over 0 to 10 hours; worked BCE: 1.609, 0.223, 0.357, 1.204, mean 0.8483",
    reached="P = 0.5 at 2.6 h; the worked BCE as the course's",
    embedded="three points",
    load=lambda source: Splits("three points", "torchsmith", (X, Y)),
    model=lambda layers, settings, facts: LogisticRegression(layers=layers),
    loss=F.binary_cross_entropy,
    metrics={"accuracy": Metric(lambda output, target: ((output > 0.5) == (target > 0.5)).flatten())},
    results=results,
    worked=worked,
    panel=panel,
    defaults={"epochs": 1000, "batch_size": None, "lr": 0.01, "momentum": 0.0, "optimizer": "SGD", "seed": 0},
    course={"BCE": [1.609, 0.223, 0.357, 1.204], "mean BCE": 0.8483},
)
