"""torchsmith: hand-written kernels for PyTorch.

Functions: ``conv2d``, ``conv2d_relu``, ``conv2d_relu_maxpool2d``, ``max_pool2d``, ``linear``, ``linear_relu``, ``rnn_cell``,
``rnn``, ``gru_cell``, ``gru``. Modules with the state_dict of their torch.nn twins: :mod:`torchsmith.nn`.
"""

from importlib import import_module as _import_module

try:
    from . import _library as _library  # loads the C++ library, so that torch.ops.torchsmith exists
    from .convert import convert, revert
    from .dispatch import backend
    from .explain import explain
    from .ops import *  # noqa: F403  (every public function, gathered from the rows)
    from .ops import __all__ as _ops
    from .tuned import Table as _Table
    from .tuning import tune

    _Table.load().activate()  # what this user measured on this machine, if anything
except Exception as _error:
    from .doctor import stand_in as _stand_in

    _stand_in(_error)  # where the command is `torchsmith doctor`, that is what it is for
    raise

__version__ = _library.VERSION
__all__ = [
    "__version__",
    "backend",
    "convert",
    "explain",
    "export",
    "models",
    "native_nn",
    "nn",
    "packed",
    "revert",
    "tune",
    *_ops,
]
_LAZY = ("models", "native_nn", "nn", "course", "data", "export", "packed", "spec")


def __getattr__(name: str):
    if name in _LAZY:
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
