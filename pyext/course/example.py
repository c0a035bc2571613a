"""Runs a worked example on both arms, and leaves the same kinds of files as a training does."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console

from .display import show_result
from .outcome import Outcome
from .record import cell, head, write_atomically, write_csv, write_json
from .row import ExampleRow
from .settings import Settings

__all__ = ["work_out"]


def work_out(
    row: ExampleRow, settings: Settings, *, folder: str | Path | None = None, console: Console | None = None
) -> Outcome:
    """Work ``row`` out; leaves record.json and, where it has curves, curves.csv and curves.png in ``folder``.

    Raises ImportError where matplotlib is missing.
    """
    import torch.nn.functional as native

    import torchsmith as ours
    from torchsmith.plots import example_curves

    started, begin = datetime.now(), time.perf_counter()
    console = console or Console()
    folder = Path(folder or Path("runs") / f"{row.name}-{started:%Y%m%d-%H%M%S}")
    folder.mkdir(parents=True, exist_ok=True)
    found, seconds = {}, {}
    for name, functions in (("ours", ours), ("native", native)):
        for _ in range(2):  # the first loads code and chooses kernels: the second is timed
            torch.manual_seed(settings.seed)
            start = time.perf_counter()
            found[name] = row.work(functions, settings)
            seconds[name] = time.perf_counter() - start
    rows = [
        [name, *(cell(worked.quantities[name]) for worked in found.values()), cell(row.course.get(name, ""))]
        for name in found["ours"].quantities
    ]
    record = {
        **head(
            row,
            settings,
            status="finished",
            started=started.isoformat(timespec="seconds"),
            seconds=time.perf_counter() - begin,
        ),
        "table": {"columns": ["", *found, "course"], "rows": rows},
        "arms": {
            name: {"quantities": dict(worked.quantities), "seconds": seconds[name]} for name, worked in found.items()
        },
        "course": dict(row.course),
    }
    console.print(f"{row.name}: {row.summary}", markup=False, highlight=False, soft_wrap=True)
    write_json(folder / "record.json", record)
    worked = found["ours"]
    if worked.curves:
        across = worked.axes[0]
        lines = [
            {
                across: x,
                **{f"{name} {arm}": one.curves[name][i] for name in worked.curves for arm, one in found.items()},
            }
            for i, x in enumerate(worked.x)
        ]
        write_csv(folder / "curves.csv", lines, (across,))
        write_atomically(folder / "curves.png", example_curves(row.name, found))
    show_result(console, record, folder)
    return Outcome(record, folder)
