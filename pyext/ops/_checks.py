"""Checks that several rows share. Messages keep ATen's wording and name the arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def only_tensors(op: str, needed: int, **tensors: Tensor | None) -> None:
    """The first ``needed`` must be there, the others may be None."""
    for place, (name, t) in enumerate(tensors.items(), 1):
        if not isinstance(t, Tensor) and (t is not None or place <= needed):
            raise TypeError(f"{op}(): argument '{name}' (position {place}) must be Tensor, not {type(t).__name__}")


def same_dtype(op: str, **tensors: Tensor | None) -> None:
    (first, reference), *rest = tensors.items()
    for name, t in rest:
        if t is not None and t.dtype != reference.dtype:
            raise RuntimeError(
                f"{op}: all arguments need the same dtype, but got {first}: {reference.dtype} and {name}: {t.dtype}"
            )


def same_device(op: str, **tensors: Tensor | None) -> None:
    (first, reference), *rest = tensors.items()
    for name, t in rest:
        if t is not None and t.device != reference.device:
            raise RuntimeError(
                f"{op}: Expected all tensors to be on the same device, but found {first} on "
                f"{reference.device} and {name} on {t.device}"
            )


def pair(op: str, name: str, value: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    """An int or one or two ints as (height, width)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    values = tuple(value) if isinstance(value, (tuple, list, torch.Size)) else None
    if values is None or not all(isinstance(v, (int, torch.SymInt)) for v in values):
        raise TypeError(f"{op}: argument '{name}' must be int or tuple of ints, not {type(value).__name__} ({value!r})")
    if len(values) not in (1, 2):
        raise RuntimeError(
            f"{op}: expected {name} to be a single integer value or a list of 2 values to match the "
            f"convolution dimensions, but got {name}={list(values)}"
        )
    return (values[0], values[-1])
