"""A data set cut in two."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Splits"]


@dataclass(frozen=True)
class Splits:
    """A data set. Each part is a tuple of tensors with the same first dimension N: inputs..., target."""

    name: str
    source: str  #: where it came from, for the record
    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...] | None = None  #: None: the course tests this model on what it was trained on
    #: makes a batch of what was cut from the tensors: (inputs..., target) to (inputs..., target)
    collate: Callable[..., tuple[Tensor, ...]] | None = None
    #: what a model must know of the data (classes, characters...), of types that JSON has; kept in checkpoints
    facts: Mapping[str, Any] = field(default_factory=dict)

    def parts(self) -> dict[str, tuple[Tensor, ...]]:
        """The parts there are: ``train`` and, where it is not None, ``test``."""
        return {"train": self.train} | ({} if self.test is None else {"test": self.test})

    def sizes(self) -> dict[str, int]:
        """Samples in each part there is."""
        return {name: len(tensors[-1]) for name, tensors in self.parts().items()}
