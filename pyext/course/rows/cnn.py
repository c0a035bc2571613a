"""The convolutional network on handwritten digits."""

from torch.nn import functional as F

from torchsmith.course.row import Row, correct
from torchsmith.data import load_images
from torchsmith.models import MnistCNN

ROW = Row(
    name="cnn",
    summary="conv 1->10 k5, maxpool 2, ReLU, conv 10->20 k5, maxpool 2, ReLU, linear 320->10",
    data="MNIST (a folder) or digits",
    goal="10 epochs: at least 98.3 % of MNIST's test images",
    load=load_images,
    model=lambda layers: MnistCNN(layers=layers),
    loss=F.cross_entropy,
    metrics={"accuracy": correct},
    defaults={"epochs": 10, "batch_size": 64, "lr": 0.01, "momentum": 0.5, "seed": 0},
    # digits has 23 batches an epoch where MNIST has 938.
    data_defaults={"digits": {"epochs": 30}},
)
