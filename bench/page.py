"""A record as one HTML page that needs nothing else: style and pictures are inside, no script, no address is fetched."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from torchsmith.bench import pictures, report
from torchsmith.bench.baselines import NAMES

__all__ = ["html"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { margin-bottom: .2em } h2 { margin-top: 2.2em; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .2em .6em; border-bottom: 1px solid #e4e4e4; text-align: right; white-space: nowrap }
th { text-align: right; background: #f4f4f4 } .t { text-align: left }
tr.loss td { background: #fdeee6 } tr.loss td.ratio, .loss b { color: #b64500; font-weight: bold }
.scroll { overflow-x: auto } .tiles { display: flex; gap: 1em; flex-wrap: wrap; margin: 1.2em 0 }
.tile { border: 1px solid #ccc; border-radius: 6px; padding: .6em 1.1em } .tile b { font-size: 1.7em; display: block }
.tile.loss { border-color: #d55e00 } img { max-width: 100%; height: auto } dt { font-weight: bold } dd { margin: 0 0 .4em 1em }
nav a { margin-right: 1em } summary { cursor: pointer } pre { white-space: pre-wrap }
"""


def html(data: dict[str, Any]) -> str:
    """The whole page."""
    groups = dict(report.sections(data))
    parts = [
        "<h1>torchsmith beside native PyTorch</h1>",
        f"<p>{escape(report.sentence(data['environment']))}. Measured {escape(data['when'][:10])}.</p>",
        f"<p>{escape(report.METHOD)}</p>",
        _tiles(data),
        _section(report.SLOWER, _losses(data), "losses"),
        _section("Side by side", _side_by_side(data), "baselines"),
        _section("Ratios", _bars(data), "ratios"),
        _section("Under the ceilings of this machine", _roofs(data), "ceilings"),
        _section("Memory, error, determinism", _details(data), "details"),
        _section("Every measurement", "".join(_measured(name, rows, data) for name, rows in groups.items()), "all"),
        _section("Not measured", _skipped(data), "skipped"),
        _section("Against an earlier run", _against(data), "against") if data.get("against") else "",
        _section("Machine and versions", _environment(data), "machine"),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>torchsmith benchmarks</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(p for p in parts if p) + "\n</body></html>\n"
    )


def _section(title: str, body: str, anchor: str) -> str:
    return f'<h2 id="{anchor}">{escape(title)}</h2>\n{body}' if body else ""


