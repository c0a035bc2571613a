"""The command ``torchsmith``. What a subcommand needs is imported when it runs, so that help comes at once."""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

import click

__all__ = ["HelpfulCommand", "HelpfulGroup", "main"]


class HelpfulCommand(click.Command):
    """A command whose usage errors say what is allowed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            options = [max(p.opts, key=len) for p in self.get_params(ctx) if isinstance(p, click.Option)]
            raise click.UsageError(f"{error.format_message()} Allowed: {', '.join(options)}.", ctx) from None
        except click.BadParameter as error:
            if isinstance(error.param, click.Option) and error.param.help:
                error.message += f" It takes: {error.param.help}"
            raise


class HelpfulGroup(HelpfulCommand, click.Group):
    """A group that, given a command it does not have, names those it has."""

    command_class = HelpfulCommand

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            names = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"{error.format_message()} Allowed: {names}.", ctx) from None


class LazyGroup(HelpfulGroup):
    """A group with commands imported when they run: ``lazy`` maps a name to ("module:object", its line of help)."""

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.lazy])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.lazy:
            return super().get_command(ctx, name)
        module, _, attribute = self.lazy[name][0].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise click.ClickException(f"'{name}' cannot run here: {error}") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        lines = {name: text for name, (_, text) in self.lazy.items()}
        lines |= {name: command.get_short_help_str(limit=200) for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(lines.items()))


def _version(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        click.echo(f"torchsmith {version('torchsmith')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    lazy={
        "train": ("torchsmith.course.command:train", "Train a system of the course, beside native PyTorch."),
        "predict": ("torchsmith.course.predict:predict", "Ask a trained model of the course."),
        "course": ("torchsmith.course.report:course", "Run the whole course; one HTML page of results."),
        "tune": ("torchsmith.tune_cli:tune", "Measure ours and native here; auto takes the faster from then on."),
        "bench": ("torchsmith.bench_cli:bench", "Measure every op against native PyTorch."),
        "doctor": ("torchsmith.doctor:doctor", "Check this installation, and say how to cure what is wrong."),
        "selftest": ("torchsmith.selftest:selftest", "Check every kernel on this machine, in a minute or two."),
        "explain": ("torchsmith.explain_cli:explain", "Show CUDA launches and estimate their times, without a GPU."),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def main() -> None:
    """Hand-written kernels for PyTorch, and the models of a beginner course trained on them."""


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def info(as_json: bool) -> None:
    """Show the build, the machine, and every kernel there is."""
    facts = gather_info()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        _show_info(facts)


def gather_info() -> dict[str, Any]:
    """What ``torchsmith info`` shows: ``build``, ``machine`` and ``registry``, ready for JSON."""
    try:
        import torch  # before the native module, which is linked with torch's libraries

        from torchsmith import _native
        from torchsmith.bench.harness import environment
    except ImportError as error:
        raise click.ClickException(
            f"the native part of torchsmith cannot be loaded ({error}); build it with: pip install ."
        ) from error
    machine = {**environment(), "threads": torch.get_num_threads()}
    machine |= {"isa_found": _native.isa_found(), "isa_available": _native.isa_available()}
    machine["isa_forced"] = os.environ.get("TORCHSMITH_ISA") or None
    return {"build": _native.build_info(), "machine": machine, "registry": _native.registry()}


def _show_info(facts: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()

    def show(title: str, columns: list[str], rows: list[list[Any]]) -> None:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=bool(columns))
        for column in columns or ["", ""]:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row))  # Text: brackets in flags are no markup
        console.print(table)

    show("build", [], [[name, value] for name, value in facts["build"].items()])
    show("machine", [], [[name, value] for name, value in facts["machine"].items()])
    kernels = [[row["op"], row["backend"], row["dtypes"]] for row in facts["registry"]]
    show(f"kernels: {len(kernels)}", ["op", "backend", "dtypes"], kernels)


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
