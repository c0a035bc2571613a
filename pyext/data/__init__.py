"""Data sets as tensors, and the batches cut from them.

Every set has an embedded default, so that nothing must be downloaded; real files are read from a folder of the user's.
"""

from .batches import Batches
from .diabetes import load_diabetes
from .images import (
    CIFAR_FILES,
    MNIST_FILES,
    load_cifar10,
    load_digits,
    load_images,
    load_mnist,
    load_photographs,
    normalise,
    read_idx,
)
from .names import encode_names, load_names
from .splits import Splits
from .text import encode_text, load_text

__all__ = [
    "CIFAR_FILES",
    "MNIST_FILES",
    "Batches",
    "Splits",
    "encode_names",
    "encode_text",
    "load_cifar10",
    "load_diabetes",
    "load_digits",
    "load_images",
    "load_mnist",
    "load_names",
    "load_photographs",
    "load_text",
    "normalise",
    "read_idx",
]
