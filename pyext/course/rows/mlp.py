"""The multilayer perceptron on handwritten digits."""

from torch.nn import functional as F

from torchsmith.course.digits import DIGITS
from torchsmith.course.row import TrainingRow
from torchsmith.models import MnistMLP

ROW = TrainingRow(
    name="mlp",
    lesson=9,
    summary="linear 784->512->256->128->64->10, ReLU between",
    goal="10 epochs: at least 97 % of MNIST's test images",
    reached="97.60 % (MNIST, 10 epochs, 1 thread)",
    model=lambda layers, settings, facts: MnistMLP(layers=layers),
    loss=F.cross_entropy,
    course={"test accuracy": "97 % (MNIST)"},
    **DIGITS | {"quick": {"epochs": 25}},
)
