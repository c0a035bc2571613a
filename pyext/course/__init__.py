"""The course: one trainer, one way to work an example out, and a small file in ``rows`` for each system.

``torchsmith train NAME`` on the command line; from Python::

    from torchsmith.course import get_row

    row = get_row("cnn")
    outcome = row.run(row.settings(epochs=1), folder="runs/mine")
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from . import rows

if TYPE_CHECKING:
    from .outcome import Outcome
    from .row import Row
    from .trainer import train

__all__ = ["Outcome", "Row", "all_rows", "get_row", "row_names", "train"]


def row_names() -> list[str]:
    """Names of the rows, sorted; imports none of them."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(rows.__path__))


def get_row(name: str) -> Row:
    """The row called ``name``. Raises ValueError naming those there are."""
    if name not in row_names():
        raise ValueError(f"no row {name!r}; there are: {', '.join(row_names())}")
    return importlib.import_module(f"{rows.__name__}.{name.replace('-', '_')}").ROW


def all_rows() -> list[Row]:
    """Every row, in the course's order."""
    return sorted(map(get_row, row_names()), key=lambda row: row.lesson)


def __getattr__(name: str) -> object:
    # Late, so that listing the rows needs neither the trainer nor what it draws with.
    if name in ("Outcome", "train"):
        return getattr(importlib.import_module(f"{__name__}.trainer"), name)
    if name == "Row":
        return importlib.import_module(f"{__name__}.row").Row
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
