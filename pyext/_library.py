"""Loads the C++ libraries, which register ``torch.ops.torchsmith.*``, and the pybind11 module beside them.

``_cuda.so`` is loaded where it was built and torch itself has CUDA; no GPU is needed to load it.
"""

import warnings
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

if torch.version.cuda is not None and (_HERE / "_cuda.so").is_file():
    try:
        torch.ops.load_library(str(_HERE / "_cuda.so"))
    except OSError as error:  # the CPU library works all the same
        warnings.warn(f"torchsmith runs without its CUDA kernels: {error.__cause__ or error}", stacklevel=2)

#: Native ops that have a kernel for CUDA tensors.
CUDA_KERNELS = frozenset(row["op"] for row in _native.registry() if row["backend"] == "cuda")

try:
    VERSION = version("torchsmith")
except PackageNotFoundError:  # used from a source tree
    VERSION = _native.build_info()["version"]
