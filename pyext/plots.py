"""Pictures of what was measured. Needs matplotlib, which comes with ``torchsmith[course]``."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

try:
    # Figure without pyplot: no window system is asked for, no global state is left.
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("curves need matplotlib, which is not installed: pip install 'torchsmith[course]'") from error

__all__ = ["training_curves"]

# Native under ours, wide under narrow: where the two coincide both stay visible. Colours safe for the colour-blind.
STYLE = {"native": {"color": "#e69f00", "linewidth": 3.0}, "ours": {"color": "#0072b2", "linewidth": 1.2}}
SMOOTHING_POINTS = 100  # the loss curve is averaged to about this many points


def training_curves(record: dict[str, Any]) -> bytes:
    """A PNG of a training record (see ``torchsmith.course.record``): loss, metrics by epoch, times of the steps."""
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    loss, metric, times = figure.subplots(1, 3)
    arms = {name: record["arms"][name] for name in STYLE if name in record["arms"]}
    _loss(loss, arms)
    _metrics(metric, arms)
    _step_times(times, arms)
    machine = record["environment"]
    figure.suptitle(
        f"{record['row']} on {record['data']['name']}, {record['status']} "
        f"(threads {machine['threads']}, torch {machine['torch']}, ISA {machine['isa']})"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _loss(axes: Axes, arms: dict[str, Any]) -> None:
    for name, arm in arms.items():
        losses = np.asarray(arm["losses"], dtype=float)
        width = max(1, len(losses) // SMOOTHING_POINTS)
        whole = len(losses) // width * width
        means = losses[:whole].reshape(-1, width).mean(axis=1)
        axes.plot((np.arange(len(means)) + 0.5) * width, means, label=name, **STYLE[name])
        axes.set_title("training loss" + (f", mean of {width} steps" if width > 1 else ""))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()


def _metrics(axes: Axes, arms: dict[str, Any]) -> None:
    names = []
    for name, arm in arms.items():
        numbers = [epoch["epoch"] for epoch in arm["epochs"]]
        for part, dash, marker in (("train", ":", "s"), ("test", "-", "o")):
            for metric in arm["epochs"][0][part] if numbers else ():
                values = [100 * epoch[part][metric] for epoch in arm["epochs"]]
                size = 2 * STYLE[name]["linewidth"] + 0.5
                axes.plot(numbers, values, dash, marker=marker, markersize=size, label=f"{part}, {name}", **STYLE[name])
                names.append(metric)
    axes.set_title("at the end of each epoch")
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{' / '.join(dict.fromkeys(names)) or 'metric'} (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(0.5, max(1, *(len(arm["epochs"]) for arm in arms.values())) + 0.5)
    axes.grid(alpha=0.3)
    if names:
        axes.legend()
    else:
        axes.text(0.5, 0.5, "no epoch was completed", ha="center", transform=axes.transAxes)


def _step_times(axes: Axes, arms: dict[str, Any]) -> None:
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
        color = STYLE[name]["color"]
        axes.hist(values, bins=bins, color=color, alpha=0.6, label=f"{name}: median {np.median(values):.2f} ms")
        axes.axvline(float(np.median(values)), color=color)
    axes.set_ylim(top=axes.get_ylim()[1] * 1.25)  # room for the legend
    axes.legend()
