"""y = w x on three points: one tensor with requires_grad, a stochastic update after each backward pass."""

import torch

from torchsmith.course.row import ExampleRow, Worked

X, Y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0]])
FOUR = torch.tensor([[4.0]])


def work(functions, settings):
    w = torch.tensor([[1.0]], requires_grad=True)
    losses = []
    before = functions.linear(FOUR, w).item()
    for _ in range(settings.epochs):
        for x, y in zip(X.split(1), Y.split(1), strict=True):
            loss = (functions.linear(x, w) - y).square().sum()
            loss.backward()
            with torch.no_grad():
                w -= settings.lr * w.grad
            w.grad = None
        losses.append(loss.item())
    after = functions.linear(FOUR, w).item()
    quantities = {"y(4) before": before, "y(4) after": after, "w": w.item()}
    return Worked(quantities, {"loss": losses}, range(1, settings.epochs + 1), ("epoch", "loss of the last point"))


ROW = ExampleRow(
    name="backprop",
    lesson=3,
    summary="y = w x on (1,2), (2,4), (3,6): w a tensor with requires_grad, stochastic updates",
    data="three points",
    goal="prediction for x = 4: 4 before, 8 after",
    reached="4 before, 8 after",
    embedded="three points",
    work=work,
    defaults={"epochs": 100, "lr": 0.01},
    course={"y(4) before": 4.0, "y(4) after": 8.0, "w": 2.0},
)
