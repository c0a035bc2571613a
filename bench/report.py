"""A run of the suites as a record (JSON) and as tables (Markdown)."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torchsmith.bench.shapes import PLANS

__all__ = [
    "key",
    "load",
    "losses",
    "markdown",
    "merge",
    "plain",
    "record",
    "save",
    "sections",
    "summary",
    "table",
    "title",
    "write_atomic",
]

#: Grows when a field changes its meaning; a reader refuses what it does not know.
FORMAT = 1

#: What a row must have, and of what type; the rest came later, and what reads it takes a row without.
FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("kind", "op", "label", "mode", "dtype"), str),
    "threads": int,
    **dict.fromkeys(("ours_us", "native_us", "ratio", "ratio_low", "ratio_high"), (int, float)),
}
BASELINE = {"compile": "torch.compile", "mkl-avx512": "native, MKL AVX-512"}  # else plain native
AGAINST = {"eager": "", "compile": ", against torch.compile", "mkl-avx512": ", against native with MKL allowed AVX-512"}


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
        "ceilings": benchmark_json.get("ceilings", []),
        "skipped": benchmark_json.get("skipped", []),
    }


def merge(parts: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Several records of pytest-benchmark as one: what the first says of the machine, and everyone's measurements."""
    merged: dict[str, Any] | None = None
    for part in parts:
        if merged is None:
            merged = {**part}
            continue
        for name in ("benchmarks", "ceilings", "skipped"):
            merged[name] = [*merged.get(name, []), *part.get(name, [])]
    if (
        merged is not None and "ceilings" in merged
    ):  # passes with the same threads and ISA: the higher is nearer the truth
        best: dict[tuple[int, str], dict[str, Any]] = {}
        for c in merged["ceilings"]:
            one = best.setdefault((c["threads"], c["isa"]), dict(c))
            one.update({k: max(v, one[k]) for k, v in c.items() if k not in ("threads", "isa")})
        merged["ceilings"] = list(best.values())
    return merged


def save(folder: Path, data: dict[str, Any], with_page: bool = False) -> tuple[Path, ...]:
    """Writes bench.json and bench.md, and bench.html where a page is wanted; returns their paths."""
    paths = [folder / "bench.json", folder / "bench.md"]
    write_atomic(paths[0], json.dumps(data, indent=1) + "\n")
    write_atomic(paths[1], markdown(data))
    if with_page:
        from torchsmith.bench import page

        paths.append(folder / "bench.html")
        write_atomic(paths[2], page.html(data))
    return tuple(paths)


def load(path: Path) -> dict[str, Any]:
    """A saved record. Raises OSError where it cannot be read, or ValueError naming the file and what is wrong with it."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if isinstance(data, dict) and "benchmarks" in data and "machine_info" in data:
        raise ValueError(f"{path}: this is pytest-benchmark's own record; give the bench.json that lies beside it")
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("rows"), list):
        raise ValueError(f"{path}: not a torchsmith benchmark record of format {FORMAT}")
    if not isinstance(data.get("environment"), dict) or not isinstance(data.get("when"), str):
        raise ValueError(f"{path}: does not say when and where it was measured ('when', 'environment')")
    for number, row in enumerate(data["rows"]):
        _check_row(f"{path}: row {number}", row)
    return data


def _check_row(where: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object")
    for name, kind in FIELDS.items():
        value = row.get(name)
        if name not in row or not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{where}: field {name!r} is {'missing' if name not in row else repr(value)}")
        if isinstance(value, (int, float)) and not (0 < value < float("inf")):
            raise ValueError(f"{where}: field {name!r} is {value}, must be a positive number")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a row the same measurement in another run. Older records lack the last three."""
    fields = tuple(row[name] for name in ("kind", "op", "label", "mode", "dtype", "threads"))
    isa = row.get("isa", "")
    if row["dtype"] != "bfloat16":  # avx512_bf16 and avx512_amx differ from avx512 in bfloat16 alone
        isa = isa.split("_")[0]
    return (*fields, row.get("baseline", "eager"), row.get("shapes", "course"), isa)


