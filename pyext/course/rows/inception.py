"""The Inception network on handwritten digits, or on CIFAR-10's photographs."""

from torch.nn import functional as F

from torchsmith.course.digits import DIGITS
from torchsmith.course.row import TrainingRow
from torchsmith.data import load_photographs
from torchsmith.models import MnistInception

ROW = TrainingRow(
    name="inception",
    lesson=12,
    summary="conv 1->10 k5, InceptionA(10), conv 88->20 k5, InceptionA(20), linear 1408->10",
    goal="10 epochs: at least 98.5 % of MNIST's test images",
    reached="98.90 % (MNIST, 10 epochs, 1 thread)",
    model=lambda layers, settings, facts: MnistInception(facts["channels"], facts["side"], layers=layers),
    loss=F.cross_entropy,
    course={"test accuracy": "98.5 % (MNIST)"},
    **DIGITS
    | {
        "data": "MNIST or CIFAR-10 (a folder) or digits",
        "source_help": "A folder with mnist/ or MNIST's IDX files, or with CIFAR-10's binary files, or scikit-learn's digits.",
        "load": load_photographs,
        "quick": {"epochs": 6},
    },
)
