"""``torchsmith tune``: measures our kernels and native on this machine, and keeps the table that ``auto`` obeys."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from . import tuned, tuning
from .cli import HelpfulCommand
from .spec import FLOATS, all_specs
from .stopping import terminated_like_ctrl_c

__all__ = ["tune"]

OPS = tuple(spec.name for spec in all_specs())
DTYPES = tuple(str(d).removeprefix("torch.") for d in FLOATS)


@click.command(cls=HelpfulCommand)
@click.option("--op", "ops", multiple=True, type=click.Choice(OPS), help="Only this op; repeatable.")
@click.option(
    "--shapes",
    type=click.Choice(("course", "extra", "all")),
    default="course",
    show_default=True,
    help="The course's, or odd ones.",
)
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES), help="Repeatable.  [default: float32]")
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(1),
    metavar="N",
    help="1 or more; repeatable.  [default: 1 and all]",
)
@click.option("--quick", is_flag=True, help="A quarter of the time for each measurement: noisier.")
@click.option("--show", is_flag=True, help="Measure nothing: print the table there is.")
def tune(
    ops: tuple[str, ...], shapes: str, dtypes: tuple[str, ...], threads: tuple[int, ...], quick: bool, show: bool
) -> None:
    """Measure our kernels against native on this machine and let ``auto`` take the faster one.

    The table is kept in the user's cache folder (or TORCHSMITH_CACHE) and holds for this torch, torchsmith, processor and
    instruction set. Let nothing else run meanwhile. Ctrl-C, or SIGTERM, keeps what is measured so far; a kill leaves the
    old table.
    For a model of your own: ``torchsmith.tune(model, *inputs)``.
    """
    if show:
        entries = list(tuned.Table.load().entries.values())
        click.echo(_text(entries) if entries else f"{tuned.table_path()}: no table for this installation")
        return
    counts = threads or tuple(sorted({1, torch.get_num_threads()}))
    jobs = list(_jobs(ops, shapes, [getattr(torch, d) for d in dtypes] or [torch.float32], counts))
    if not jobs:
        raise click.UsageError(f"no {shapes} shape of {', '.join(ops)}: try --shapes all")
    with terminated_like_ctrl_c():
        entries, interrupted = _measure(jobs, quick)
    if entries:
        tuned.keep(entries)
        click.echo(_text(entries))
        click.echo(f"{len(entries)} entries joined {tuned.table_path()}", err=True)
    if interrupted:
        sys.exit(130)


def _jobs(ops, shapes, dtypes, counts) -> Iterator[tuple]:
    from .bench.shapes import EXTRA

    course = [(spec.name, case) for spec in all_specs() for case in spec.bench]
    cases = [*(course if shapes != "extra" else []), *(EXTRA if shapes != "course" else [])]
    specs = {spec.name: spec for spec in all_specs()}
    for name, case in cases:
        if ops and name not in ops:
            continue
        for dtype in dtypes:
            if dtype not in specs[name].dtypes:
                continue
            for count in counts:
                for grad in (False, True):
                    yield specs[name], case, dtype, count, grad


def _measure(jobs: list[tuple], quick: bool) -> tuple[list[tuned.Entry], bool]:
    from .bench import harness

    entries: dict[tuple, tuned.Entry] = {}
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task("tuning", total=len(jobs))
        try:
            for spec, case, dtype, count, grad in jobs:
                progress.update(task, description=f"{spec.name} {case.label} {'training' if grad else 'inference'}")
                with harness.threads(count):
                    for call in _calls(spec, case, dtype, grad):
                        if call.key not in entries:
                            entries |= {entry.key: entry for entry in tuning.measure(call, quick)}
                progress.advance(task)
        except KeyboardInterrupt:
            return list(entries.values()), True
    return list(entries.values()), False


def _calls(spec, case, dtype, grad: bool) -> list[tuning.Call]:
    """The benchmark's call as the op itself sees it."""
    from .bench import pairs

    sample = case.make(dtype, torch.device("cpu"))

    def require(t: torch.Tensor) -> torch.Tensor:
        return t.detach().requires_grad_(grad and t.is_floating_point())

    arguments = [a if i in case.frozen else pairs.map_tensors(a, require) for i, a in enumerate(sample.args)]
    with tuning.record() as calls, torch.set_grad_enabled(grad):
        spec.function(*arguments, **sample.kwargs)
    return calls


def _text(entries: list[tuned.Entry]) -> str:
    """A table of what was measured, where native wins first."""
    rows = []
    for e in sorted((e for e in entries if "ours" in e.us), key=lambda e: e.us["torch"] / e.us["ours"]):
        ours, native = e.us["ours"], e.us["torch"]
        winner = "native" if e.fastest == "torch" else "ours"
        mode = "training" if e.grad else "inference"
        ratio = f"{native / ours:.2f}"
        rows.append((e.op, _words(e.arguments), mode, str(e.threads), f"{native:.4g}", f"{ours:.4g}", ratio, winner))
    head = ("op", "arguments", "mode", "threads", "native us", "ours us", "ratio", "auto takes")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows))


def _words(described) -> str:
    if isinstance(described, tuple) and described and described[0] == "tensor":
        dtype = "" if described[2] == "float32" else f" {described[2]}"
        layout = "" if described[3] == "contiguous" else f" {described[3]}"
        return " ".join(["x".join(map(str, described[1])) + dtype + layout, *described[4:]])
    if isinstance(described, tuple) and described and described[0] == "packed":
        return f"packed {_words(described[1])} B{described[2]} T{described[3]}"
    if isinstance(described, tuple):
        words = [_words(d) for d in described]
        return ", ".join(words) if len(words) <= 6 else ", ".join(words[:5]) + f", … ({len(words)})"
    return "-" if described is None else str(described)
