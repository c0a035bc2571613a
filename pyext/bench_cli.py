"""``torchsmith bench``: runs the benchmark suites, and writes their record, tables and report.

A pass is one run of the suites. What native reads only when it starts (instruction set, MKL's choice) needs a pass in a
process of its own; its measurements join the record.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from .cli import HelpfulCommand
from .spec import FLOATS, all_specs
from .stopping import terminated_like_ctrl_c

__all__ = ["bench"]

BASELINES = ("eager", "compile", "mkl-avx512")
ISAS = ("best", "avx2", "base")
MODES = ("forward", "forward+backward", "training step", "inference")
DTYPES = tuple(str(d).removeprefix("torch.") for d in FLOATS)
DEFAULT_OUT = Path("runs", "bench")


class _Watch:
    """A pytest plugin that moves the progress bar, and keeps what failed."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.task = progress.add_task("collecting", total=None) if progress else None
        self.failed: list[tuple[str, str]] = []
        self.skipped: list[dict[str, str]] = []  #: whole passes; the suites name single measurements themselves
        self.refused: list[str] = []
        self.done = 0

    def add(self, other: _Watch) -> None:
        self.failed += other.failed
        self.refused += other.refused
        self.done += other.done

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append((_short(report.nodeid), str(report.longrepr).strip().splitlines()[-1]))

    def pytest_collection_finish(self, session: Any) -> None:
        self.progress.update(self.task, total=len(session.items), description="measuring")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.progress.update(self.task, description=_short(nodeid))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash is not None else str(report.longrepr).strip()
            self.failed.append((_short(report.nodeid), why.splitlines()[0]))
        if report.skipped:
            self.refused.append(f"{_short(report.nodeid)}: {report.longrepr[2]}")
        if report.when == "teardown":
            self.done += 1
            self.progress.advance(self.task)


def _short(nodeid: str) -> str:
    return nodeid.partition("[")[2].rstrip("]") or nodeid


