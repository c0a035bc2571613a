"""``torchsmith train NAME``: a command for each row of the course, made from what the row states."""

from __future__ import annotations

import signal
from typing import Any

import click

from torchsmith.cli import HelpfulCommand, HelpfulGroup

from . import all_rows, get_row, row_names
from .row import Row, TrainingRow
from .settings import OPTIMIZERS, Refused, Settings

__all__ = ["LIST", "row_command", "train"]


class RowGroup(HelpfulGroup):
    """The rows as subcommands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return row_names()

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return row_command(get_row(name)) if name in row_names() else None


LIST = ("name", "model", "data", "the course's result", "ours")


def _list_rows(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_lines=True)
    for title in LIST:
        table.add_column(title, no_wrap=title == "name")
    for row in all_rows():
        table.add_row(row.name, row.summary, row.data, row.goal, row.reached)
    Console().print(table)
    ctx.exit()


@click.group(cls=RowGroup)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_rows, help="List the systems there are."
)
def train() -> None:
    """Train a system of the course on torchsmith's ops, beside native PyTorch.

    Both arms start from the same weights and see the same batches, step by step in turn. Progress, losses and
    accuracies are shown; record.json, CSV files, curves.png and checkpoint.pt are left in the output folder, also after
    Ctrl-C. Under torchrun the processes train together.
    """


#: What any row may be given: a row has those that its ``defaults`` name.
COMMON: dict[str, tuple[click.ParamType, str, str]] = {
    "epochs": (click.IntRange(1), "N", "Passes over the training data, at least 1."),
    "batch_size": (click.IntRange(1), "N", "Samples in a step of one process, at least 1."),
    "lr": (click.FloatRange(0, min_open=True), "X", "Learning rate, greater than 0."),
    "momentum": (click.FloatRange(0, 1, max_open=True), "X", "Momentum of SGD and RMSprop, 0 to less than 1."),
    "optimizer": (click.Choice(OPTIMIZERS, case_sensitive=False), "NAME", f"One of {', '.join(OPTIMIZERS)}."),
    "seed": (click.IntRange(0, 2**63 - 1), "N", "Of weights and batches, a whole number from 0."),
}


def _option(row: Row, name: str, kind: click.ParamType, metavar: str | None, text: str) -> click.Option:
    def shown(value: Any) -> str:
        return "all" if name == "batch_size" and value is None else str(value)

    default = shown(row.default(name))
    for data, differing in row.data_defaults.items():
        if name in differing:
            default += f"; {shown(differing[name])} on {data}"
    text = text if row.default(name) is None and name not in COMMON else f"{text} [default: {default}]"
    return click.Option([f"--{name.replace('_', '-')}"], type=kind, metavar=metavar, help=text)


def _training_options(row: TrainingRow) -> list[click.Option]:
    return [
        click.Option(
            ["--threads"], type=click.IntRange(1, 1024), metavar="N", help="CPU threads, 1 to 1024. [default: torch's]"
        ),
        click.Option(
            ["--workers"], type=click.IntRange(0, 64), metavar="N", help="Processes that prepare batches. [default: 0]"
        ),
        click.Option(["--device"], metavar="NAME", help="cpu, cuda or cuda:N. [default: cpu]"),
        click.Option(
            ["--amp"], type=click.Choice(["bf16"]), metavar="bf16", help="bf16: forward passes in mixed precision."
        ),
        click.Option(
            ["--compare/--no-compare"],
            default=None,
            help="Train native PyTorch beside ours. [default: compare]",
        ),
        click.Option(
            ["--compare-optimizers"], is_flag=True, default=None, help="Train ours with each optimizer instead."
        ),
        click.Option(
            ["--resume"],
            metavar="PATH",
            help="Go on from a checkpoint, or the folder of a run, as if it had never stopped. "
            "Its settings hold; --epochs, --threads and --workers may differ.",
        ),
    ]


def row_command(row: Row) -> click.Command:
    """The click command that runs ``row``; its help states the row's defaults."""
    options = []
    if row.source:
        options.append(
            click.Option(
                [row.source, "data"],
                metavar=f"PATH|{row.embedded}",
                # One folder holds the data of all rows; a text is none of them.
                envvar="TORCHSMITH_DATA" if row.source == "--data" else None,
                show_envvar=True,
                help=f"{row.source_help} [default: {row.embedded}]",
            )
        )
    options += [_option(row, name, *COMMON[name]) for name in COMMON if name in row.defaults]
    options += [_option(row, own.name, own.kind, own.metavar, own.help) for own in row.options]
    if isinstance(row, TrainingRow):
        options += _training_options(row)
    files = "record.json and what else it leaves"
    options.append(
        click.Option(
            ["--out", "folder"],
            metavar="DIR",
            type=click.Path(file_okay=False),
            help=f"Folder for {files}. [default: runs/{row.name}-<time>]",
        )
    )

    def run(folder: str | None, resume: str | None = None, **given: Any) -> None:
        source = click.get_current_context().get_parameter_source("data")
        if resume and source is click.core.ParameterSource.ENVIRONMENT:
            given["data"] = None  # the checkpoint says which; only what was typed could contradict it
        run_row(row, folder, given, resume)

    text = f"{row.summary[0].upper()}{row.summary[1:]}.\n\nThe course's result: {row.goal}."
    return HelpfulCommand(row.name, params=options, callback=run, help=text, short_help=row.summary)


def run_row(row: Row, folder: str | None, given: dict[str, Any], resume: str | None = None) -> None:
    """Run and exit as a shell expects: 128 + the signal's number where a signal ended it."""
    more: dict[str, Any] = {}
    try:
        settings = _settings(row, given, resume)
        if isinstance(row, TrainingRow):
            more = {"splits": row.load(settings.data), "resume": resume}
    except (OSError, ValueError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.exceptions.Exit(128 + signal.SIGINT) from None
    try:
        outcome = row.run(settings, folder=folder, **more)
    except (OSError, ImportError, Refused) as error:  # no other ValueError: that is a defect, and wants its traceback
        raise click.ClickException(str(error)) from error
    if outcome.signal is not None:
        raise click.exceptions.Exit(128 + outcome.signal)


def _settings(row: Row, given: dict[str, Any], resume: str | None) -> Settings:
    if resume is None:
        return row.settings(**given)
    from .checkpoint import read_checkpoint, resume_settings

    return resume_settings(row, read_checkpoint(resume), given, resume)
