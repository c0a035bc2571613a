"""The report's pictures, as SVG: ratio bars, and the rows under the ceilings of the machine."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

try:
    # Figure without pyplot: no window system is asked for, no global state is left.
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter
except ImportError as error:
    raise ImportError("the report needs matplotlib, which is not installed: pip install 'torchsmith[bench]'") from error

__all__ = ["ratio_bars", "roofline"]

#: Colours safe for the colour-blind (Okabe and Ito); a loss also has hatching, so that grey prints show it.
BASELINE = {"eager": "#0072b2", "compile": "#009e73", "mkl-avx512": "#56b4e9"}
LOSS = "#d55e00"
OPS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#000000")
MARKERS = "os^Dv<>Ph*"
NAMES = {
    "eager": "against native",
    "compile": "against torch.compile",
    "mkl-avx512": "against native, MKL with AVX-512",
}


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    # No date and a fixed salt: the same record gives the same picture. Without metadata no address is in it.
    with rc_context({"svg.hashsalt": "torchsmith"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return buffer.getvalue()


def ratio_bars(rows: Sequence[dict[str, Any]], title: str) -> str:
    """Bars of native / ours from 1 on a logarithmic axis: to the right ours is faster, to the left (hatched) native."""
    names = list(dict.fromkeys((r["op"], r["label"]) for r in rows))
    baselines = [b for b in BASELINE if any(r.get("baseline", "eager") == b for r in rows)]
    height = 0.8 / max(1, len(baselines))
    figure = Figure(figsize=(9.5, 1.3 + len(names) * max(0.26, 0.17 * len(baselines))), layout="constrained")
    axes = figure.subplots()
    for r in rows:
        baseline = r.get("baseline", "eager")
        y = names.index((r["op"], r["label"])) + (baselines.index(baseline) - (len(baselines) - 1) / 2) * height
        slower = r["ratio"] < 1
        color = LOSS if slower else BASELINE[baseline]
        axes.barh(y, r["ratio"] - 1, height, left=1, color=color, hatch="////" if slower else None, edgecolor="white")
        axes.plot([r["ratio_low"], r["ratio_high"]], [y, y], color="black", linewidth=0.8)
        end = max(r["ratio_high"], r["ratio"], 1)
        axes.annotate(
            f"{r['ratio']:.2f}", (end, y), (4, 0), textcoords="offset points", va="center", fontsize=7,
            color=LOSS if slower else "black", fontweight="bold" if slower else "normal",
        )  # fmt: skip
    low = min([0.8, *(r["ratio_low"] for r in rows)])
    axes.set_xlim(low * 0.9, 1.35 * max([2.0, *(r["ratio_high"] for r in rows)]))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), [f"{op}  {label}" for op, label in names], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("native / ours: right of 1 ours is faster, left of 1 (hatched) native is")
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    if len(baselines) > 1:
        handles = [Line2D([], [], color=BASELINE[b], linewidth=6, label=NAMES[b]) for b in baselines]
        handles.append(Line2D([], [], color=LOSS, linewidth=6, label="slower than that"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return _svg(figure)


def roofline(rows: Sequence[dict[str, Any]], ceiling: dict[str, Any], title: str) -> str:
    """Left: GFLOP/s of each row over its operations per byte, below what the machine allows. Right: GB/s of the rest."""
    counted = [r for r in rows if "flops" in r and "bytes" in r]
    moved = [r for r in rows if "flops" not in r and "bytes" in r]
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _roof(left, counted, ceiling)
    _moving(right, moved, ceiling)
    figure.suptitle(title, fontsize=10)
    return _svg(figure)


def _roof(axes: Axes, rows: Sequence[dict[str, Any]], ceiling: dict[str, Any]) -> None:
    intensity = [r["flops"] / r["bytes"] for r in rows] or [1.0]
    rates = [r[name] for r in rows for name in ("gflops", "native_gflops")] or [1.0]
    low, high = min([*intensity, 0.5]) / 1.5, max([*intensity, 100]) * 1.5
    for name, width, style, words in (
        ("gbytes_s", 1.8, "-", "memory"),
        ("cache_gbytes_s", 1.0, "--", "cache"),
    ):
        knee = ceiling["gflops"] / ceiling[name]
        xs = [low, min(max(knee, low), high), high]
        ys = [min(ceiling["gflops"], x * ceiling[name]) for x in xs]
        label = f"{words}: copy {ceiling[name]:.0f} GB/s"
        axes.plot(xs, ys, style, color="black", linewidth=width, label=label)
    axes.annotate(f"FMA {ceiling['gflops']:.0f} GFLOP/s", (high, ceiling["gflops"]), (-4, 4), textcoords="offset points",
                  ha="right", fontsize=8)  # fmt: skip
    for i, op in enumerate(dict.fromkeys(r["op"] for r in rows)):
        color, marker = OPS[i % len(OPS)], MARKERS[i % len(MARKERS)]
        mine = [r for r in rows if r["op"] == op]
        for r in mine:
            x = r["flops"] / r["bytes"]
            axes.plot([x, x], [r["native_gflops"], r["gflops"]], color=color, linewidth=0.6, alpha=0.6)
            axes.plot(x, r["native_gflops"], marker, markerfacecolor="white", color=color, markersize=5)
            axes.plot(x, r["gflops"], marker, color=color, markersize=6)
        axes.plot([], [], marker, color=color, label=op)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(min(rates) / 1.5, ceiling["gflops"] * 1.8)
    axes.set_xlabel("operations per byte that must be moved")
    axes.set_ylabel("GFLOP/s (filled: ours, hollow: native)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")


def _moving(axes: Axes, rows: Sequence[dict[str, Any]], ceiling: dict[str, Any]) -> None:
    axes.set_title("rows without arithmetic", fontsize=9)
    if not rows:
        axes.text(0.5, 0.5, "none in this run", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    for i, r in enumerate(rows):
        axes.barh(i - 0.2, r["gbytes_s"], 0.38, color=BASELINE["eager"], label="ours" if i == 0 else None)
        axes.barh(i + 0.2, r["native_gbytes_s"], 0.38, color="#e69f00", label="native" if i == 0 else None)
    top = max(r[name] for r in rows for name in ("gbytes_s", "native_gbytes_s"))
    for name, style, words in (("gbytes_s", "-", "copy from memory"), ("cache_gbytes_s", "--", "copy within cache")):
        if ceiling[name] < 4 * top or name == "gbytes_s":
            axes.axvline(ceiling[name], color="black", linestyle=style, label=f"{words}, {ceiling[name]:.0f} GB/s")
    axes.set_yticks(range(len(rows)), [f"{r['op']} {r['label']}\n{r['mode']}" for r in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("GB/s (compulsory traffic)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=7)