def _names() -> list[str]:
    """What --op takes: the described ops, the course's models, and those of others."""
    from . import models
    from .bench import real_models

    return [spec.name for spec in all_specs()] + list(models.__all__) + list(real_models.__all__)


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
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=click.Choice(BASELINES),
    help="What to compare with: native as it is, torch.compile of it, native with MKL allowed AVX-512; repeatable.  "
    "[default: eager]",
)
@click.option(
    "--isa", "isas", multiple=True, type=click.Choice(ISAS), help="Of both sides; repeatable.  [default: best]"
)
@click.option(
    "--shapes",
    type=click.Choice(("course", "extra", "all")),
    default="course",
    show_default=True,
    help="The course's, or odd ones nobody tuned for.",
)
@click.option("--quick", is_flag=True, help="A tenth of the time for each measurement: noisier.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_OUT,
    show_default=True,
    help="Folder for bench.json, bench.md, and pytest's own record and log.",
)
@click.option(
    "--report",
    "report_folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="In place of --out: also memory, error, determinism, this machine's ceilings, all threads, and bench.html.",
)
@click.option("--against", type=click.Path(path_type=Path), metavar="OLD", help="A bench.json: name what moved since.")
@click.option(
    "--from", "saved", type=click.Path(path_type=Path), metavar="NEW", help="Measure nothing: use this bench.json."
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON instead of the tables.")
@click.option("--inside", is_flag=True, hidden=True, help="This process is a pass of another.")
@click.option("--details", is_flag=True, hidden=True, help="What --report measures beside time.")
def bench(
    ops: tuple[str, ...],
    modes: tuple[str, ...],
    dtypes: tuple[str, ...],
    threads: tuple[int, ...],
    baselines: tuple[str, ...],
    isas: tuple[str, ...],
    shapes: str,
    quick: bool,
    out: Path,
    report_folder: Path | None,
    against: Path | None,
    saved: Path | None,
    as_json: bool,
    inside: bool,
    details: bool,
) -> None:
    """Measure every op and model against native PyTorch.

    Both sides run in one process, by turns, on the same inputs; each result is compared before it is timed. Let nothing
    else run meanwhile. Ctrl-C, or SIGTERM, keeps what is measured so far.

    \b
    Examples:
      torchsmith bench --quick
      torchsmith bench --op conv2d --threads 1 --threads 2
      torchsmith bench --op MnistCNN --mode "training step" --baseline eager --baseline compile
      torchsmith bench --report runs/report --isa best --isa avx2
      torchsmith bench --against runs/old/bench.json
      torchsmith bench --from runs/new/bench.json --against runs/old/bench.json
    """
    from .bench import report

    old = _load(against, "--against") if against is not None else None
    watch, interrupted = None, False
    if report_folder is not None:
        _require_matplotlib()
        out = report_folder
        threads = threads or tuple(sorted({1, torch.get_num_threads()}))
    if saved is not None:
        data = _load(saved, "--from")
    else:
        _require_pytest()
        _out_folder(out)
        given = {"--op": ops, "--mode": modes, "--dtype": dtypes, "--threads": threads, "--shapes": (shapes,)}
        options = [f"{option}={value}" for option, values in given.items() for value in values]
        options += ["--quick"] * quick + ["--details"] * (details or report_folder is not None)
        with terminated_like_ctrl_c():
            raw, watch, interrupted = _measure(options, baselines, () if inside else isas, out, inside)
        if raw is None:
            _fail(watch, out, "nothing was measured")
        data = report.record(raw)
        data["interrupted"] = interrupted
    if old is not None:
        from .bench.against import compare

        data["against"] = f"Against {against.name} of {old['when'][:16]}.\n\n{compare(data, old).text()}"
    if saved is None or report_folder is not None:
        _out_folder(out)
        paths = report.save(out, data, with_page=report_folder is not None)
        click.echo(f"{len(data['rows'])} measurements in {', '.join(map(str, paths))}", err=True)
    if as_json:
        click.echo(json.dumps(data, indent=1))
    elif saved is not None and old is not None:
        click.echo(data["against"])
    elif not inside:
        click.echo(report.markdown(data))
    if interrupted:
        click.echo(f"stopped early: {watch.done} measurements were finished", err=True)
        sys.exit(130)
    if watch is not None and watch.failed:
        _fail(watch, out, f"{len(watch.failed)} could not be measured")


@dataclass(frozen=True)
class _Pass:
    baselines: tuple[str, ...]
    isa: str = "best"
    mkl: bool = False

    @property
    def name(self) -> str:
        return "-".join(([self.isa] if self.isa != "best" else []) + (["mkl-avx512"] if self.mkl else []))


def _passes(baselines: tuple[str, ...], isas: tuple[str, ...]) -> list[_Pass]:
    """What one process can measure belongs together; MKL is allowed AVX-512 under the best instruction set alone."""
    wanted = tuple(dict.fromkeys(baselines)) or ("eager",)
    here = tuple(b for b in wanted if b != "mkl-avx512")
    passes = [_Pass(here, isa) for isa in dict.fromkeys(isas or ("best",)) if here]
    if "mkl-avx512" in wanted:
        if isas and "best" not in isas:
            raise click.UsageError("--baseline mkl-avx512 is for --isa best: it is about AVX-512")
        passes.append(_Pass(("mkl-avx512",), mkl=True))
    return passes


def _measure(
    options: list[str], baselines: tuple[str, ...], isas: tuple[str, ...], out: Path, inside: bool
) -> tuple[dict[str, Any] | None, _Watch, bool]:
    """Runs every pass; returns pytest-benchmark's record of all, what was watched, and whether it was interrupted."""
    from .bench import report

    if inside:
        return _run([*options, *(f"--baseline={b}" for b in baselines)], out)
    watch, parts, interrupted = _Watch(None), [], False
    for one in _passes(baselines, isas):
        pass_options = [*options, *(f"--baseline={b}" for b in one.baselines)]
        if one.name:
            raw, interrupted = _run_apart(one, pass_options, out / one.name, watch)
        else:
            raw, seen, interrupted = _run(pass_options, out)
            watch.add(seen)
        parts += [raw] if raw is not None else []
        if interrupted:
            break
    merged = report.merge(parts)
    if merged is not None:
        merged["skipped"] = [*merged.get("skipped", []), *watch.skipped]
        report.write_atomic(out / "pytest-benchmark.json", json.dumps(merged, indent=1) + "\n")
    return merged, watch, interrupted


def _run_apart(one: _Pass, options: list[str], out: Path, watch: _Watch) -> tuple[dict[str, Any] | None, bool]:
    """A pass in a process of its own, with the variables it needs; a pass that cannot be had is named and left out."""
    from .bench.baselines import Unavailable, isa_environment, mkl_environment

    with tempfile.TemporaryDirectory() as folder:
        try:
            environment = mkl_environment(Path(folder)) if one.mkl else isa_environment(one.isa)
        except Unavailable as reason:
            click.echo(f"left out: {reason}", err=True)
            watch.skipped.append({"what": one.name, "why": str(reason)})
            return None, False
        click.echo(f"{one.name}, in a process of its own:", err=True)
        line = [sys.executable, "-m", "torchsmith", "bench", "--inside", "--out", str(out), *options]
        raw = out / "pytest-benchmark.json"
        raw.unlink(missing_ok=True)
        # In a session of its own: Ctrl-C reaches it once, from here, and it saves what it has.
        process = subprocess.Popen(
            line, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code = process.wait()
        except BaseException as stop:
            process.send_signal(signal.SIGINT)
            code = process.wait()
            if not isinstance(stop, KeyboardInterrupt):
                raise
    interrupted = code == 130
    found = json.loads(raw.read_text(encoding="utf-8")) if raw.is_file() and raw.stat().st_size else None
    watch.done += len(found["benchmarks"]) if found else 0
    if code not in (0, 130):
        watch.failed.append((one.name, f"its process ended with {code}; its log is {out / 'pytest.log'}"))
    return found, interrupted


def _load(path: Path, option: str) -> dict[str, Any]:
    from .bench import report

    try:
        return report.load(path)
    except OSError as error:
        raise click.ClickException(f"{option} {path}: {error.strerror}") from None
    except ValueError as error:
        raise click.ClickException(f"{option} {error}") from None


def _out_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"--out {out}: {error.strerror}") from None


def _require_pytest() -> None:
    missing = [name for name in ("pytest", "pytest_benchmark") if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException("the benchmarks need pytest and pytest-benchmark: pip install 'torchsmith[bench]'")


def _require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException("--report needs matplotlib: pip install 'torchsmith[bench]'")


def _fail(watch: _Watch, out: Path, what: str) -> None:
    reasons = [*(f"{name}: {why}" for name, why in watch.failed), *(s["why"] for s in watch.skipped), *watch.refused]
    lines = "".join(f"\n  {reason}" for reason in reasons[:10])
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
