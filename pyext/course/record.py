"""What is kept of a run: the record (JSON) and its curves (CSV), each written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchsmith.bench.harness import environment

if TYPE_CHECKING:
    from torchsmith.data import Splits

    from .arm import Arm
    from .row import Row, TrainingRow
    from .settings import Settings

__all__ = ["cell", "head", "make_record", "summarise", "write_atomically", "write_csv", "write_curves", "write_json"]

SCHEMA = 2
FIRST_STEPS = 100  # over which the two arms' losses are compared
LAST_STEPS = 100  # over which the final loss is averaged: a single batch's loss says little


def head(row: Row, settings: Settings, *, status: str, started: str, seconds: float) -> dict[str, Any]:
    """What every record begins with: all that was set, and where it ran."""
    return {
        "schema": SCHEMA,
        "row": row.name,
        "model": row.summary,
        "goal": row.goal,
        "status": status,
        "started": started,
        "seconds": seconds,
        "settings": {**asdict(settings), "choices": dict(settings.choices)},
        "environment": {**environment(), "threads": torch.get_num_threads()},
    }


def summarise(arms: Sequence[Arm]) -> dict[str, Any]:
    """Figures of each arm, and of ours and native beside each other where these two ran (``comparison``, else None)."""
    figures = {}
    for arm in arms:
        last = arm.epochs[-1] if arm.epochs else {}
        figures[arm.name] = {
            "steps": len(arm.losses),
            "final_loss": _over(np.mean, _last_steps(arm)),
            "median_step_ms": _over(np.median, [1e3 * seconds for seconds in arm.seconds]),
            **{part: last.get(part, {}) for part in ("train", "test", "results")},
        }
    comparison = None
    if [arm.name for arm in arms] == ["ours", "native"]:
        ours, native = arms
        pairs = [n / o for o, n in zip(ours.seconds, native.seconds, strict=True)]
        gaps = np.subtract(ours.losses[:FIRST_STEPS], native.losses[:FIRST_STEPS])
        comparison = {
            "native_over_ours": _over(np.median, pairs),
            "compared_steps": len(gaps),
            "max_loss_difference": _over(np.max, np.abs(gaps)),  # np.max, unlike max, lets no NaN pass
        }
    return {"arms": figures, "comparison": comparison}


def _last_steps(arm: Arm) -> list[float]:
    """The steps of the last epoch, at most: where an epoch is one step, the loss a hundred epochs ago is of no interest."""
    an_epoch = len(arm.losses) // len(arm.epochs) if arm.epochs else LAST_STEPS
    return arm.losses[-min(LAST_STEPS, max(1, an_epoch)) :]


def _over(function: Any, values: Sequence[float]) -> float | None:
    return float(function(values)) if len(values) else None


def make_record(
    row: TrainingRow,
    settings: Settings,
    splits: Splits,
    arms: Sequence[Arm],
    *,
    status: str,
    started: str,
    seconds: float,
) -> dict[str, Any]:
    """The record of a training: what was set, where it ran, what each arm did in each step, the summary and its table.

    ``status`` is ``running`` (written after epochs), ``finished`` or ``interrupted``. Times are in seconds unless the
    name says ms.
    """
    summary = summarise(arms)
    return {
        **head(row, settings, status=status, started=started, seconds=seconds),
        "data": {"name": splits.name, "source": splits.source, **splits.sizes()},
        "parameters": sum(parameter.numel() for parameter in arms[0].model.parameters()),
        "percent": {name: metric.percent for name, metric in row.metrics.items()},
        "summary": summary,
        "table": _table(row, summary),
        "arms": {arm.name: {"epochs": arm.epochs, "losses": arm.losses, "step_seconds": arm.seconds} for arm in arms},
    }


def _table(row: TrainingRow, summary: dict[str, Any]) -> dict[str, list]:
    """The summary for people: strings, a column for each arm, for the two side by side, and for the course."""
    arms, comparison = summary["arms"], summary["comparison"]
    figures = list(arms.values())
    columns = ["", *arms, *(["side by side"] if comparison else []), *(["course"] if row.course else [])]
    rows: list[list[str]] = []

    def add(label: str, cells: Iterable[str], beside: str = "") -> None:
        course = [cell(row.course.get(label, ""))] if row.course else []
        rows.append([label, *cells, *([beside] if comparison else []), *course])

    add("steps", [str(figure["steps"]) for figure in figures])
    add("final loss", [_number(figure["final_loss"], "{:.6f}") for figure in figures])
    for part in ("train", "test"):
        for name in figures[0][part]:
            values = [figure[part][name] for figure in figures]
            beside = ""
            if row.metrics[name].percent:
                beside = f"{round(100 * (values[0] - values[-1]), 2) + 0.0:+.2f} points"  # + 0.0: never "-0.00"
            add(f"{part} {name}", map(row.metrics[name].show, values), beside)
    for name in figures[0]["results"]:
        add(name, [cell(figure["results"][name]) for figure in figures])
    for name, value in (row.worked() if row.worked else {}).items():
        add(name, [cell(value)] * len(figures))
    ratio = _number(comparison["native_over_ours"], "native / ours {:.2f}x") if comparison else ""
    add("median ms a step", [_number(figure["median_step_ms"], "{:.3f}") for figure in figures], ratio)
    if comparison:
        gap = _number(comparison["max_loss_difference"], "gap at most {:.1e}")
        add(f"loss, first {comparison['compared_steps']} steps", ["", ""], gap)
    if len(arms) > 2:  # too many for columns
        columns, *rows = map(list, zip(columns, *rows, strict=True))
    return {"columns": columns, "rows": rows}


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def cell(value: Any) -> str:
    """A quantity for people: four or five digits, matrices as ``[1 2; 3 4]``."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        nested = bool(value) and isinstance(value[0], (list, tuple))
        return f"[{'; '.join(cell(part)[1:-1] for part in value) if nested else ' '.join(map(cell, value))}]"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def write_curves(folder: Path, record: dict[str, Any]) -> None:
    """curves.csv, a line for each arm and epoch, and steps.csv, a line for each step."""
    arms = record["arms"]
    epochs = [(name, epoch) for name, arm in arms.items() for epoch in arm["epochs"]]
    lines = []
    for name, epoch in epochs:
        line = {"arm": name, "epoch": epoch["epoch"], "loss": epoch["loss"]}
        for part in ("train", "test"):
            line |= {f"{part} {metric}": value for metric, value in epoch.get(part, {}).items()}
        lines.append({**line, **epoch["results"]})
    write_csv(folder / "curves.csv", lines, ("arm", "epoch", "loss"))
    steps = zip(*(zip(arm["losses"], arm["step_seconds"], strict=True) for arm in arms.values()), strict=True)
    names = [f"{name} {what}" for name in arms for what in ("loss", "seconds")]
    lines = [
        {"step": number, **dict(zip(names, (value for pair in step for value in pair), strict=True))}
        for number, step in enumerate(steps, start=1)
    ]
    write_csv(folder / "steps.csv", lines, ("step", *names))


def write_csv(path: Path, lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write ``lines`` atomically; ``columns`` are those there are without lines, and come first."""
    text = io.StringIO()
    names = list(dict.fromkeys([*columns, *(name for line in lines for name in line)]))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomically(path, text.getvalue().encode())


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the strings "nan", "inf", "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write ``record`` as strict JSON, atomically."""
    write_atomically(path, (json.dumps(_finite(record), indent=1, allow_nan=False) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` so that a reader, or a crash, never meets half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
