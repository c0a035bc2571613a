"""y = w x on three points: every w from 0 to 4 is tried."""

import torch

from torchsmith.course.row import ExampleRow, Worked

X, Y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [4.0], [6.0]])


def work(functions, settings):
    weights = [round(0.1 * step, 1) for step in range(41)]
    errors = [float((functions.linear(X, torch.tensor([[w]])) - Y).square().mean()) for w in weights]
    best = weights[errors.index(min(errors))]
    quantities = {f"MSE at w = {w}": errors[weights.index(w)] for w in range(5)}
    return Worked({**quantities, "best w": best}, {"MSE": errors}, weights, ("w", "mean squared error"))


ROW = ExampleRow(
    name="linear-search",
    lesson=1,
    summary="y = w x on (1,2), (2,4), (3,6): exhaustive search of w from 0 to 4 by 0.1",
    data="three points",
    goal="MSE at w = 0, 1, 2, 3, 4: 18.7, 4.7, 0, 4.7, 18.7",
    reached="18.667, 4.667, 0, 4.667, 18.667",
    embedded="three points",
    work=work,
    course={
        "MSE at w = 0": 18.7,
        "MSE at w = 1": 4.7,
        "MSE at w = 2": 0,
        "MSE at w = 3": 4.7,
        "MSE at w = 4": 18.7,
        "best w": 2.0,
    },
)
