"""Pictures of what was measured. Needs matplotlib, which comes with ``torchsmith[course]``."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    # Figure without pyplot: no window system is asked for, no global state is left.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("curves need matplotlib, which is not installed: pip install 'torchsmith[course]'") from error

if TYPE_CHECKING:
    from torchsmith.course.row import Worked

__all__ = ["example_curves", "training_curves"]

# Native under ours, wide under narrow: where the two coincide both stay visible. Colours safe for the colour-blind.
STYLE = {"native": {"color": "#e69f00", "linewidth": 3.0}, "ours": {"color": "#0072b2", "linewidth": 1.2}}
# For other arms and for curves beside each other.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000", "#999999")
SMOOTHING_POINTS = 100  # the loss curve is averaged to about this many points
LOG_RANGE = 1000  # a loss that falls by more than this factor is drawn on a logarithmic axis


def training_curves(record: dict[str, Any], panel: Callable[[Axes], None] | None = None) -> bytes:
    """A PNG of a training record (see ``torchsmith.course.record``): loss, metrics by epoch, times of the steps.

    ``panel`` draws one picture more.
    """
    arms = _styled(record["arms"])
    panels = [_loss, *([_metrics] if record["percent"] else []), _step_times]
    figure = Figure(figsize=(5 * (len(panels) + bool(panel)), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels) + bool(panel))
    for draw, place in zip(panels, axes, strict=False):
        draw(place, arms, record)
    if panel:
        panel(axes[-1])
    machine = record["environment"]
    figure.suptitle(
        f"{record['row']} on {record['data']['name']}, {record['status']} "
        f"(threads {machine['threads']}, torch {machine['torch']}, ISA {machine['isa']})"
    )
    return _png(figure)


def example_curves(name: str, found: Mapping[str, Worked]) -> bytes:
    """A PNG of a worked example's curves: one colour a curve, native wide and pale under ours."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for color, curve in zip(COLORS, found["ours"].curves, strict=False):
        native, ours = found["native"], found["ours"]
        axes.plot(native.x, native.curves[curve], color=color, linewidth=5, alpha=0.35, label=f"{curve}, native")
        axes.plot(ours.x, ours.curves[curve], ".-", color=color, linewidth=1.2, label=f"{curve}, ours")
    axes.set_xlabel(found["ours"].axes[0])
    axes.set_ylabel(found["ours"].axes[1])
    axes.set_title(name)
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _styled(arms: dict[str, Any]) -> dict[str, Any]:
    """The arms in the order they are drawn, each with its style."""
    ordered = [*(name for name in STYLE if name in arms), *(name for name in arms if name not in STYLE)]
    colors = cycle(COLORS)
    return {
        name: {**arms[name], "style": STYLE.get(name) or {"color": next(colors), "linewidth": 1.5}} for name in ordered
    }


def _loss(axes: Axes, arms: dict[str, Any], record: dict[str, Any]) -> None:
    drawn = []
    for name, arm in arms.items():
        losses = np.asarray(arm["losses"], dtype=float)
        width = max(1, len(losses) // SMOOTHING_POINTS)
        whole = len(losses) // width * width
        means = losses[:whole].reshape(-1, width).mean(axis=1)
        axes.plot((np.arange(len(means)) + 0.5) * width, means, label=name, **arm["style"])
        axes.set_title("training loss" + (f", mean of {width} steps" if width > 1 else ""))
        drawn.append(means[np.isfinite(means)])
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    values = np.concatenate(drawn)
    if len(values) and 0 < values.min() * LOG_RANGE < values.max():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()


def _metrics(axes: Axes, arms: dict[str, Any], record: dict[str, Any]) -> None:
    drawn = False
    for name, arm in arms.items():
        numbers = [epoch["epoch"] for epoch in arm["epochs"]]
        for part, dash, marker in (("train", ":", "s"), ("test", "-", "o")):
            if not numbers or part not in arm["epochs"][0]:
                continue
            for metric, percent in record["percent"].items():
                values = [(100 if percent else 1) * float(epoch[part][metric]) for epoch in arm["epochs"]]
                marks = (
                    {"marker": marker, "markersize": 2 * arm["style"]["linewidth"] + 0.5} if len(values) < 100 else {}
                )
                axes.plot(numbers, values, dash, label=f"{part}, {name}", **marks, **arm["style"])
                drawn = True
    axes.set_title("at the end of each epoch")
    axes.set_xlabel("epoch")
    axes.set_ylabel(" / ".join(f"{metric} (%)" if percent else metric for metric, percent in record["percent"].items()))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0.5, max(1, *(len(arm["epochs"]) for arm in arms.values())) + 0.5)
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend()
    else:
        axes.text(0.5, 0.5, "no epoch was completed", ha="center", transform=axes.transAxes)


def _step_times(axes: Axes, arms: dict[str, Any], record: dict[str, Any]) -> None:
    times = {name: 1e3 * np.asarray(arm["step_seconds"]) for name, arm in arms.items()}
    everything = np.concatenate(list(times.values()))
    axes.set_title("time of a step")
    axes.set_xlabel("ms")
    axes.set_ylabel("steps")
    if not len(everything):
        return
    # A few steps that another process delayed would squeeze all others into one bin.
    limit = min(np.quantile(everything, 0.99) * 1.02, 4 * max(np.median(values) for values in times.values()))
    axes.set_title(f"time of a step ({100 * np.mean(everything > limit):.1f} % took longer)")
    bins = np.linspace(0, limit, 80)
    for name, values in times.items():
        color = arms[name]["style"]["color"]
        axes.hist(values, bins=bins, color=color, alpha=0.6, label=f"{name}: median {np.median(values):.2f} ms")
        axes.axvline(float(np.median(values)), color=color)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.25)  # room for the legend
    axes.legend()
