"""What Triton's interpreter works out anew for each operation, worked out once: over half of its time, none of its results.

For a process that interprets and does nothing else: internals of one release of Triton are replaced. Another is left as it is,
and takes longer.
"""

import math
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import triton
import triton.language as tl
from triton.language import semantic
from triton.runtime import interpreter

core = tl.core


@lru_cache(None)
def _sizes(*shape):
    return core.constexpr(math.prod(shape)), core.tuple([core.constexpr(size) for size in shape])


def _tensor(self, handle, type):
    core.base_value.__init__(self)
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _sizes(*type.shape.values) if type.is_block() else _sizes()


def _remembered_blocks(init):
    found = {}

    def block_type(self, element_ty, shape):
        key = element_ty.name, *(size.value if isinstance(size, core.constexpr) else size for size in shape)
        if key not in found:
            init(self, element_ty, shape)
            found[key] = self.shape, self.numel, self.name
        self.element_ty = element_ty
        self.shape, self.numel, self.name = found[key]

    return block_type


def _remembered_dtypes(numpy_dtype):
    found = {}

    def dtype_of(type):
        element = type.element_ty if isinstance(type, core.block_type) else type
        if isinstance(element, core.pointer_type):
            return np.dtype(np.uint64)
        if element.name not in found:
            found[element.name] = numpy_dtype(element)
        return found[element.name]

    return dtype_of


def _patched_for_good(patch):
    """Each launch, and each call of a function in it, puts the interpreter's operations into triton.language."""
    patch(SimpleNamespace(__globals__={"tl": tl, "core": core}))
    return lambda fn: SimpleNamespace(restore=lambda: None)


def _alike_as_they_are(broadcast):
    def broadcast_impl_value(self, lhs, rhs):
        left, right = lhs.type, rhs.type
        if left.is_block() and right.is_block() and left.shape.values == right.shape.values:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    return broadcast_impl_value


def _same_type_as_it_is(cast):
    def quick(self, input, dst_ty, fp_downcast_rounding=None):
        if fp_downcast_rounding is None and input.type.scalar is dst_ty.scalar:
            return input
        return cast(self, input, dst_ty, fp_downcast_rounding)

    return quick


def install():
    if not triton.__version__.startswith("3.9."):
        return
    for place, name, better in (
        (interpreter, "_patch_lang", _patched_for_good),
        (interpreter, "_get_np_dtype", _remembered_dtypes),
        (core.block_type, "__init__", _remembered_blocks),
        (core.tensor, "__init__", lambda _: _tensor),
        (semantic.TritonSemantic, "broadcast_impl_value", _alike_as_they_are),
        (semantic.TritonSemantic, "cast", _same_type_as_it_is),
    ):
        setattr(place, name, better(getattr(place, name)))
