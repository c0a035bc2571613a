"""The kernels' vector exp, sigmoid and tanh: at most 2 ulp from the true value, exact at the ends, under every ISA."""

from __future__ import annotations

import array
import json

import numpy as np
import pytest
from click.testing import CliRunner

from torchsmith import _native
from torchsmith.bench import vector_math

ISAS = _native.isa_available()
LIMIT_ULP = 2.0


@pytest.fixture(params=ISAS)
def isa(request):
    _native.force_isa(request.param)
    yield request.param
    _native.force_isa(None)


def at(function: str, *x: float) -> np.ndarray:
    return vector_math.evaluate(function, np.array(x, np.float32))


def same(y: np.ndarray, *expected: float) -> bool:
    """Bit by bit, except that every NaN is a NaN."""
    e = np.array(expected, np.float32)
    return bool(((y.view(np.uint32) == e.view(np.uint32)) | (np.isnan(y) & np.isnan(e))).all())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("function", vector_math.FUNCTIONS)
def test_error(function, isa):
    error = vector_math.measure(function, isa)
    assert error.points > 6_000_000
    assert error.max_ulp <= LIMIT_ULP, error
    assert error.misplaced == 0, error


def test_error_where_sigmoid_is_least_exact(isa):
    """Every float32 of the octave in which the whole search found the greatest error."""
    for start in range(*(int(np.float32(x).view(np.uint32)) for x in (-4, -8)), 2**20):
        x = np.arange(start, start + 2**20, dtype=np.uint32).view(np.float32)
        assert vector_math.ulps(vector_math.evaluate("sigmoid", x), vector_math._sigmoid(x.astype(float))).max() <= 2


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="NumPy's long double is no wider than float64 here")
@pytest.mark.parametrize("function", vector_math.FUNCTIONS)
def test_float64_error(function, isa):
    """Against NumPy in 80-bit floats: where the functions move, through overflow and underflow, and near zero."""
    rng = np.random.default_rng(0)
    small = np.geomspace(1e-310, 1, 50_000)
    turns = [
        s * t for s in (-1, 1) for t in (0.0, np.inf, 709.782712893384, 709.8, 745.13, 745.2, 0.625, 710, 746, 1e300)
    ]
    lines = (rng.normal(0, 1, 200_000), rng.uniform(-760, 760, 200_000), rng.uniform(-40, 40, 200_000), small, -small)
    x = np.concatenate([np.array([np.nan, *turns]), *lines])
    y = np.frombuffer(_native.vector_math(function, x), np.float64)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        exact = vector_math.FUNCTIONS[function](x.astype(np.longdouble))
        rounded = exact.astype(np.float64)
    finite = np.isfinite(rounded)
    error = np.abs(y[finite].astype(np.longdouble) - exact[finite]) / np.spacing(np.abs(rounded[finite]))
    assert error.max() <= LIMIT_ULP
    assert ((y[~finite] == rounded[~finite]) | (np.isnan(y[~finite]) & np.isnan(rounded[~finite]))).all()
    zero = finite & (rounded == 0)
    assert (np.signbit(y[zero]) == np.signbit(rounded[zero])).all() and zero.any()


def test_ends(isa):
    inf, nan = np.inf, np.nan
    assert same(at("exp", 0.0, -0.0, inf, -inf, nan, 89, -104, 1e30, -1e30), 1, 1, inf, 0, nan, inf, 0, inf, 0)
    assert same(at("sigmoid", 0.0, -0.0, inf, -inf, nan, 104, -104, 1e30, -1e30), 0.5, 0.5, 1, 0, nan, 1, 0, 1, 0)
    assert same(at("tanh", 0.0, -0.0, inf, -inf, nan, 10, -10, 1e30, -1e30), 0.0, -0.0, 1, -1, nan, 1, -1, 1, -1)


def test_subnormal_arguments(isa):
    x = np.arange(1, 2**23, 997, dtype=np.uint32).view(np.float32)
    for signed in (x, -x):
        assert np.array_equal(vector_math.evaluate("tanh", signed), signed)  # tanh(x) = x there
        assert (vector_math.evaluate("exp", signed) == 1).all()
        assert (vector_math.evaluate("sigmoid", signed) == 0.5).all()


