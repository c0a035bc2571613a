"""What a person sees of a training: a bar with the time left, the course's lines, and the table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .record import cell

if TYPE_CHECKING:
    from torchsmith.data import Splits

    from .arm import Arm
    from .row import TrainingRow
    from .settings import Settings

__all__ = ["Display", "show_result", "show_table"]

# Lines an epoch are for people: of thousands of tiny epochs, about this many are shown.
SHOWN_EPOCHS = 50


class Display:
    """The progress bar and the lines above it. ``total`` is in trained samples, as are the advances."""

    def __init__(
        self,
        console: Console,
        row: TrainingRow,
        settings: Settings,
        splits: Splits,
        arms: Sequence[Arm],
        total: float,
        done: float = 0,
    ) -> None:
        self.metrics = row.metrics
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
        sizes = splits.sizes()
        tested = f"{sizes['test']} to test" if "test" in sizes else "tested on the same"
        self.line(f"data {splits.name} ({splits.source}): {sizes['train']} to train on, {tested}")
        batch = "all" if settings.batch_size is None else settings.batch_size
        optimizer = f"momentum {settings.momentum:g}, " if settings.optimizer == "SGD" else ""
        more = [f"{name} {value}" for name, value in settings.choices.items() if value is not None]
        arms_text = "ours and native, same weights, same batches" if settings.compare else "ours only"
        if settings.compare_optimizers:
            arms_text = "ours, once with each optimizer"
        else:
            optimizer = f"{settings.optimizer}, {optimizer}"
        self.line(
            f"{settings.epochs} epoch{'s' * (settings.epochs > 1)}, batch {batch}, lr {settings.lr:g}, {optimizer}"
            f"seed {settings.seed}; {'; '.join([*more, arms_text])}"
        )
        self.every = max(1, settings.epochs // SHOWN_EPOCHS)
        self.task = self.progress.add_task(self._where(1), total=total, completed=done)

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
        shown = epoch % self.every == 0 or epoch in (1, self.epochs)
        for arm in arms if shown else ():
            results = arm.epochs[-1]
            scores = [
                f"{part} {name} {metric.show(results[part][name])}"
                for name, metric in self.metrics.items()
                for part in ("train", "test")
                if part in results
            ]
            scores += [f"{name} {cell(value)}" for name, value in results["results"].items()]
            place = f"Epoch {epoch:>{len(str(self.epochs))}} {arm.name:<6}"
            self.line("  ".join([place, f"loss {results['loss']:.6f}", *scores]))
        self.progress.update(self.task, description=self._where(epoch + 1))


def show_result(console: Console, record: dict[str, Any], folder: Path) -> None:
    """The table at the end, and what ran where."""
    where = f" on {record['data']['name']}" if "data" in record else ""
    show_table(console, record["table"], f"{record['row']}{where}: {record['status']}")
    machine = record["environment"]
    facts = [f"threads {machine['threads']}", f"torch {machine['torch']}", f"ISA {machine['isa']}"]
    lines = [", ".join(facts) + f", {record['seconds']:.1f} s in all", f"record and curves in {folder}"]
    if record.get("passage"):
        lines = ["", record["passage"], "", *lines]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_table(console: Console, content: dict[str, list], title: str | None = None) -> None:
    """A table of strings: columns of figures to the right, words to the left."""
    table = Table(title=title, title_justify="left")
    for name in content["columns"]:
        table.add_column(name, justify="left" if name in ("", "side by side") else "right")
    for row in content["rows"]:
        table.add_row(*map(Text, row))  # Text: brackets are no markup
    console.print(table)
