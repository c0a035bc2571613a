"""``torchsmith explain``: the launches a GPU would get and roofline estimates of their times. No GPU is needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click
from rich import box
from rich.console import Console
from rich.table import Table

from . import roofline
from .cli import HelpfulCommand
from .spec import FLOATS, all_specs

__all__ = ["explain"]

OPS = tuple(spec.name for spec in all_specs())
DTYPES = tuple(str(d).removeprefix("torch.") for d in FLOATS)
PLAIN_WIDTH = 160  #: where the output is no terminal


@click.command(cls=HelpfulCommand)
@click.option(
    "--device",
    type=click.Choice(tuple(roofline.DEVICES)),
    default="h200",
    show_default=True,
    help="The GPU to work it out for.",
)
@click.option("--op", "ops", multiple=True, type=click.Choice(OPS), help="Only this op; repeatable.")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES), help="Repeatable.  [default: all]")
@click.option("--tf32", is_flag=True, help="As if torch allowed TF32 for products of float32.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def explain(device: str, ops: tuple[str, ...], dtypes: tuple[str, ...], tf32: bool, as_json: bool) -> None:
    """Show how the CUDA kernels would be launched on a GPU, and ESTIMATE their times.

    For each shape of the benchmarks: kernel, tile, blocks, shared memory, occupancy, bytes and floating-point operations,
    and the time that the device's peaks allow at best. Nothing is measured, and no GPU is used.
    """
    console = Console(stderr=True)
    with console.status("tracing") as status:
        lines = list(roofline.explain(roofline.DEVICES[device], ops, dtypes, tf32, lambda text: status.update(text)))
    if as_json:
        click.echo(json.dumps(roofline.as_json(device, lines, ops), indent=1, allow_nan=False))
    else:
        _show(device, lines, ops)


def _show(name: str, lines: Sequence[roofline.Line], ops: Sequence[str]) -> None:
    device = roofline.DEVICES[name]
    console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
    peaks = ", ".join(f"{kind} {peak:g}" for kind, peak in device.peak.items())
    console.print(
        f"{device.title}: {device.multiprocessors} multiprocessors, {device.clock:g} GHz, {device.bandwidth:g} GB/s, "
        f"{peaks} TFLOP/s\nfrom: {device.source}\n{roofline.NOTE}",
        markup=False,
        highlight=False,
    )
    for op in dict.fromkeys(line.op for line in lines):
        console.print(_table(op, [line for line in lines if line.op == op]))
    if any(line.registers is None for line in lines):
        console.print("regs -: not on record; the occupancy is then by threads and shared memory alone.")
    for op, kernels in roofline.unplanned().items():
        if not ops or op in ops:
            console.print(f"{op}: no plan exposed yet ({', '.join(kernels)})", markup=False, highlight=False)


def _table(op: str, lines: Sequence[roofline.Line]) -> Table:
    table = Table(
        title=f"{op}: estimates, not measured", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column in ("shape", "dtype", "pass", "kernel"):
        table.add_column(column, no_wrap=column in ("dtype", "pass"))
    for column in ("blocks x threads", "shared", "regs", "occupancy", "waves", "MFLOP", "KB", "est. us"):
        table.add_column(column, justify="right")
    table.add_column("bound by")
    last = ("", "")
    for line in lines:
        head = (line.shape, line.dtype)
        shown = head if head != last else ("", "")
        last = head
        table.add_row(
            *shown,
            f"{line.mode} {line.product}",
            _kernel(line),
            f"{line.ctas} x {line.threads}",
            str(line.shared),
            "-" if line.registers is None else str(line.registers),
            f"{line.occupancy:.0%}",
            f"{line.waves:.2f}",
            f"{line.flops / 1e6:,.2f}",
            f"{line.bytes / 1e3:,.1f}",
            f"{line.estimate_us:.3g}",
            line.bound,
        )
    return table


def _kernel(line: roofline.Line) -> str:
    words = [line.kernel.partition("<")[0].removesuffix("_kernel"), line.tile, line.arithmetic if line.flops else None]
    return " ".join(w for w in words if w)
