"""The comparator of the contract: an error rule that vagueness cannot pass.

A result is right when its error against the float64 reference is at most twice the error of torch's own result in the
same dtype, plus a rounding floor; and NaN and infinities stand where torch's or the reference's stand (oneDNN's
bfloat16 weight gradient by AMX spreads a NaN to its neighbours). The tests and ``torchsmith selftest`` judge by it.

Where native's error may be small by luck (few numbers, or rounding magnified by what follows), give several of native's
results, from values that differ in their last bit (:func:`nudged`): the worst is native's error then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["compare", "difference", "nudged"]

#: What rounding alone may cost, in units in the last place of the largest value, however lucky native was. In float64 the
#: reference is native itself, so its error shows as 0 and the floor must cover two sums of up to ~2,000 terms.
FLOOR_ULPS = {torch.float64: 64}
FLOOR_ULPS_SMALLER = 4


Native = torch.Tensor | Sequence[torch.Tensor]


def nudged(values: torch.Tensor) -> torch.Tensor:
    """The values, each with its last bit up, down or as it was, at random: what rounding them once more could have made."""
    bits = values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.dtype.itemsize])
    step = torch.randint(-1, 2, values.shape, dtype=bits.dtype, device=values.device)
    return torch.where((values == 0) | ~values.isfinite(), bits, bits + step).view(values.dtype)


def difference(ours: torch.Tensor, native: Native, exact: torch.Tensor) -> str:
    """What is wrong with ``ours``, "" if nothing; ``exact`` is float64, ``native`` is torch's result in the dtype of ours.

    Of several such results the first says where NaN and infinities are.
    """
    several = [native] if isinstance(native, torch.Tensor) else list(native)
    native = several[0]
    if ours.dtype != native.dtype:
        return f"dtype {ours.dtype}, native has {native.dtype}"
    if ours.shape != native.shape:
        return f"shape {tuple(ours.shape)}, native has {tuple(native.shape)}"
    if not ours.dtype.is_floating_point:
        return "" if torch.equal(ours, native) else f"integers differ in {int((ours != native).sum())} places"
    dtype, eps = ours.dtype, torch.finfo(ours.dtype).eps
    fits = _special_alike(ours, native)
    if not bool(fits.all()):
        fits |= _special_alike(ours, exact)
        if not bool(fits.all()):
            return f"NaN or infinity differ in {int((~fits).sum())} places"
    if not ours.numel():
        return ""
    exact = exact.double()
    (error, largest), native_error = _error(ours, exact), max(_error(n, exact)[0] for n in several)
    allowed = 2 * native_error + FLOOR_ULPS.get(dtype, FLOOR_ULPS_SMALLER) * eps * largest
    if bool(error <= allowed):  # written so that a NaN fails
        return ""
    return f"error {error:.3g}, allowed {allowed:.3g} (native's error {native_error:.3g})"


def _special_alike(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Where both are finite, both NaN, or the same infinity."""
    return torch.where(
        reference.isfinite(), values.isfinite(), (values == reference) | (values.isnan() & reference.isnan())
    )


def _error(values: torch.Tensor, exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest error, and the largest exact value, where both are finite."""
    error, size = (values - exact).abs(), exact.abs()
    if not bool(error.isfinite().all()):  # choosing is slow, and all are finite as a rule
        finite = values.isfinite() & exact.isfinite()
        error, size = error.where(finite, 0.0), size.where(finite, 0.0)
    return error.max(), size.max()


def compare(ours: torch.Tensor, native: Native, exact: torch.Tensor, what: str = "result") -> None:
    """Raises AssertionError, which names ``what`` and its :func:`difference`, unless ``ours`` is right."""
    wrong = difference(ours, native, exact)
    if wrong:
        raise AssertionError(f"{what}: {wrong}")
