"""The tables of README.md that are generated: what runs where, and the figures of the recorded run.

    python -m torchsmith.bench.readme README.md [--check] [--record bench/records/cpu.json]

A block lies between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``. ``support`` comes from the op descriptions and
the registry of kernels, ``figures`` from the record. ``--check`` writes nothing and fails where a block is not current.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from torchsmith import _native
from torchsmith.bench import report
from torchsmith.spec import all_specs

__all__ = ["figures", "gpu", "render", "replace_block", "support"]

#: Rows of one mode each that README quotes; the record holds all.
QUOTED = (("model", "training step"), ("converted", "training step"))


def support() -> str:
    """Ops x backends: the dtypes that every native kernel of the op is registered for."""
    registered: dict[tuple[str, str], set[str]] = {}
    for row in _native.registry():
        registered.setdefault((row["op"], row["backend"]), set()).update(row["dtypes"])
    backends = sorted({backend for _, backend in registered})
    lines = ["| op | " + " | ".join(backends) + " |", "|---|" + "---|" * len(backends)]
    for spec in sorted(all_specs(), key=lambda s: s.name):
        declared = [str(d).removeprefix("torch.") for d in spec.dtypes]
        cells = []
        for backend in backends:
            each = [registered.get((kernel, backend), set()) for kernel in spec.kernels]
            names = set.intersection(*each) if each else set()
            cells.append(", ".join(name for name in declared if name in names))
        lines.append(f"| `{spec.name}` | " + " | ".join(cell or "-" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def figures(record: Path) -> str:
    """Of a recorded run, and of those kept beside it: where and when it ran, the models, and how all else went.

    Beside ``cpu.json`` those are ``cpu-<machine>.json``. The newest comes first.
    """
    records = (record, *record.parent.glob(f"{record.stem}-*.json"))
    return "\n".join(
        _quoted(path) for path in sorted(records, key=lambda path: report.load(path)["when"], reverse=True)
    )


def _quoted(record: Path) -> str:
    data = report.load(record)
    where = report.sentence(data["environment"])
    dtypes = ", ".join(dict.fromkeys(r["dtype"] for r in data["rows"]))
    parts = [f"{where}; 1 thread, {dtypes}; ratio = native / ours; measured {data['when'][:10]}.\n"]
    if "note" in data:  # how it was measured, where that was not as `make record` does
        parts.append(f"{data['note']}\n")
    for kind, mode in QUOTED:
        rows = [
            r
            for r in data["rows"]
            if (r["kind"], r["mode"], r["threads"], r["dtype"]) == (kind, mode, 1, "float32") and report.plain(r, data)
        ]
        if rows:
            converted = " of models converted by `torchsmith.convert` and tuned by `torchsmith.tune`"
            parts.append(f"{mode.capitalize()}{converted if kind == 'converted' else ''}:\n\n{report.table(rows)}")
    listed = f"`torchsmith bench --from bench/records/{record.name}` prints each, ops and losses too."
    parts.append(f"{report.summary(data)} {listed}\n")
    return "\n".join(parts)


def gpu(record: Path) -> str:
    """GPU figures, from the record of ``make gpu`` alone; without one, that there are none."""
    if not record.is_file():
        return "GPU speed: not yet measured on a GPU.\n"
    data = json.loads(record.read_text(encoding="utf-8"))
    stages = data["stages"]
    lines = [f"{data['device']}, driver {data['driver']}, torch {data['torch']}, {data['date'][:10]}:", ""]
    for name, entry in stages.items():
        facts = [f"{count:,} {what}" for what, count in entry.get("counts", {}).items()]
        facts += [f"{entry[what]:,} {what}" for what in ("calls", "left out") if what in entry]
        facts += [entry["summary"].lower()] if "summary" in entry else []
        said = f" ({', '.join(facts)})" if facts else ""
        lines.append(f"- {name}: {entry['status']}{said}." + (f" {entry['note']}" if "note" in entry else ""))
    arms = ("cpp", "cpp graph", "triton", "triton graph")
    lines += [
        "",
        "How many times as fast as native, float32 without TF32: the least and the most of an op's shapes; by CUDA graphs of both sides the device alone.",
        "",
    ]
    lines += ["| op | mode | C++ | C++, CUDA graphs | Triton | Triton, CUDA graphs |", "|---|---|---:|---:|---:|---:|"]
    rows = [row for row in stages.get("benchmarks", {}).get("rows", ()) if "us" in row and not row["tf32"]]
    for op, mode in dict.fromkeys((row["op"], row["mode"]) for row in rows):
        mine = [row["us"] for row in rows if (row["op"], row["mode"]) == (op, mode)]
        lines.append(f"| {op} | {mode} | {' | '.join(_range(mine, arm) for arm in arms)} |")
    return "\n".join(lines) + "\n"


def _range(rows: list[dict[str, float]], arm: str) -> str:
    native = "native graph" if arm.endswith("graph") else "native"
    ratios = sorted(us[native] / us[arm] for us in rows if arm in us and native in us)
    if not ratios:
        return "-"
    return f"{ratios[0]:.2f}" if len(ratios) == 1 else f"{ratios[0]:.2f}-{ratios[-1]:.2f}"


def replace_block(text: str, name: str, body: str) -> str:
    """The text with what lies between the block's two marks replaced. Raises ValueError where the marks are missing."""
    pattern = re.compile(rf"(<!-- begin {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.S)
    changed, count = pattern.subn(lambda m: f"{m.group(1)}{body}{m.group(2)}", text)
    if count != 1:
        raise ValueError(f"expected the marks of block {name!r} once, found them {count} times")
    return changed


def render(text: str, record: Path | None) -> str:
    text = replace_block(text, "support", support())
    if record is not None:
        text = replace_block(text, "gpu", gpu(record.with_name("gpu.json")))
    return replace_block(text, "figures", figures(record)) if record is not None and record.is_file() else text


@click.command()
@click.argument("readme", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--record", type=click.Path(dir_okay=False, path_type=Path), help="Record of a run, for the figures.")
@click.option("--check", is_flag=True, help="Write nothing; fail where a block is not current.")
def main(readme: Path, record: Path | None, check: bool) -> None:
    """Brings the generated tables of README up to date."""
    before = readme.read_text(encoding="utf-8")
    after = render(before, record)
    if check and after != before:
        raise click.ClickException(f"{readme} is not current: run `make readme`")
    if after != before:
        report.write_atomic(readme, after)
    click.echo(f"{readme} is current")


if __name__ == "__main__":
    main()
