"""y = w x on three points: gradient descent by hand, d MSE/dw = mean of 2 x (x w - y) over a batch."""

import torch

from torchsmith.course.row import ExampleRow, Worked

X, Y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0]])
BATCHES = {"batch": 3, "stochastic": 1, "mini-batch": 2}


def descend(functions, settings, size):
    w = torch.tensor([[1.0]])
    costs = []
    for _ in range(settings.epochs):
        costs.append(float((functions.linear(X, w) - Y).square().mean()))
        for x, y in zip(X.split(size), Y.split(size), strict=True):
            w = w - settings.lr * (2 * x * (functions.linear(x, w) - y)).mean()
    return w.item(), costs


def work(functions, settings):
    found = {name: descend(functions, settings, size) for name, size in BATCHES.items()}
    quantities = {f"w, {name}": w for name, (w, _) in found.items()}
    quantities |= {f"y(4), {name}": 4 * w for name, (w, _) in found.items()}
    curves = {name: costs for name, (_, costs) in found.items()}
    return Worked(quantities, curves, range(settings.epochs), ("epoch", "cost (MSE over all points)"))


ROW = ExampleRow(
    name="gradient-descent",
    lesson=2,
    summary="y = w x on (1,2), (2,4), (3,6): gradient descent by hand on the batch, stochastic, on mini-batches of 2",
    data="three points",
    goal="w -> 2 with each",
    reached="w = 1.9999, 2.0000, 2.0000",
    embedded="three points",
    work=work,
    defaults={"epochs": 100, "lr": 0.01},
    course={**{f"w, {name}": 2.0 for name in BATCHES}, **{f"y(4), {name}": 8.0 for name in BATCHES}},
)
