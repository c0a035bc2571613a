"""The models of the course.

Each is written once, on the names that ``torchsmith.nn`` and ``torchsmith.native_nn`` share; the keyword ``layers``
says which of the two it is built from. A constructor without arguments gives the course's model.
"""

from .characters import CharGRU, HelloEmbedding, HelloRNN, HelloRNNCell
from .cnn import MnistCNN
from .inception import MnistInception
from .mlp import MnistMLP
from .names import NameGRU
from .resnet import MnistDenseNet, MnistResNet
from .small import DiabetesMLP, LinearModel, LogisticRegression

__all__ = [
    "CharGRU",
    "DiabetesMLP",
    "HelloEmbedding",
    "HelloRNN",
    "HelloRNNCell",
    "LinearModel",
    "LogisticRegression",
    "MnistCNN",
    "MnistDenseNet",
    "MnistInception",
    "MnistMLP",
    "MnistResNet",
    "NameGRU",
]
