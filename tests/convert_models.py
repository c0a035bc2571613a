"""Models that the tests of torchsmith.convert convert, and what they ask of them."""

import torch
import torch.nn.functional as F
from torch import nn

from torchsmith import explain
from torchsmith.convert import survey

X = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(3))


def sequential():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(7, 3),
    )  # fmt: skip


class Attributes(nn.Module):
    """Layers in attributes; one ReLU, used twice."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fcs = nn.ModuleList([nn.Linear(6, 7), nn.Linear(7, 3)])

    def forward(self, x):
        x = self.pool(self.relu(self.conv1(x)))
        x = self.relu(self.pool(self.conv2(x)))
        return self.fcs[1](self.relu(self.fcs[0](self.flat(x))))

    def flat(self, x):
        return torch.flatten(x, 1)


class Functions(nn.Module):
    """Parameters and sizes in attributes, everything else a call of a function."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.fc = nn.Linear(100, 7)
        self.register_buffer("weight", torch.randn(3, 7))
        self.size, self.p = 2, 0.5

    def forward(self, x, scale=2.0):
        x = F.max_pool2d(F.conv2d(x, self.kernel, padding=0).relu(), self.size)
        x = F.dropout(torch.relu(self.fc(x.view(x.size(0), -1))), self.p, self.training)
        return F.linear(x * scale, self.weight)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.twice = False

    def forward(self, x):
        x = F.relu(self.conv(x))
        return 2 * x if self.twice else x


MODELS = {"Sequential": sequential, "attributes": Attributes, "functions": Functions, "branches": Branches}


def verdicts(model):
    return {line.layer: line.verdict for line in survey(model)}


def run(model, x=X):
    torch.manual_seed(5)
    return model(x)


def results(model, x=X):
    """Output and gradients, with the same dropout in every arm."""
    output = run(model, x)
    output.square().sum().backward()
    found = [output.detach(), *(p.grad.clone() for p in model.parameters())]
    model.zero_grad()
    return found


def ops_of(model, *inputs):
    return [line.op for line in explain(model, *inputs) if line.op]
