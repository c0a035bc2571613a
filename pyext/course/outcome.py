"""What a run leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    record: dict[str, Any]  #: as in record.json
    folder: Path
    model: nn.Module | None = None  #: ours, trained
    signal: int | None = None  #: the signal that ended it early