def test_subnormal_results_are_kept(isa):
    """exp(x) and sigmoid(x) are subnormal for x from -87.34 down to -103.97."""
    x = np.linspace(-103.9, -87.4, 10_000, dtype=np.float32)
    for function in ("exp", "sigmoid"):
        y = vector_math.evaluate(function, x)
        assert ((y > 0) & (y < np.finfo(np.float32).tiny)).all()


def test_tanh_is_odd(isa):
    for x in vector_math.grids(stride=100_003):
        x = x[~np.isnan(x)]
        assert same(vector_math.evaluate("tanh", -x), *-vector_math.evaluate("tanh", x))


@pytest.mark.parametrize("function", vector_math.FUNCTIONS)
def test_a_number_has_one_result_wherever_it_stands(function, isa):
    """Whole vectors, the rest after them, one number alone: no lane computes otherwise, none is left out."""
    x = np.random.default_rng(0).normal(0, 10, 67).astype(np.float32)
    whole = vector_math.evaluate(function, x)
    for count in (0, 1, 2, 3, 5, 8, 15, 16, 17, 33, 66):
        for start in (0, 1):
            assert same(vector_math.evaluate(function, x[start : start + count]), *whole[start : start + count])


# --------------------------------------------------------------------------------------------------- the entry


def test_takes_any_buffer_of_float32():
    x = array.array("f", [0.0, 1.0])
    assert _native.vector_math("exp", x) == _native.vector_math("exp", np.array(x, np.float32))
    assert _native.vector_math("tanh", array.array("f")) == b""


def test_refuses_other_arguments():
    with pytest.raises(ValueError, match="'log' is not a vector function; allowed: 'exp', 'sigmoid', 'tanh'"):
        _native.vector_math("log", array.array("f", [1.0]))
    with pytest.raises(TypeError, match="buffer of float32 or float64, got item format 'i'"):
        _native.vector_math("exp", np.zeros(3, np.int32))
    with pytest.raises(TypeError, match="buffer of float32"):
        _native.vector_math("exp", b"\0\0\0\0")
    with pytest.raises(ValueError, match="contiguous"):
        _native.vector_math("exp", np.zeros(6, np.float32)[::2])
    with pytest.raises(TypeError):
        _native.vector_math("exp", [1.0])


# --------------------------------------------------------------------------------------------------- the measure itself


def test_ulps_are_distances_of_neighbours():
    one, least = np.float32(1), np.finfo(np.float32).smallest_subnormal
    above = np.nextafter(one, np.float32(2))
    y = np.array([above, one, 2 * least, 0], np.float32)
    assert vector_math.ulps(y, np.array([1.0, 1.0, float(least), float(least)])).tolist() == [1, 0, 1, 1]


def test_misplaced_values_are_seen():
    inf, nan = np.inf, np.nan
    exact = np.array([nan, inf, 1.0, 1.0, -0.0, 1e300, 0.0])
    right = np.array([nan, inf, 1.0, 1.0, -0.0, inf, 0.0], np.float32)
    assert vector_math.misplaced(right, exact) == 0
    for i, wrong in enumerate([1.0, -inf, nan, inf, 0.0, 3e38, -0.0]):
        y = right.copy()
        y[i] = wrong
        assert vector_math.misplaced(y, exact) == 1


def test_the_grid_has_the_ends():
    x = vector_math.edges()
    assert np.isnan(x).any() and np.isinf(x).any() and (x == 0).any() and np.signbit(x[x == 0]).any()
    assert ((x != 0) & (np.abs(x) < np.finfo(np.float32).tiny)).sum() > 500
    total = sum(grid.size for grid in vector_math.grids(stride=2**16 + 1))
    assert total == x.size + 2 * vector_math.CHUNK + -(-(2**32) // (2**16 + 1))


def test_command_prints_the_table():
    done = CliRunner().invoke(vector_math.main, ["--stride", "100003"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].split()[:2] == ["function", "isa"]
    assert [line.split()[:2] for line in lines[1:]] == [[f, i] for f in vector_math.FUNCTIONS for i in ISAS]
    rows = json.loads(CliRunner().invoke(vector_math.main, ["--stride", "100003", "--json"]).output)
    assert [row["isa"] for row in rows] == ISAS * 3
    assert all(0.5 <= row["max_ulp"] <= LIMIT_ULP for row in rows)


def test_command_refuses_a_bad_stride():
    done = CliRunner().invoke(vector_math.main, ["--stride", "0"])
    assert done.exit_code == 2 and "--stride" in done.output
