"""The comparator of the contract: an error rule that vagueness cannot pass.

A result is right when its error against the float64 reference is at most twice the error of torch's own result in the
same dtype, plus a rounding floor; and NaN and infinities stand where torch's stand. The tests and ``torchsmith selftest``
judge by it.

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
    finite = torch.isfinite(native)
    fits = torch.where(finite, torch.isfinite(ours), (ours == native) | (ours.isnan() & native.isnan()))
    if not bool(fits.all()):
        return f"NaN or infinity differ in {int((~fits).sum())} places"
    finite &= torch.isfinite(exact)
    if not bool(finite.any()):
        return ""
    if not bool(finite.all()):  # picking is slow, and all are finite as a rule
        ours, exact, several = ours[finite], exact[finite], [n[finite] for n in several]
    exact = exact.double()
    error, native_error = (ours - exact).abs().max(), max((n - exact).abs().max() for n in several)
    allowed = 2 * native_error + FLOOR_ULPS.get(dtype, FLOOR_ULPS_SMALLER) * eps * exact.abs().max()
    if bool(error <= allowed):  # written so that a NaN fails
        return ""
    return f"error {error:.3g}, allowed {allowed:.3g} (native's error {native_error:.3g})"


def compare(ours: torch.Tensor, native: Native, exact: torch.Tensor, what: str = "result") -> None:
    """Raises AssertionError, which names ``what`` and its :func:`difference`, unless ``ours`` is right."""
    wrong = difference(ours, native, exact)
    if wrong:
        raise AssertionError(f"{what}: {wrong}")
