"""``torchsmith course --report DIR``: runs every row and writes one HTML page."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from torchsmith.cli import HelpfulCommand

from . import all_rows, get_row
from .record import write_atomically
from .row import Row, TrainingRow
from .settings import Settings

__all__ = ["course", "render", "run_course"]

PAGE = "index.html"


@dataclass(frozen=True)
class Planned:
    """One run of the report."""

    row: Row
    label: str  #: name of the row and, after a dot, of its variant
    goal: str  #: what the course reaches; of a variant: what it is
    settings: Settings


def plan(*, quick: bool, data: str | None, names: tuple[str, ...] = ()) -> list[Planned]:
    """Every row and its variants; ``quick``: on embedded data, with the rows' quick settings and without long variants.

    ``data`` is given to the rows that read ``--data``. Raises ValueError for a name no row has.
    """
    found = []
    for row in map(get_row, names) if names else all_rows():
        base: dict[str, Any] = dict(row.quick) if quick else {}
        if data and not quick and row.source == "--data":
            base["data"] = data
        if isinstance(row, TrainingRow):
            base["threads"] = 1 if quick else None
        for variant, changes in {"": {}, **row.variants}.items():
            label = f"{row.name}.{variant}" if variant else row.name
            goal = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in changes.items()) or row.goal
            found.append(Planned(row, label, goal, row.settings(**{**base, **changes})))
    return found


def run_course(folder: Path, planned: list[Planned], console: Any) -> Iterator[dict[str, Any]]:
    """Run what is planned, each in a folder of its own; yields what the page shows of it. A failure is shown, too."""
    from rich.console import Console

    for number, one in enumerate(planned, start=1):
        console.print(f"[{number}/{len(planned)}] {one.label}", markup=False, highlight=False)
        start, place = time.perf_counter(), folder / one.label
        try:
            outcome = one.row.run(one.settings, folder=place, console=Console(quiet=True))
        except (OSError, ValueError, ImportError) as error:
            yield {"planned": one, "error": str(error), "seconds": time.perf_counter() - start}
            continue
        yield {"planned": one, "record": outcome.record, "folder": place, "seconds": time.perf_counter() - start}
        if outcome.signal is not None:
            return


def _times(record: Mapping[str, Any]) -> dict[str, str]:
    """Time of each arm: of all its steps, or of working the example out."""
    times = {}
    for name, arm in record["arms"].items():
        seconds = sum(arm["step_seconds"]) if "step_seconds" in arm else arm["seconds"]
        times[name] = f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.2f} ms"
    return times


def _headline(row: Row, record: Mapping[str, Any]) -> list[str]:
    """The line of the table that tells most: the last of the course's figures, else the last metric."""
    lines = record["table"]["rows"]
    if record["settings"].get("compare_optimizers"):  # there the lines are arms
        return []
    return next(
        (line for name in reversed(row.course) for line in lines if line[0] == name),
        next((line for line in reversed(lines) if line[0].startswith(("train ", "test "))), []),
    )


def render(results: list[dict[str, Any]], title: str) -> str:
    """The page: a summary of all runs, then each with its table and its curves. It needs no other file."""
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError as error:
        raise ImportError(
            "the report needs jinja2, which is not installed: pip install 'torchsmith[course]'"
        ) from error

    shown = []
    for result in results:
        picture = result["folder"] / "curves.png" if "folder" in result else None
        encoded = base64.b64encode(picture.read_bytes()).decode() if picture and picture.exists() else None
        more = {"picture": encoded, "times": {}, "headline": []}
        if "record" in result:
            more |= {"times": _times(result["record"]), "headline": _headline(result["planned"].row, result["record"])}
        shown.append({**result, **more})
    environment = Environment(loader=PackageLoader("torchsmith.course", ""), autoescape=True)
    machine = next((result["record"]["environment"] for result in results if "record" in result), {})
    return environment.get_template("report.html").render(results=shown, title=title, machine=machine)


@click.command(cls=HelpfulCommand)
@click.option(
    "--report", "folder", required=True, metavar="DIR", type=click.Path(file_okay=False), help="Where to write."
)
@click.option("--quick", is_flag=True, help="Embedded data and few epochs: minutes, not hours.")
@click.option(
    "--data", metavar="DIR", envvar="TORCHSMITH_DATA", show_envvar=True, help="Folder with mnist/, names/, diabetes/."
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
def course(folder: str, quick: bool, data: str | None, names: tuple[str, ...]) -> None:
    """Run every row of the course (or those named) and write DIR/index.html: curves, tables and times of both arms."""
    from rich.console import Console

    try:
        planned = plan(quick=quick, data=data, names=names)
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    console, start = Console(), time.perf_counter()
    results: list[dict[str, Any]] = []
    for result in run_course(out, planned, console):
        results.append(result)
        if "error" in result:
            console.print(f"failed: {result['error']}", markup=False, highlight=False)
        # After each run, so that an interruption loses nothing.
        title = "The course, quick" if quick else "The course"
        write_atomically(out / PAGE, render(results, title).encode())
    failed = sum("error" in result for result in results)
    facts = {"runs": len(results), "planned": len(planned), "failed": failed, "seconds": time.perf_counter() - start}
    console.print(f"{json.dumps(facts)} {os.fspath(out / PAGE)}", markup=False, highlight=False, soft_wrap=True)
    if failed or len(results) < len(planned):
        raise click.exceptions.Exit(1)