def _table(head: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]], text: int, ratio: int | None = None) -> str:
    """``rows``: cells, and whether the row is a loss. The first ``text`` columns are words, column ``ratio`` is marked."""

    def cell(tag: str, i: int, value: str) -> str:
        kind = ' class="t"' if i < text else ' class="ratio"' if i == ratio else ""
        return f"<{tag}{kind}>{escape(value)}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", i, h) for i, h in enumerate(head)) + "</tr>"]
    for cells, loss in rows:
        mark = ' class="loss"' if loss else ""
        lines.append(f"<tr{mark}>" + "".join(cell("td", i, c) for i, c in enumerate(cells)) + "</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _picture(svg: str, words: str) -> str:
    inside = base64.b64encode(svg.encode()).decode()
    return f'<p><img alt="{escape(words)}" src="data:image/svg+xml;base64,{inside}"></p>'


def _tiles(data: dict[str, Any]) -> str:
    tiles = []
    for kind, mode in (
        ("model", "training step"),
        ("model", "inference"),
        ("converted", "training step"),
        ("converted", "inference"),
        ("op", "forward+backward"),
        ("op", "forward"),
    ):
        rows = [
            r
            for r in data["rows"]
            if (r["kind"], r["mode"], r["threads"], r["dtype"]) == (kind, mode, 1, "float32") and report.plain(r, data)
        ]
        if rows:
            mean = math.exp(sum(math.log(r["ratio"]) for r in rows) / len(rows))
            what = {"model": "models", "converted": "converted models"}.get(kind, "ops")
            words = f"{what}, {mode}: geometric mean of {len(rows)} ratios, 1 thread"
            tiles.append(f'<div class="tile{" loss" if mean < 1 else ""}"><b>{mean:.2f}</b>{words}</div>')
    tiles.append(
        f'<div class="tile loss"><b>{len(report.losses(data))}</b>slower: {escape(report.summary(data))}</div>'
    )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _losses(data: dict[str, Any]) -> str:
    rows = report.losses(data)
    if not rows:
        return "<p>Nothing that was measured is slower.</p>"
    words = "<p>Every row with a ratio below 1, the worst first.</p>"
    return words + _table(report.LOSS_HEAD, ((report.loss_cells(r), True) for r in rows), 4, 9)


def _side_by_side(data: dict[str, Any]) -> str:
    """A row for each measurement, a column of ratios for each pair of baseline and instruction set."""
    own = data["environment"].get("isa")

    def column(r: dict[str, Any]) -> tuple[str, str]:
        return r.get("baseline", "eager"), r.get("isa", own)

    columns = list(dict.fromkeys(column(r) for r in data["rows"]))
    if len(columns) < 2:
        return ""
    lines: dict[tuple, dict[tuple[str, str], float]] = {}
    for r in data["rows"]:
        what = (r["op"], r["label"], r["mode"], r["dtype"], str(r["threads"]))
        lines.setdefault(what, {})[column(r)] = r["ratio"]
    head = ["op", "shape", "mode", "dtype", "threads"]
    head += [NAMES.get(b, b) + ("" if isa == own else f", {isa} on both sides") for b, isa in columns]
    body = []
    for what, ratios in lines.items():
        if len(ratios) > 1:
            cells = [f"{ratios[c]:.2f}" if c in ratios else "" for c in columns]
            body.append(([*what, *cells], any(value < 1 for value in ratios.values())))
    return "<p>Ratio to each baseline; marked where one is faster than ours.</p>" + _table(head, body, 4)


def _bars(data: dict[str, Any]) -> str:
    """One picture for what differs in no more than the baseline."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for r in data["rows"]:
        groups.setdefault(report.title({**r, "baseline": "eager"}, data), []).append(r)
    return "".join(_picture(pictures.ratio_bars(rows, name), f"ratios: {name}") for name, rows in groups.items())


def _roofs(data: dict[str, Any]) -> str:
    parts = []
    for c in data.get("ceilings", []):
        rows = [
            r
            for r in data["rows"]
            if (r["threads"], r.get("isa"), r["dtype"]) == (c["threads"], c["isa"], "float32")
            and r.get("baseline", "eager") == "eager"
        ]
        words = report.ceiling_sentence(c)
        parts.append(f"<p>{escape(words)}.</p>")
        if any("bytes" in r for r in rows):
            title = f"{c['threads']} thread{'' if c['threads'] == 1 else 's'}, {c['isa']}, float32"
            parts.append(_picture(pictures.roofline(rows, c, title), words))
    if parts:
        parts.append(
            "<p>Bytes are those that any implementation must move: every argument read once, every result written once. "
            "A row whose data fit a cache may lie above the memory line.</p>"
        )
    return "".join(parts)


def _details(data: dict[str, Any]) -> str:
    rows = [r for r in data["rows"] if "peak_bytes" in r or "error" in r]
    if not rows:
        return ""
    body = ((report.detail_cells(r), _worse(r)) for r in rows)
    words = f"<p>{escape(report.DETAILS)} Marked where ours saves or needs more bytes than native, errs more than twice as much, or does not repeat.</p>"
    return words + _table(report.DETAIL_HEAD, body, 3)


def _worse(r: dict[str, Any]) -> bool:
    more = any((r.get(n) or 0) > (r.get(f"native_{n}") or 0) for n in ("saved_bytes", "peak_bytes"))
    error, native = r.get("error", 0), r.get("native_error", 0)
    return more or not (error <= 2 * native or error < 1e-12) or not r.get("same_runs", True)


def _measured(name: str, rows: list[dict[str, Any]], data: dict[str, Any]) -> str:
    ceilings = {(c["threads"], c["isa"]): c for c in data.get("ceilings", [])}
    baseline = report.BASELINE.get(rows[0].get("baseline"), "native")
    head = ["op", "shape", baseline, "torchsmith", "ratio", "GFLOP/s", "of FMA", "GB/s", "of copy", "backend"]

    def share(r: dict[str, Any], unit: str) -> str:
        limit = ceilings.get((r["threads"], r.get("isa")))
        value = r.get(unit)
        known = limit is not None and value is not None and r["dtype"] == "float32"
        return f"{100 * value / limit[unit]:.0f} %" if known else ""

    body = (
        (
            [
                r["op"], r["label"], report.duration(r["native_us"]), report.duration(r["ours_us"]), report.spread(r),
                report.rate(r.get("gflops")), share(r, "gflops"), report.rate(r.get("gbytes_s")), share(r, "gbytes_s"),
                r.get("backend", ""),
            ],
            r["ratio"] < 1,
        )
        for r in rows
    )  # fmt: skip
    return f"<h3>{escape(name)}</h3>" + _table(head, body, 2, 4)


def _skipped(data: dict[str, Any]) -> str:
    items = "".join(f"<li>{escape(s['what'])}: {escape(s['why'])}</li>" for s in data.get("skipped", []))
    return f"<ul>{items}</ul>" if items else ""


def _against(data: dict[str, Any]) -> str:
    return f"<pre>{escape(data['against'])}</pre>"


def _environment(data: dict[str, Any]) -> str:
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in _flat(data["environment"]))
    return f"<dl>{items}</dl>"


def _flat(environment: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((k, v) for k, v in environment.items() if not isinstance(v, (dict, list)))
