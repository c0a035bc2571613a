"""The bugs that ``make mutants`` plants, a file for each kind of source; each is a replacement in one source file."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

__all__ = ["Bug", "PAIRS", "TILES", "VALUES", "all_bugs"]


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    right: str
    wrong: str
    tests: str  # pytest -k expression; of a CUDA or Triton kernel the row

    @property
    def cuda(self) -> bool:
        return self.file.startswith("csrc/cuda")

    @property
    def triton(self) -> bool:
        return self.file.startswith("kernels")


VALUES = "test_values_and_gradients and float32 and "  # under every instruction set
PAIRS = "test_values_and_gradients and bfloat16 and "
TILES = "test_values_and_gradients and bfloat16 and avx512_amx and "


def all_bugs() -> tuple[Bug, ...]:
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return tuple(bug for module in modules for bug in module.BUGS)