def plain(row: dict[str, Any], data: dict[str, Any]) -> bool:
    """Against native eager, course shapes, the machine's own instruction set: what is quoted without further words."""
    isa = data["environment"].get("isa")
    return (
        row.get("baseline", "eager") == "eager"
        and row.get("shapes", "course") == "course"
        and row.get("isa", isa) == isa
    )


def losses(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row on which native is faster, the worst first."""
    return sorted((r for r in data["rows"] if r["ratio"] < 1), key=lambda r: r["ratio"])


def sentence(env: dict[str, Any]) -> str:
    """Where the figures come from, in one line."""
    return (
        f"{env['processor']} ({env['cores']} core{'' if env['cores'] == 1 else 's'}), "
        f"torchsmith {env['torchsmith']} with {env['isa']}, "
        f"torch {env['torch']} with {env['native_isa']}, Python {env['python']}, {env['compiler']}"
    )


METHOD = (
    "Medians of interleaved rounds in one process. Ratio = native / ours: above 1 ours is faster. "
    "In brackets the quartiles of the rounds' own ratios."
)


def markdown(data: dict[str, Any]) -> str:
    head = [
        "# torchsmith beside native PyTorch",
        "",
        f"{sentence(data['environment'])}. Measured {data['when'][:10]}.",
        "",
        METHOD,
        "",
        *(f"{ceiling_sentence(c)}.\n" for c in data.get("ceilings", [])),
        summary(data),
        "",
    ]
    parts = ["\n".join(head), f"## {SLOWER}\n\n" + _losses_table(losses(data))]
    left = [r for r in data["rows"] if r.get("backend") == "torch"]
    if left:
        parts.append(f"## Left to native\n\n{LEFT}\n\n{_losses_table(left)}")
    parts += [f"## {title}\n\n{table(rows)}" for title, rows in sections(data)]
    detailed = [r for r in data["rows"] if "peak_bytes" in r or "error" in r]
    if detailed:
        parts.append(f"## Memory, error, determinism\n\n{DETAILS}\n\n{details_table(detailed)}")
    if data.get("skipped"):
        parts.append("## Not measured\n\n" + "".join(f"- {s['what']}: {s['why']}\n" for s in data["skipped"]))
    if data.get("against"):
        parts.append(f"## Against an earlier run\n\n{data['against']}\n")
    return "\n".join(parts)


def summary(data: dict[str, Any]) -> str:
    rows, slower = data["rows"], losses(data)
    native = sum(r.get("baseline", "eager") == "eager" for r in slower)
    return (
        f"{len(rows)} measurements: {len(rows) - len(slower)} at least as fast as their baseline, {len(slower)} slower "
        f"({native} of them slower than native as it is)."
    )


def ceiling_sentence(c: dict[str, Any]) -> str:
    plural = "" if c["threads"] == 1 else "s"
    return (
        f"Ceilings of this machine with {c['threads']} thread{plural}, {c['isa']}: {c['gflops']:.0f} GFLOP/s float32, "
        f"copying {c['gbytes_s']:.0f} GB/s from memory and {c['cache_gbytes_s']:.0f} GB/s within cache (read plus written)"
    )


def title(row: dict[str, Any], data: dict[str, Any]) -> str:
    """The heading under which a row stands."""
    what = {"model": "Models", "converted": "Models converted and tuned"}.get(row["kind"], "Ops")
    plural = "" if row["threads"] == 1 else "s"
    extra = ", extra shapes" if row.get("shapes") == "extra" else ""
    isa, own = row.get("isa"), data["environment"].get("isa")
    forced = f", {isa} on both sides" if isa not in (None, own) else ""
    against = AGAINST.get(row.get("baseline", "eager"), f", against {row.get('baseline')}")
    return f"{what}, {row['mode']}, {row['threads']} thread{plural}, {row['dtype']}{extra}{against}{forced}"


def sections(data: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in data["rows"]:
        groups.setdefault(title(row, data), []).append(row)
    yield from groups.items()


def _lines(head: str, rule: str, rows: Iterable[Iterable[str]]) -> str:
    return "\n".join([head, rule, *("| " + " | ".join(cells) + " |" for cells in rows)]) + "\n"


def spread(r: dict[str, Any]) -> str:
    digits = 2 if r["ratio"] >= 0.095 else 4
    return f"{r['ratio']:.{digits}f} ({r['ratio_low']:.{digits}f}-{r['ratio_high']:.{digits}f})"


def rate(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of one mode as a Markdown table."""
    units = [(u, n) for u, n in (("gflops", "GFLOP/s"), ("gbytes_s", "GB/s")) if any(u in r for r in rows)]
    return _lines(
        f"| op | shape | {BASELINE.get(rows[0].get('baseline'), 'native')} | torchsmith | ratio |"
        + "".join(f" {name} |" for _, name in units),
        "|---|---|---:|---:|---:|" + "---:|" * len(units),
        (
            [
                r["op"],
                r["label"],
                duration(r["native_us"]),
                duration(r["ours_us"]),
                spread(r),
                *(rate(r.get(u)) for u, _ in units),
            ]
            for r in rows
        ),
    )


def loss_cells(r: dict[str, Any]) -> list[str]:
    """op, shape, mode, threads, baseline, ISA, its time, ours, ratio, remark."""
    native = r.get("backend") == "torch"
    remark = "left to native" if native else "within noise" if r["ratio_high"] >= 1 else ""
    plan = PLANS.get(r["label"]) if remark != "within noise" else None
    remark = "; ".join(filter(None, (remark, plan and f"cure: {plan}")))
    return [
        r["op"], r["label"], r["mode"], r["dtype"], str(r["threads"]), r.get("baseline", "eager"), r.get("isa", ""),
        duration(r["native_us"]), duration(r["ours_us"]), spread(r), remark,
    ]  # fmt: skip


LEFT = "Calls that `auto` gives to native, because ours was measured slower here (`torchsmith tune`) or would copy the layout."
SLOWER = "Slower than native, or than another baseline"
LOSS_HEAD = "op,shape,mode,dtype,threads,baseline,ISA,its time,torchsmith,ratio,remark".split(",")


def _losses_table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "Nothing.\n"
    return _lines(f"| {' | '.join(LOSS_HEAD)} |", "|---" * len(LOSS_HEAD) + "|", map(loss_cells, rows))


DETAILS = (
    "Saved: bytes of the storages autograd keeps for backward, each once, without arguments and parameters. "
    "Peak: the most torch's allocator had out at once during one call, above what it had before; scratch inside kernels "
    "(ours, MKL's, oneDNN's) is not seen by it. Error: largest difference from float64 over results and gradients, in "
    "units of the largest value of each. Repeats: bit by bit from run to run, and with 1 and more threads."
)
DETAIL_HEAD = (
    "op,shape,mode,threads,saved,saved native,peak,peak native,error,error native,repeats,repeats native".split(",")
)


def detail_cells(r: dict[str, Any]) -> list[str]:
    cells = [r["op"], r["label"], r["mode"], str(r["threads"])]
    for name in ("saved_bytes", "peak_bytes"):
        cells += [size(r.get(name)), size(r.get(f"native_{name}"))]
    for prefix in ("", "native_"):
        error = r.get(f"{prefix}error")
        cells.append("" if error is None else f"{error:.1e}")
    return [*cells, repeats(r, ""), repeats(r, "native_")]


def details_table(rows: list[dict[str, Any]]) -> str:
    return _lines(f"| {' | '.join(DETAIL_HEAD)} |", "|---" * len(DETAIL_HEAD) + "|", map(detail_cells, rows))


def repeats(r: dict[str, Any], prefix: str) -> str:
    if f"{prefix}same_runs" not in r:
        return ""
    kinds = [name for name, field in (("runs", "same_runs"), ("threads", "same_threads")) if r.get(prefix + field)]
    return ", ".join(kinds) or "no"


def size(count: float | None) -> str:
    """Bytes in B, KiB or MiB."""
    if count is None:
        return ""
    for unit, scale in (("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20)):
        if count < 1024 * scale or unit == "MiB":
            return f"{count / scale:.0f} {unit}" if scale == 1 else f"{count / scale:.1f} {unit}"
    raise AssertionError("unreachable")


def duration(us: float) -> str:
    """Three significant digits, in us, ms or s."""
    for unit, scale in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        value = us / scale
        if value < 999.5 or unit == "s":
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f} {unit}"
    raise AssertionError("unreachable")
