"""``torchsmith train NAME``: a command for each row of the course, made from what the row states."""

from __future__ import annotations

import signal
from typing import Any

import click

from torchsmith.cli import HelpfulCommand, HelpfulGroup

from . import get_row, row_names
from .row import Row

__all__ = ["train"]


class RowGroup(HelpfulGroup):
    """The rows as subcommands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return row_names()

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return row_command(get_row(name)) if name in row_names() else None


def _list_rows(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "model", "data", "the course's result")
    for name in row_names():
        row = get_row(name)
        table.add_row(row.name, row.summary, row.data, row.goal)
    Console().print(table)
    ctx.exit()


@click.group(cls=RowGroup)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_rows, help="List the systems there are."
)
def train() -> None:
    """Train a system of the course on torchsmith's ops, beside native PyTorch.

    Both arms start from the same weights and see the same batches, step by step in turn. Progress, losses and
    accuracies are shown; record.json and curves.png are left in the output folder, also after Ctrl-C.
    """


def row_command(row: Row) -> click.Command:
    """The click command that trains ``row``; its help states the row's defaults."""

    def option(name: str, kind: click.ParamType, text: str, metavar: str = "N") -> click.Option:
        default = str(row.default(name))
        for data, differing in row.data_defaults.items():
            if name in differing:
                default += f"; {differing[name]} on {data}"
        return click.Option(
            [f"--{name.replace('_', '-')}"], type=kind, metavar=metavar, help=f"{text} [default: {default}]"
        )

    options = [
        click.Option(
            ["--data"],
            metavar="DIR|digits",
            envvar="TORCHSMITH_DATA",
            show_envvar=True,
            default="digits",
            show_default=True,
            help=f"Data: {row.data}. The folder holds mnist/ or the IDX files themselves.",
        ),
        option("epochs", click.IntRange(1), "Passes over the training data, at least 1."),
        option("batch_size", click.IntRange(1), "Samples in a step, at least 1."),
        option("lr", click.FloatRange(0, min_open=True), "Learning rate, greater than 0.", "X"),
        option("momentum", click.FloatRange(0, 1, max_open=True), "Momentum of SGD, 0 to less than 1.", "X"),
        option("seed", click.IntRange(0, 2**63 - 1), "Of weights and batches, a whole number from 0."),
        click.Option(
            ["--threads"], type=click.IntRange(1, 1024), metavar="N", help="CPU threads, 1 to 1024. [default: torch's]"
        ),
        click.Option(
            ["--compare/--no-compare"], default=True, show_default=True, help="Train native PyTorch beside ours."
        ),
        click.Option(
            ["--out", "folder"],
            metavar="DIR",
            type=click.Path(file_okay=False),
            help=f"Folder for record.json and curves.png. [default: runs/{row.name}-<time>]",
        ),
    ]

    def run(folder: str | None, **given: Any) -> None:
        run_row(row, folder, given)

    text = f"Train: {row.summary}.\n\nThe course's result: {row.goal}."
    return HelpfulCommand(row.name, params=options, callback=run, help=text, short_help=row.summary)


def run_row(row: Row, folder: str | None, given: dict[str, Any]) -> None:
    """Train and exit as a shell expects: 128 + the signal's number where a signal ended it."""
    from .trainer import train as run_training

    try:
        settings = row.settings(**given)
        splits = row.load(settings.data)
    except (OSError, ValueError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.exceptions.Exit(128 + signal.SIGINT) from None
    try:
        outcome = run_training(row, settings, splits=splits, folder=folder)
    except (OSError, ImportError) as error:  # not ValueError: in a step it is a defect, and wants its traceback
        raise click.ClickException(str(error)) from error
    if outcome.signal is not None:
        raise click.exceptions.Exit(128 + outcome.signal)
