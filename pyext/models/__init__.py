"""The models of the course.

Each is written once, on the names that ``torchsmith.nn`` and ``torchsmith.native_nn`` share; the keyword ``layers``
says which of the two it is built from. A constructor without arguments gives the course's model.
"""

from .cnn import MnistCNN
from .inception import MnistInception
from .mlp import MnistMLP
from .names import NameGRU
from .resnet import MnistDenseNet, MnistResNet

__all__ = ["MnistCNN", "MnistDenseNet", "MnistInception", "MnistMLP", "MnistResNet", "NameGRU"]
