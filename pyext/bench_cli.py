"""``torchsmith bench``: runs the benchmark suites and writes their record and tables."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from .cli import HelpfulCommand
from .spec import FLOATS, all_specs

__all__ = ["bench"]

MODES = ("forward", "forward+backward", "training step", "inference")
DTYPES = tuple(str(d).removeprefix("torch.") for d in FLOATS)
DEFAULT_OUT = Path("runs", "bench")


class _Watch:
    """A pytest plugin that moves the progress bar, and keeps what failed."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("collecting", total=None)
        self.failed: list[tuple[str, str]] = []
        self.done = 0

    def pytest_collection_finish(self, session: Any) -> None:
        self.progress.update(self.task, total=len(session.items), description="measuring")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.progress.update(self.task, description=_short(nodeid))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash is not None else str(report.longrepr).strip()
            self.failed.append((_short(report.nodeid), why.splitlines()[0]))
        if report.when == "teardown":
            self.done += 1
            self.progress.advance(self.task)


def _short(nodeid: str) -> str:
    return nodeid.partition("[")[2].rstrip("]") or nodeid


def _names() -> list[str]:
    """What --op takes: the described ops, and the models."""
    from . import models

    return [spec.name for spec in all_specs()] + list(models.__all__)


def _check_ops(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    allowed = _names()
    for name in value:
        if name not in allowed:
            raise click.BadParameter(f"{name!r} is no op or model. Choose from: {', '.join(allowed)}.", ctx, param)
    return value


@click.command(cls=HelpfulCommand)
@click.option("--op", "ops", multiple=True, callback=_check_ops, metavar="NAME", help="Only this; repeatable.")
@click.option("--mode", "modes", multiple=True, type=click.Choice(MODES), help="Only this mode; repeatable.")
@click.option("--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES), help="Repeatable.  [default: float32]")
@click.option(
    "--threads",
    multiple=True,
    type=click.IntRange(1),
    metavar="N",
    help="Threads for both sides, 1 or more; repeatable.  [default: 1]",
)
@click.option("--quick", is_flag=True, help="A tenth of the time for each measurement: noisier.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_OUT,
    show_default=True,
    help="Folder for bench.json, bench.md, and pytest's own record and log.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON instead of the tables.")
def bench(
    ops: tuple[str, ...],
    modes: tuple[str, ...],
    dtypes: tuple[str, ...],
    threads: tuple[int, ...],
    quick: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Measure every op and model against native PyTorch.

    Both sides run in one process, by turns, on the same inputs; each result is compared before it is timed. Let nothing
    else run meanwhile. Ctrl-C keeps what is measured so far.

    \b
    Examples:
      torchsmith bench --quick
      torchsmith bench --op conv2d --threads 1 --threads 2
      torchsmith bench --op MnistCNN --mode "training step"
    """
    _require_pytest()
    from .bench import report

    _out_folder(out)
    given = {"--op": ops, "--mode": modes, "--dtype": dtypes, "--threads": threads}
    args = [f"{option}={value}" for option, values in given.items() for value in values]
    raw, watch, interrupted = _run(args + ["--quick"] * quick, out)
    if raw is None:
        _fail(watch, out, "nothing was measured")
    data = report.record(raw)
    data["interrupted"] = interrupted
    paths = report.save(out, data)
    click.echo(json.dumps(data, indent=1) if as_json else report.markdown(data))
    click.echo(f"{len(data['rows'])} measurements in {' and '.join(map(str, paths))}", err=True)
    if interrupted:
        click.echo(f"stopped early: {watch.done} measurements were finished", err=True)
        sys.exit(130)
    if watch.failed:
        _fail(watch, out, f"{len(watch.failed)} could not be measured")


def _out_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"--out {out}: {error.strerror}") from None


def _require_pytest() -> None:
    missing = [name for name in ("pytest", "pytest_benchmark") if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException("the benchmarks need pytest and pytest-benchmark: pip install 'torchsmith[bench]'")


def _fail(watch: _Watch, out: Path, what: str) -> None:
    lines = "".join(f"\n  {name}: {why}" for name, why in watch.failed[:10])
    raise click.ClickException(f"{what}; the log is {out / 'pytest.log'}{lines}")


def _run(options: list[str], out: Path) -> tuple[dict[str, Any] | None, _Watch, bool]:
    """Runs the suites with pytest in this process; returns pytest-benchmark's record, the plugin, and if interrupted.

    The suites lie in the installed package, so neither the caller's pytest settings nor its folder take part.
    """
    import pytest

    folder = str(Path(__file__).parent / "bench")
    spec = importlib.util.find_spec("torchsmith.bench")
    if spec is not None and spec.origin:  # an editable install keeps the suites beside the package, not in it
        folder = str(Path(spec.origin).parent)
    raw = out / "pytest-benchmark.json"
    raw.unlink(missing_ok=True)
    args = [folder, "-c", os.devnull, "--rootdir", folder, "-p", "no:cacheprovider", "-q", f"--benchmark-json={raw}"]
    console = Console(file=sys.stderr)  # the real one, taken before it is redirected
    text = TextColumn("{task.description}")
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    before = torch.get_num_threads()
    try:
        with (
            tempfile.TemporaryDirectory() as storage,  # where pytest-benchmark would otherwise put .benchmarks/
            open(out / "pytest.log", "w", encoding="utf-8") as log,
            Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            watch = _Watch(progress)
            code = pytest.main([*args, f"--benchmark-storage=file://{storage}", *options], plugins=[watch])
    finally:
        torch.set_num_threads(before)
    saved = raw.read_text(encoding="utf-8") if raw.is_file() else ""
    return (json.loads(saved) if saved else None), watch, code == pytest.ExitCode.INTERRUPTED
