"""What a person sees of a training: a bar with the time left, the course's lines, and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from torchsmith.data import Splits

    from .row import Row, Settings
    from .trainer import Arm

__all__ = ["Display", "show_result"]


class Display:
    """The progress bar and the lines above it. ``total`` is in trained samples, as are the advances."""

    def __init__(
        self, console: Console, row: Row, settings: Settings, splits: Splits, arms: Sequence[Arm], total: float
    ) -> None:
        self.arm_names = [arm.name for arm in arms]
        self.epochs = settings.epochs
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            # Each refresh takes a core from the training for a moment.
            refresh_per_second=4,
        )
        self.console = console
        self.line(f"{row.name}: {row.summary}")
        self.line(
            f"data {splits.name} ({splits.source}): {len(splits.train[-1])} to train on, {len(splits.test[-1])} to test"
        )
        arms_text = "ours and native, same weights, same batches" if len(arms) > 1 else "ours only"
        self.line(
            f"{settings.epochs} epoch{'s' * (settings.epochs > 1)}, batch {settings.batch_size}, lr {settings.lr:g}, "
            f"momentum {settings.momentum:g}, seed {settings.seed}; {arms_text}"
        )
        self.task = self.progress.add_task(self._where(1), total=total)

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.progress.stop()

    def _where(self, epoch: int) -> str:
        return f"epoch {min(epoch, self.epochs)}/{self.epochs}"

    def line(self, text: str) -> None:
        """Print a line above the bar, as it is: square brackets are not markup, long lines are not broken."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, samples: float) -> None:
        self.progress.advance(self.task, samples)

    def losses(self, epoch: int, seen: int, samples: int, means: Sequence[float]) -> None:
        """The course's loss line, with each arm's mean since the line before."""
        place = f"Train Epoch: {epoch} [{seen}/{samples} ({100 * seen / samples:.0f}%)]"
        values = "  ".join(f"{mean:.6f} {name}" for name, mean in zip(self.arm_names, means, strict=True))
        self.line(f"{place:<40} Loss: {values}")

    def epoch(self, epoch: int, arms: Sequence[Arm]) -> None:
        """A line for each arm at the end of an epoch: its mean loss, and each metric over the whole of both splits."""
        for arm in arms:
            results = arm.epochs[-1]
            scores = [
                f"{part} {metric} {100 * results[part][metric]:.2f} %"
                for metric in results["train"]
                for part in ("train", "test")
            ]
            place = f"Epoch {epoch:>{len(str(self.epochs))}} {arm.name:<6}"
            self.line("  ".join([place, f"loss {results['loss']:.6f}", *scores]))
        self.progress.update(self.task, description=self._where(epoch + 1))


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def show_result(console: Console, record: dict[str, Any], folder: Path) -> None:
    """The table at the end: the arms side by side, and what ran where."""
    summary, machine = record["summary"], record["environment"]
    arms, comparison = summary["arms"], summary["comparison"]
    names = list(arms)
    table = Table(title=f"{record['row']} on {record['data']['name']}: {record['status']}", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    if comparison:
        table.add_column("side by side")

    def add(label: str, cells: Sequence[str], beside: str = "") -> None:
        table.add_row(label, *cells, *([beside] if comparison else []))

    figures = [arms[name] for name in names]
    add("steps", [str(figure["steps"]) for figure in figures])
    add("final loss", [_number(figure["final_loss"], "{:.6f}") for figure in figures])
    for part in ("train", "test"):
        for metric in figures[0][part]:
            values = [figure[part][metric] for figure in figures]
            beside = f"{round(100 * (values[0] - values[-1]), 2) + 0.0:+.2f} points"  # + 0.0: never "-0.00"
            add(f"{part} {metric}", [f"{100 * value:.2f} %" for value in values], beside)
    ratio = _number(comparison["native_over_ours"], "native / ours {:.2f}x") if comparison else ""
    add("median ms a step", [_number(figure["median_step_ms"], "{:.3f}") for figure in figures], ratio)
    if comparison:
        gap = _number(comparison["max_loss_difference"], "gap at most {:.1e}")
        add(f"loss, first {comparison['compared_steps']} steps", ["", ""], gap)
    console.print(table)
    facts = [f"threads {machine['threads']}", f"torch {machine['torch']}", f"ISA {machine['isa']}"]
    for line in (", ".join(facts) + f", {record['seconds']:.1f} s in all", f"record and curves in {folder}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
