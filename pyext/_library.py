"""Loads the C++ library, which registers ``torch.ops.torchsmith.*``, and then the pybind11 module beside it."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_HERE = Path(__file__).parent

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
    raise ImportError(f"torchsmith needs torch 2.10 or newer, found {torch.__version__}: pip install 'torch>=2.10'")
if not (_HERE / "_cpu.so").is_file():
    raise ImportError(f"torchsmith is not built: {_HERE} holds no _cpu.so. Run 'pip install .' in the repository.")
torch.ops.load_library(str(_HERE / "_cpu.so"))

from . import _native  # noqa: E402  (it links against the library loaded above)

try:
    VERSION = version("torchsmith")
except PackageNotFoundError:  # used from a source tree
    VERSION = _native.build_info()["version"]
