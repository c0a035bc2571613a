"""How one run is set: what every row may be given, and the options a row adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click
import torch

__all__ = ["OPTIMIZERS", "Option", "Refused", "Settings", "make_optimizer"]

#: The course's eight, by their names in torch.optim.
OPTIMIZERS = ("SGD", "Adagrad", "Adam", "Adamax", "ASGD", "LBFGS", "RMSprop", "Rprop")
WITH_MOMENTUM = ("SGD", "RMSprop")


class Refused(ValueError):
    """What was asked for cannot be done; found where the training begins, and no defect."""


@dataclass(frozen=True)
class Option:
    """An option that one row has, beyond what all have: ``--name``, and ``settings["name"]`` where the row reads it."""

    name: str
    kind: click.ParamType
    default: Any
    help: str
    metavar: str | None = None


@dataclass(frozen=True)
class Settings:
    """How one run goes. :meth:`Row.settings` makes it from what was given and the row's defaults."""

    epochs: int = 1
    batch_size: int | None = None  #: of one process; None: all samples
    lr: float = 0.01
    momentum: float = 0.0
    optimizer: str = "SGD"
    seed: int = 0
    data: str = ""  #: name of the embedded data, or a path
    threads: int | None = None  #: None leaves torch's own number
    workers: int = 0  #: processes that prepare batches
    device: str = "cpu"
    amp: str | None = None  #: "bf16": the forward pass in bfloat16 where autocast says so
    compare: bool = True  #: run the native arm beside ours
    compare_optimizers: bool = False  #: ours alone, once with each optimizer
    choices: Mapping[str, Any] = field(default_factory=dict)  #: values of the row's own options

    def __getitem__(self, name: str) -> Any:
        return self.choices[name]

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("threads", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr: expected a number greater than 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected 0 to less than 1, got {self.momentum}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer}")
        if self.amp not in (None, "bf16"):
            raise ValueError(f"amp: expected bf16, got {self.amp}")
        self._check_device()

    def _check_device(self) -> None:
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device: expected cpu, cuda or cuda:N, got {self.device}") from None
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device: expected cpu, cuda or cuda:N, got {self.device}")
        count = torch.cuda.device_count()
        if device.type == "cuda" and (device.index or 0) >= count:
            raise ValueError(f"device: expected one that is here ({count} CUDA devices), got {self.device}")


def make_optimizer(name: str, parameters: Any, settings: Settings) -> torch.optim.Optimizer:
    """``torch.optim``'s ``name`` with the learning rate, and the momentum where it takes one."""
    momentum = {"momentum": settings.momentum} if name in WITH_MOMENTUM else {}
    return getattr(torch.optim, name)(parameters, lr=settings.lr, **momentum)
