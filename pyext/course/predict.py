"""``torchsmith predict NAME WORD...``: what a trained model answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from torchsmith.cli import HelpfulCommand, HelpfulGroup

from . import all_rows
from .row import TrainingRow
from .settings import Settings

__all__ = ["answers", "predict"]


def _rows() -> dict[str, TrainingRow]:
    return {row.name: row for row in all_rows() if isinstance(row, TrainingRow) and row.predict}


class PredictGroup(HelpfulGroup):
    """The rows that can be asked as subcommands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_rows())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        row = _rows().get(name)
        return _command(row) if row else None


@click.group(cls=PredictGroup)
def predict() -> None:
    """Ask a model that ``torchsmith train`` left."""


def answers(
    row: TrainingRow, words: Sequence[str], checkpoint: str | Path | None = None
) -> list[list[tuple[str, float]]]:
    """Each word's likeliest answers with their probabilities, from a checkpoint (default: the newest of ``runs/``).

    Raises FileNotFoundError where there is no checkpoint; ValueError for one of another model or a word that cannot be.
    """
    from torchsmith import nn as layers

    from .checkpoint import check_row, read_checkpoint

    if checkpoint is None:
        checkpoint = _newest(row)
    state = read_checkpoint(checkpoint)
    check_row(state, row, checkpoint)
    model = row.model(layers, Settings(**{**state["settings"], "device": "cpu"}), state["facts"])
    try:
        model.load_state_dict(state["arms"]["ours"]["model"])
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{checkpoint}: expected weights of {type(model).__name__}, got others: {error}") from error
    model.eval()
    return row.predict(model, state["facts"], words)


def _newest(row: TrainingRow) -> Path:
    found = sorted(Path("runs").glob(f"{row.name}-*/checkpoint.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"runs/{row.name}-*/checkpoint.pt: found none; train first (torchsmith train {row.name}), or name one: --checkpoint"
        )
    return found[-1]


def _command(row: TrainingRow) -> click.Command:
    def run(words: tuple[str, ...], checkpoint: str | None) -> None:
        try:
            found = answers(row, words, checkpoint)
        except (OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error
        _show(words, found)

    options: list[Any] = [
        click.Argument(["words"], nargs=-1, required=True, metavar="WORD..."),
        click.Option(
            ["--checkpoint"],
            metavar="PATH",
            help=f"Checkpoint, or the folder of a run. [default: the newest of runs/{row.name}-*]",
        ),
    ]
    return HelpfulCommand(row.name, params=options, callback=run, help=f"Ask: {row.summary}.", short_help=row.summary)


def _show(words: Sequence[str], found: list[list[tuple[str, float]]]) -> None:
    from rich.console import Console

    from .display import show_table

    places = max(map(len, found))
    columns = ["", *(f"{number}." for number in range(1, places + 1))]
    rows = [[word, *(f"{answer} {100 * p:.1f} %" for answer, p in row)] for word, row in zip(words, found, strict=True)]
    show_table(Console(), {"columns": columns, "rows": rows})
