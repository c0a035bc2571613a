"""The comparator of the contract tests: an error rule that vagueness cannot pass.

A result is right when its error against the float64 reference is at most twice the error of torch's own result in the
same dtype, plus a rounding floor; and NaN and infinities stand where torch's stand.
"""

import torch

#: What rounding alone may cost, in units in the last place of the largest value, however lucky native was. In float64 the
#: reference is native itself, so its error shows as 0 and the floor must cover two sums of up to ~2,000 terms.
FLOOR_ULPS = {torch.float64: 64}
FLOOR_ULPS_SMALLER = 4


def compare(ours: torch.Tensor, native: torch.Tensor, exact: torch.Tensor, what: str = "result") -> None:
    """Raises AssertionError unless ``ours`` is right; ``exact`` is float64, ``native`` is torch's result in the dtype of ours."""
    assert ours.dtype == native.dtype, f"{what}: dtype {ours.dtype}, native has {native.dtype}"
    assert ours.shape == native.shape, f"{what}: shape {tuple(ours.shape)}, native has {tuple(native.shape)}"
    if not ours.dtype.is_floating_point:
        assert torch.equal(ours, native), f"{what}: integers differ in {int((ours != native).sum())} places"
        return
    dtype, eps = ours.dtype, torch.finfo(ours.dtype).eps
    finite = torch.isfinite(native)
    fits = torch.where(finite, torch.isfinite(ours), (ours == native) | (ours.isnan() & native.isnan()))
    assert bool(fits.all()), f"{what}: NaN or infinity differ in {int((~fits).sum())} places"
    finite &= torch.isfinite(exact)
    if not bool(finite.any()):
        return
    ours, native, exact = ours[finite].double(), native[finite].double(), exact[finite].double()
    error, native_error = (ours - exact).abs().max(), (native - exact).abs().max()
    allowed = 2 * native_error + FLOOR_ULPS.get(dtype, FLOOR_ULPS_SMALLER) * eps * exact.abs().max()
    # Written so that a NaN fails.
    assert not bool(~(error <= allowed)), (
        f"{what}: error {error:.3g}, allowed {allowed:.3g} (native's error {native_error:.3g})"
    )
