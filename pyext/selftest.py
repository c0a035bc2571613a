"""``torchsmith selftest``: the contract's samples on this machine: every kernel, forward and backward, against float64.

The samples, the float64 references and the rule are the tests' own (contract.py, compare.py).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import click
import torch

from . import _native, triton_backend
from .cli import HelpfulCommand
from .contract import Expected, samples_of
from .dispatch import _device_has_kernels
from .spec import FLOATS, OpSpec, Sample, all_specs

__all__ = ["Row", "Work", "plan", "run", "selftest"]

OPS = tuple(spec.name for spec in all_specs())
DTYPES = tuple(str(d).removeprefix("torch.") for d in FLOATS)


@dataclass(frozen=True)
class Work:
    """One op in one dtype on one device, by each of these implementations: instruction sets, or cpp and triton."""

    spec: OpSpec
    dtype: torch.dtype
    device: torch.device
    implementations: tuple[str, ...]


@dataclass
class Row:
    """What became of one op, dtype, device and implementation."""

    op: str
    dtype: str
    device: str
    implementation: str
    samples: int = 0
    wrong: list[str] = field(default_factory=list)  #: "sample: what", for each that is not right


def plan(
    ops: Sequence[str] = (), dtypes: Sequence[str] = (), devices: Sequence[str] = (), isas: Sequence[str] = ()
) -> list[Work]:
    """The work for this machine; an empty choice is all there is.

    Raises:
        ValueError: a device, or an instruction set, that is not here.
    """
    there = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    _known("device", devices, there)
    _known("isa", isas, _native.isa_available())
    work = []
    for device in map(torch.device, devices or there):
        for spec in all_specs():
            if (ops and spec.name not in ops) or not _device_has_kernels(spec.name, device.type):
                continue
            for dtype in spec.dtypes:
                by = _implementations(spec, dtype, device, isas)
                if by and (not dtypes or str(dtype).removeprefix("torch.") in dtypes):
                    work.append(Work(spec, dtype, device, by))
    return work


def _known(what: str, asked: Sequence[str], there: Sequence[str]) -> None:
    for one in asked:
        if one not in there:
            raise ValueError(f"{what}: {one!r} is not on this machine; there are: {', '.join(there)}")


def _implementations(spec: OpSpec, dtype: torch.dtype, device: torch.device, isas: Sequence[str]) -> tuple[str, ...]:
    if device.type == "cpu":
        return tuple(isas or _native.isa_available())
    triton = not triton_backend.computes(spec.kernels, torch.empty(0, dtype=dtype, device=device))
    return ("cpp", "triton") if triton else ("cpp",)


def run(work: Sequence[Work]) -> Iterator[tuple[Row, Sample | None]]:
    """Does the work; yields each row and the sample it has just had, then the row and None when it is complete.

    A sample's references are worked out once for all implementations.
    """
    for one in work:
        names = (str(one.dtype).removeprefix("torch."), str(one.device))
        rows = [Row(one.spec.name, *names, implementation) for implementation in one.implementations]
        with _strict(one.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # native's, about samples that are odd on purpose
            for sample in samples_of(one.spec, one.dtype, one.device):
                expected = Expected(one.spec, sample)
                for row in rows:
                    row.samples += 1
                    row.wrong += [f"{sample.name}: {text}" for text in _judged(expected, row.implementation)]
                    yield row, sample
        for row in rows:
            yield row, None


def _judged(expected: Expected, implementation: str) -> list[str]:
    backend = implementation if implementation in ("cpp", "triton") else "cpp"
    with _isa(implementation if backend != implementation else None):
        try:
            return list(expected.wrong(backend))
        except Exception as error:  # an op that raises is a finding like any other
            return [f"{type(error).__name__}: {error}"]


@contextlib.contextmanager
def _isa(name: str | None) -> Iterator[None]:
    if name is None:
        yield
        return
    _native.force_isa(name)
    try:
        yield
    finally:
        _native.force_isa(None)


@contextlib.contextmanager
def _strict(device: torch.device) -> Iterator[None]:
    """Without TF32, which is another contract."""
    if device.type != "cuda":
        yield
        return
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [s.allow_tf32 for s in settings]
    try:
        for s in settings:
            s.allow_tf32 = False
        yield
    finally:
        for s, value in zip(settings, before, strict=True):
            s.allow_tf32 = value


# ------------------------------------------------------------------------------------------------ the command


@click.command(cls=HelpfulCommand)
@click.option("--op", "ops", multiple=True, type=click.Choice(OPS), help="Only this op; repeatable.")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES), help="Repeatable.  [default: all]")
@click.option("--device", "devices", multiple=True, help="cpu or cuda; repeatable.  [default: all with kernels]")
@click.option("--isa", "isas", multiple=True, help="Instruction set of the CPU; repeatable.  [default: all there are]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def selftest(
    ops: tuple[str, ...], dtypes: tuple[str, ...], devices: tuple[str, ...], isas: tuple[str, ...], as_json: bool
) -> None:
    """Check every kernel on this machine: values and gradients on the contract's samples, against float64.

    A result is right when its error is at most twice native's own, plus a rounding floor. On the CPU every instruction set
    is checked, on a GPU the C++ and the Triton kernels. Exit code 1 if anything is wrong.
    """
    try:
        work = plan(ops, dtypes, devices, isas)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if not work:
        raise click.UsageError("no such kernel: see 'torchsmith info'")
    begun = time.perf_counter()
    rows = _with_progress(work)
    seconds = time.perf_counter() - begun
    wrong = sum(bool(row.wrong) for row in rows)
    if as_json:
        facts = {"seconds": round(seconds, 1), "wrong": wrong, "rows": [asdict(row) for row in rows]}
        click.echo(json.dumps(facts, indent=1))
    else:
        _show(rows, seconds)
    sys.exit(1 if wrong else 0)


def _with_progress(work: Sequence[Work]) -> list[Row]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    total = sum(len(one.implementations) for one in work)
    rows: list[Row] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        task = progress.add_task("selftest", total=total)
        for row, sample in run(work):
            if sample is None:
                rows.append(row)
                progress.advance(task)
            else:
                progress.update(task, description=f"{row.op} {row.dtype} {row.device} {row.implementation}")
    return rows


def _show(rows: Sequence[Row], seconds: float) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    implementations = list(dict.fromkeys((row.device, row.implementation) for row in rows))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("op", "dtype", *(" ".join(pair) for pair in implementations)):
        table.add_column(column)
    cells: dict[tuple[str, str], dict[tuple[str, str], Text]] = {}
    for row in rows:
        text = Text(f"{len(row.wrong)} wrong", "bold red") if row.wrong else Text(f"{row.samples} right", "green")
        cells.setdefault((row.op, row.dtype), {})[row.device, row.implementation] = text
    for head, found in cells.items():
        table.add_row(*head, *(found.get(pair, Text("-")) for pair in implementations))
    (console if console.is_terminal else Console(width=160)).print(table)
    for row in rows:
        for text in row.wrong[:5]:
            where = f"{row.op} {row.dtype} {row.device} {row.implementation}"
            console.print(Text(f"{where}: {text}", "red"), soft_wrap=True)
    console.print(_verdict(rows, seconds))


def _verdict(rows: Sequence[Row], seconds: float) -> Any:
    from rich.text import Text

    wrong, samples = sum(bool(row.wrong) for row in rows), sum(row.samples for row in rows)
    facts = f"{samples} samples, forward and backward, in {seconds:.0f} s"
    if wrong:
        return Text(f"WRONG: {wrong} of {len(rows)} kernels on this machine; {facts}", "bold red")
    return Text(f"all right: {len(rows)} kernels on this machine; {facts}", "bold green")
