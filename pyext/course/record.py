"""What is kept of a training: the record (JSON), written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchsmith.bench.harness import environment

if TYPE_CHECKING:
    from torchsmith.data import Splits

    from .row import Row, Settings
    from .trainer import Arm

__all__ = ["make_record", "summarise", "write_atomically", "write_json"]

SCHEMA = 1
FIRST_STEPS = 100  # over which the two arms' losses are compared
LAST_STEPS = 100  # over which the final loss is averaged: a single batch's loss says little


def summarise(arms: Sequence[Arm]) -> dict[str, Any]:
    """Figures of each arm, and of the two beside each other where both ran (``comparison``, else None)."""
    figures = {
        arm.name: {
            "steps": len(arm.losses),
            "final_loss": _over(np.mean, arm.losses[-LAST_STEPS:]),
            "median_step_ms": _over(np.median, [1e3 * seconds for seconds in arm.seconds]),
            "train": arm.epochs[-1]["train"] if arm.epochs else {},
            "test": arm.epochs[-1]["test"] if arm.epochs else {},
        }
        for arm in arms
    }
    comparison = None
    if len(arms) == 2:
        ours, native = arms
        pairs = [n / o for o, n in zip(ours.seconds, native.seconds, strict=True)]
        gaps = np.subtract(ours.losses[:FIRST_STEPS], native.losses[:FIRST_STEPS])
        comparison = {
            "native_over_ours": _over(np.median, pairs),
            "compared_steps": len(gaps),
            "max_loss_difference": _over(np.max, np.abs(gaps)),  # np.max, unlike max, lets no NaN pass
        }
    return {"arms": figures, "comparison": comparison}


def _over(statistic: Any, values: Any) -> float | None:
    return float(statistic(values)) if len(values) else None


def make_record(
    row: Row, settings: Settings, splits: Splits, arms: Sequence[Arm], *, status: str, started: str, seconds: float
) -> dict[str, Any]:
    """The record of a run: all that was set, where it ran, what each arm did in each step, and the summary.

    ``status`` is ``running`` (written after each epoch), ``finished`` or ``interrupted``. Times are in seconds unless
    the name says ms.
    """
    return {
        "schema": SCHEMA,
        "row": row.name,
        "model": row.summary,
        "goal": row.goal,
        "status": status,
        "started": started,
        "seconds": seconds,
        "settings": asdict(settings),
        "data": {
            "name": splits.name,
            "source": splits.source,
            "train": len(splits.train[-1]),
            "test": len(splits.test[-1]),
        },
        "environment": {**environment(), "threads": torch.get_num_threads()},
        "parameters": sum(parameter.numel() for parameter in arms[0].model.parameters()),
        "summary": summarise(arms),
        "arms": {arm.name: {"epochs": arm.epochs, "losses": arm.losses, "step_seconds": arm.seconds} for arm in arms},
    }


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
