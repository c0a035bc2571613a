"""What the rows on handwritten digits have in common."""

from torchsmith.data import load_images

from .row import ACCURACY

__all__ = ["DIGITS"]

DIGITS = {
    "data": "MNIST (a folder) or digits",
    "embedded": "digits",
    "source": "--data",
    "source_help": "A folder that holds mnist/ or MNIST's IDX files themselves, or scikit-learn's digits.",
    "load": load_images,
    "metrics": {"accuracy": ACCURACY},
    "defaults": {"epochs": 10, "batch_size": 64, "lr": 0.01, "momentum": 0.5, "optimizer": "SGD", "seed": 0},
    # digits has 23 batches an epoch where MNIST has 938.
    "data_defaults": {"digits": {"epochs": 30}},
    "quick": {"epochs": 10},
}
