"""A run of the suites as a record (JSON) and as tables (Markdown)."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["load", "markdown", "record", "save", "table", "write_atomic"]

#: Grows when a field changes its meaning; a reader refuses what it does not know.
FORMAT = 1


def write_atomic(path: Path, text: str) -> None:
    """The whole text or nothing: a reader never sees half a file, an interrupt leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp gives 0600
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def record(benchmark_json: dict[str, Any]) -> dict[str, Any]:
    """Our record from pytest-benchmark's: the environment once, one row for each measurement."""
    rows = [b["extra_info"] for b in benchmark_json["benchmarks"] if "ratio" in b["extra_info"]]
    return {
        "format": FORMAT,
        "when": benchmark_json["datetime"],
        "environment": benchmark_json["machine_info"],
        "rows": rows,
    }


def save(folder: Path, data: dict[str, Any]) -> tuple[Path, Path]:
    """Writes bench.json and bench.md; returns their paths."""
    paths = folder / "bench.json", folder / "bench.md"
    write_atomic(paths[0], json.dumps(data, indent=1) + "\n")
    write_atomic(paths[1], markdown(data))
    return paths


def load(path: Path) -> dict[str, Any]:
    """A saved record. Raises FileNotFoundError, or ValueError naming the file and what is wrong with it."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("rows"), list):
        raise ValueError(f"{path}: not a torchsmith benchmark record of format {FORMAT}")
    return data


def sentence(env: dict[str, Any]) -> str:
    """Where the figures come from, in one line."""
    return (
        f"{env['processor']} ({env['cores']} cores), torchsmith {env['torchsmith']} with {env['isa']}, "
        f"torch {env['torch']} with {env['native_isa']}, Python {env['python']}, {env['compiler']}"
    )


def markdown(data: dict[str, Any]) -> str:
    env = data["environment"]
    head = [
        "# torchsmith beside native PyTorch",
        "",
        f"{sentence(env)}. Measured {data['when'][:10]}.",
        "",
        "Medians of interleaved rounds in one process. Ratio = native / ours: above 1 ours is faster. "
        "In brackets the quartiles of the rounds' own ratios.",
        "",
    ]
    parts = ["\n".join(head), *(f"## {title}\n\n{table(rows)}" for title, rows in _sections(data["rows"]))]
    return "\n".join(parts)


def _sections(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        what = "Models" if row["kind"] == "model" else "Ops"
        plural = "" if row["threads"] == 1 else "s"
        groups.setdefault(f"{what}, {row['mode']}, {row['threads']} thread{plural}, {row['dtype']}", []).append(row)
    yield from groups.items()


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of one mode as a Markdown table."""
    counted = any("gflops" in r for r in rows)
    lines = [
        f"| op | shape | native | torchsmith | ratio |{' GFLOP/s |' if counted else ''}",
        f"|---|---|---:|---:|---:|{'---:|' if counted else ''}",
    ]
    for r in rows:
        spread = f"{r['ratio']:.2f} ({r['ratio_low']:.2f}-{r['ratio_high']:.2f})"
        cells = [r["op"], r["label"], duration(r["native_us"]), duration(r["ours_us"]), spread]
        if counted:
            rate = r.get("gflops")
            cells.append("" if rate is None else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def duration(us: float) -> str:
    """Three significant digits, in us, ms or s."""
    for unit, scale in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        value = us / scale
        if value < 999.5 or unit == "s":
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("unreachable")
