"""What a row of the course states: a training (model, loss, data, metrics) or a worked example."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click
from torch import Tensor, nn

from torchsmith.data import Splits

from .settings import WITH_MOMENTUM, Option, Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

    from .outcome import Outcome

__all__ = ["ACCURACY", "ExampleRow", "Metric", "Row", "TrainingRow", "Worked", "correct"]

FIELDS = {item.name for item in dataclasses.fields(Settings)} - {"choices"}


def correct(output: Tensor, target: Tensor) -> Tensor:
    """Per sample, whether the largest of the logits [N, C] is at the target [N]."""
    return output.argmax(dim=1) == target


@dataclass(frozen=True)
class Metric:
    """A figure of a whole split: ``finish`` of the mean of ``score``."""

    score: Callable[[Tensor, Tensor], Tensor]  #: (output, target) to a number per sample, [N]
    finish: Callable[[float], float] = float
    percent: bool = True  #: shown in percent

    def show(self, value: float) -> str:
        return f"{100 * value:.2f} %" if self.percent else f"{value:.4g}"


ACCURACY = Metric(correct)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One system of the course. Nothing beyond what stands here is known of it."""

    name: str  #: as typed after ``torchsmith train``
    lesson: int  #: its place in the course
    summary: str  #: the model in a line
    data: str  #: the data it takes, in a line
    goal: str  #: the course's result, or the one to reach
    reached: str  #: ours, measured
    embedded: str  #: name of the data that comes with torchsmith
    source: str | None = None  #: option that names other data ("--data"); None: there are no other
    source_help: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)  #: of Settings' fields
    data_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: by data name, where they differ
    options: Sequence[Option] = ()
    course: Mapping[str, Any] = field(default_factory=dict)  #: the course's figures, by the names in our table
    quick: Mapping[str, Any] = field(default_factory=dict)  #: settings of ``torchsmith course --quick``
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  #: other runs that the report shows

    def default(self, name: str, data: str = "") -> Any:
        """The default of a setting on ``data``; KeyError where the row states none."""
        own = {option.name: option.default for option in self.options}
        return {**own, **self.defaults, **self.data_defaults.get(data, {})}[name]

    def settings(self, **given: Any) -> Settings:
        """The settings for a run; what is missing from ``given``, or None there, comes from the row's defaults.

        Raises ValueError naming the setting for a value that cannot be, TypeError for a setting the row does not have.
        """
        given = {name: value for name, value in given.items() if value is not None}
        own = {option.name: option for option in self.options}
        unknown = given.keys() - FIELDS - own.keys()
        if unknown:
            raise TypeError(f"{self.name} has no setting {', '.join(sorted(unknown))}")
        data = str(given.get("data", self.embedded))
        choices = {name: self._choice(option, given.pop(name, option.default)) for name, option in own.items()}
        chosen = {**self.defaults, **self.data_defaults.get(data, {}), **given, "data": data}
        settings = Settings(**chosen, choices=choices)
        if given.get("momentum") and settings.optimizer not in WITH_MOMENTUM:
            raise ValueError(f"momentum: expected an optimizer with momentum (SGD, RMSprop), got {settings.optimizer}")
        return settings

    @staticmethod
    def _choice(option: Option, value: Any) -> Any:
        if value is None:
            return None
        try:
            return option.kind.convert(value, None, None)
        except click.BadParameter as error:
            raise ValueError(f"{option.name}: {error.message} Got {value!r}.") from None

    def run(
        self, settings: Settings, *, folder: str | Path | None = None, console: Console | None = None, **more: Any
    ) -> Outcome:
        """Do what the row is about; leaves record.json, CSV files and curves.png in ``folder``."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TrainingRow(Row):
    """A row that trains a model."""

    load: Callable[[str], Splits]  #: the data's name or path to the data
    #: (torchsmith.nn or torchsmith.native_nn, settings, facts of the data) to the model
    model: Callable[[ModuleType, Settings, Mapping[str, Any]], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]  #: (output, target) to a scalar, a mean over the samples
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    #: further figures of a model, by name, taken at the end of each epoch: numbers or strings
    results: Callable[[nn.Module, Splits], Mapping[str, Any]] | None = None
    #: figures worked out beside the training, the same for every model: shown and kept at the end
    worked: Callable[[], Mapping[str, Any]] | None = None
    #: a text shown and kept at the end
    passage: Callable[[nn.Module, Settings, Mapping[str, Any]], str] | None = None
    #: draws a further panel of curves.png from the trained models, by arm
    panel: Callable[[Axes, Mapping[str, nn.Module]], None] | None = None
    #: ``torchsmith predict``: (model, facts, words) to each word's likeliest answers with their probabilities
    predict: Callable[[nn.Module, Mapping[str, Any], Sequence[str]], list[list[tuple[str, float]]]] | None = None

    def run(self, settings: Settings, **more: Any) -> Outcome:
        from .trainer import train

        return train(self, settings, **more)


@dataclass(frozen=True)
class Worked:
    """What one arm of a worked example found."""

    quantities: Mapping[str, Any]  #: numbers, strings, (nested) lists of numbers
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)  #: by name, all over ``x``
    x: Sequence[float] = ()
    axes: tuple[str, str] = ("", "")  #: what is along the two axes


@dataclass(frozen=True, kw_only=True)
class ExampleRow(Row):
    """A row that works something out, on torchsmith's functions and on torch's own."""

    #: (torchsmith or torch.nn.functional, settings) to what it found
    work: Callable[[ModuleType, Settings], Worked]

    def run(self, settings: Settings, **more: Any) -> Outcome:
        from .example import work_out

        return work_out(self, settings, **more)
