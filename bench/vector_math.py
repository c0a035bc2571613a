"""How far the vector exp, sigmoid and tanh of the CPU kernels are from the true values: ``python -m torchsmith.bench.vector_math``.

The error of a result y in ulp is |y - f(x)| divided by the distance of two neighbouring float32 at f(x), which is 2^-149
where f(x) is subnormal. A correctly rounded function has at most 0.5. f(x) is NumPy's in float64.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np

from torchsmith import _native
from torchsmith.cli import HelpfulCommand

__all__ = ["FUNCTIONS", "Error", "grids", "measure"]

ALL_PATTERNS = 2**32
#: Prime, so that the patterns taken differ in every bit; 4 million numbers: under a second a function.
STRIDE = 1009
CHUNK = 2**20


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))  # never overflows, and keeps the tail that 1 / (1 + exp(-x)) loses
    return np.where(np.isnan(x), x, np.where(x < 0, e, 1.0) / (1.0 + e))


FUNCTIONS = {"exp": np.exp, "sigmoid": _sigmoid, "tanh": np.tanh}


@dataclass(frozen=True)
class Error:
    """What was seen of one function on one instruction set."""

    function: str
    isa: str
    points: int
    max_ulp: float  #: over the points where the true value, rounded to float32, is finite
    at: float  #: the argument of max_ulp
    mean_ulp: float
    misplaced: int  #: points where NaN, an infinity or the sign of a zero stands wrongly


def grids(stride: int = STRIDE) -> Iterator[np.ndarray]:
    """float32 arguments in chunks: the edges, a dense line through where the functions move, every stride-th bit pattern."""
    yield edges()
    yield np.linspace(-110, 110, CHUNK, dtype=np.float32)
    yield np.linspace(-2, 2, CHUNK, dtype=np.float32)
    for start in range(0, ALL_PATTERNS, CHUNK * stride):
        stop = min(start + CHUNK * stride, ALL_PATTERNS)
        yield np.arange(start, stop, stride, dtype=np.uint64).astype(np.uint32).view(np.float32)


def edges() -> np.ndarray:
    """Both signs of: zeros, subnormals, infinity, NaN, and the 64 neighbours of every argument at which a formula changes."""
    info = np.finfo(np.float32)
    special = [0.0, info.smallest_subnormal, info.tiny, info.max, np.inf, np.nan]
    # exp overflows at 128 ln 2 and is subnormal from -126 ln 2 on, 0 from -150 ln 2 on; tanh is 1 from about 9.01 on.
    turns = [*(n * np.log(2) / 2 for n in (1, 2, 252, 254, 256, 258, 298, 300)), 89.0, 104.0, 0.625, 1.0, 9.0109, 44.5]
    bits = np.concatenate([np.arange(65), np.array([*special, *turns], np.float32).view(np.uint32)[:, None].ravel()])
    around = (np.array(turns, np.float32).view(np.int32)[:, None] + np.arange(-64, 65)).ravel()
    subnormal = np.geomspace(1, 2**23, 1000).astype(np.int64)
    x = np.concatenate([bits, around, subnormal]).astype(np.uint32).view(np.float32)
    return np.concatenate([x, -x])


def evaluate(function: str, x: np.ndarray) -> np.ndarray:
    """The kernels' own function on float32 numbers, on the active instruction set."""
    return np.frombuffer(_native.vector_math(function, np.ascontiguousarray(x, np.float32)), np.float32)


def ulps(y: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The error of float32 y in units of its last place; where y or the rounded exact value is not finite, 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(np.float32)
        _, exponent = np.frexp(exact)
        spacing = np.ldexp(1.0, np.maximum(exponent - 24, -149))
        error = np.abs(y.astype(np.float64) - exact) / spacing
    return np.where(np.isfinite(rounded) & np.isfinite(y), error, 0.0)


def misplaced(y: np.ndarray, exact: np.ndarray) -> int:
    """How many y are NaN or infinite where the rounded exact value is not, or the reverse, or a zero of the wrong sign."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    fits = np.where(np.isfinite(rounded), np.isfinite(y), (rounded == y) | (np.isnan(rounded) & np.isnan(y)))
    fits &= (exact != 0) | (y != 0) | (np.signbit(exact) == np.signbit(y))
    return int((~fits).sum())


def measure(function: str, isa: str, stride: int = STRIDE) -> Error:
    """The errors of one function over :func:`grids` on one instruction set.

    Raises:
        ValueError: this machine does not have the instruction set.
    """
    points, total, wrong, worst, at = 0, 0.0, 0, -1.0, float("nan")
    _native.force_isa(isa)
    try:
        for x in grids(stride):
            y = evaluate(function, x)
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                exact = FUNCTIONS[function](x.astype(np.float64))
            error = ulps(y, exact)
            i = int(error.argmax())
            if error[i] > worst:
                worst, at = float(error[i]), float(x[i])
            points, total, wrong = points + x.size, total + float(error.sum()), wrong + misplaced(y, exact)
    finally:
        _native.force_isa(None)
    return Error(function, isa, points, worst, at, total / points, wrong)


@click.command(cls=HelpfulCommand)
@click.option(
    "--stride",
    type=click.IntRange(1, ALL_PATTERNS),
    default=STRIDE,
    show_default=True,
    help="Take every STRIDE-th of the 4,294,967,296 float32 bit patterns; 1 takes all (minutes a function).",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(stride: int, as_json: bool) -> None:
    """Print the greatest error of the vector exp, sigmoid and tanh under every instruction set of this machine."""
    rows = [measure(function, isa, stride) for function in FUNCTIONS for isa in _native.isa_available()]
    click.echo(json.dumps([asdict(row) for row in rows], indent=1) if as_json else table(rows))


def table(rows: list[Error]) -> str:
    head = ("function", "isa", "points", "max ulp", "at x", "mean ulp", "NaN, inf, -0 wrong")
    body = [_cells(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)) for cells in (head, *body)]
    return "\n".join(lines)


def _cells(row: Error) -> tuple[Any, ...]:
    figures = (f"{row.points:,}", f"{row.max_ulp:.3f}", f"{row.at:.9g}", f"{row.mean_ulp:.4f}", str(row.misplaced))
    return (row.function, row.isa, *figures)


if __name__ == "__main__":
    main()
