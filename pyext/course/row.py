"""What a row of the course states, and how its settings are settled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from torchsmith.data import Splits

__all__ = ["Row", "Settings", "correct", "sgd"]


@dataclass(frozen=True)
class Settings:
    """How one training runs. :meth:`Row.settings` makes it from what was given and the row's defaults."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    seed: int
    data: str = "digits"  #: ``digits`` or a folder
    threads: int | None = None  #: None leaves torch's own number
    compare: bool = True  #: train the native arm beside ours

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr: expected a number greater than 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected 0 to less than 1, got {self.momentum}")


def sgd(parameters: Iterable[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """The course's optimizer for the digit models."""
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum)


def correct(output: Tensor, target: Tensor) -> Tensor:
    """Per sample, whether the largest of the logits [N, C] is at the target [N]."""
    return output.argmax(dim=1) == target


@dataclass(frozen=True)
class Row:
    """One system of the course. The trainer knows nothing beyond what stands here."""

    name: str  #: as typed after ``torchsmith train``
    summary: str  #: the model in a line
    data: str  #: the data sets it takes, in a line
    goal: str  #: the result to reach on the real data
    load: Callable[[str], Splits]
    model: Callable[[ModuleType], nn.Module]  #: gets torchsmith.nn or torchsmith.native_nn
    loss: Callable[[Tensor, Tensor], Tensor]  #: (output, target) to a scalar
    #: name -> (output, target) to a score per sample, [N]; the trainer shows the mean over a whole split
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]]
    optimizer: Callable[[Iterable[nn.Parameter], Settings], torch.optim.Optimizer] = sgd
    defaults: Mapping[str, Any] = field(default_factory=dict)  #: of Settings' fields
    data_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: by data name, where they differ

    def default(self, field_name: str, data: str = "") -> Any:
        """The default of a setting on ``data``; KeyError where the row states none."""
        return {**self.defaults, **self.data_defaults.get(data, {})}[field_name]

    def settings(self, **given: Any) -> Settings:
        """The settings for a run; what is missing from ``given``, or None there, comes from the row's defaults."""
        chosen = {name: value for name, value in given.items() if value is not None}
        data = str(chosen.get("data", "digits"))
        return Settings(**{**self.defaults, **self.data_defaults.get(data, {}), **chosen, "data": data})
