"""Layers in a row that run as one op: a convolution with the ReLU, or ReLU and pool, behind it; a linear layer with its ReLU;
an embedding with the recurrent layer that reads it.

The caller of the layers fuses them (:class:`torchsmith.nn.Sequential`, a forward rewritten by :mod:`torchsmith.rewrite`), in
each call anew: the layers themselves stay what they are, so that one that is replaced, used elsewhere or given hooks later
does what it would do in torch.nn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

from . import nn as ours
from . import ops

__all__ = ["Row", "alone", "is_table", "row", "run", "run_table"]


class Row(NamedTuple):
    """What follows a layer and can run with it."""

    count: int  #: of layers, the first included
    relu: nn.Module
    pool: nn.Module | None = None
    pool_first: bool = False  #: the pool stands before the ReLU, which is the same


def row(layers: Sequence[nn.Module], at: int, kind: Callable[[nn.Module], type] = type) -> Row | None:
    """The row that begins at ``layers[at]``; ``kind`` says what a layer is, or will be."""
    first, left = kind(layers[at]), len(layers) - at - 1
    if left < 1 or (first is not ours.Conv2d and first is not ours.Linear):
        return None
    second = layers[at + 1]
    third = layers[at + 2] if left > 1 else None
    if kind(second) is nn.ReLU:
        if first is ours.Conv2d and third is not None and window(third) is not None:
            return Row(3, second, third)
        return Row(2, second)
    if first is ours.Conv2d and window(second) is not None and third is not None and kind(third) is nn.ReLU:
        return Row(3, third, second, True)
    return None


def window(pool: Any) -> dict[str, Any] | None:
    """The arguments of a pool that the convolution's op computes; None for another module, or another pool."""
    if type(pool) is tuple:
        kernel_size, stride, padding = pool
    elif type(pool) is ours.MaxPool2d or type(pool) is nn.MaxPool2d:
        if pool.ceil_mode or pool.return_indices or pool.dilation not in (1, (1, 1)):
            return None
        kernel_size, stride, padding = pool.kernel_size, pool.stride, pool.padding
    else:
        return None
    return {"pool_kernel_size": kernel_size, "pool_stride": stride, "pool_padding": padding}


#: Hooks (ids) that only look on, and who is told of layers that run as one in their place: torchsmith.explain.
onlookers: set[int] = set()
told: Callable[[tuple[nn.Module, ...], Callable[[], Tensor]], Tensor] | None = None


def alone(module: nn.Module) -> bool:
    """Whether nobody sees the module being called: it has no hooks, and there are none on all modules."""
    if "forward" in module.__dict__ or _module._has_any_global_hook():
        return False
    if not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks):
        return True
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return bool(onlookers) and all(onlookers.issuperset(some) for some in hooks)


def run(input: Tensor, layer: nn.Module, relu: nn.Module | None, pool: Any = None, pool_first: bool = False) -> Tensor:
    """``pool(relu(layer(input)))``, or ``relu(pool(layer(input)))``: as one op where that can be, one by one elsewhere.

    Args:
        relu: a module; None is a call of ``F.relu``.
        pool: a module; the (kernel_size, stride, padding) of a call of ``F.max_pool2d``; or None, no pool.
    """
    if alone(layer) and (relu is None or (type(relu) is nn.ReLU and alone(relu))):
        if type(layer) is ours.Linear and pool is None:
            return _as_one((layer, relu), ops.linear_relu, input, layer.weight, layer.bias)
        if type(layer) is ours.Conv2d:
            size = window(pool) if type(pool) is tuple or (pool is not None and alone(pool)) else None
            if size is not None:
                fused = ops.conv2d_relu_maxpool2d
                return _as_one((layer, relu, pool), layer._run, fused, input, layer.weight, layer.bias, **size)
            if pool is None or not pool_first:
                y = _as_one((layer, relu), layer._run, ops.conv2d_relu, input, layer.weight, layer.bias)
                return y if pool is None else _pooled(y, pool)
    y = layer(input)
    if pool_first:
        y = _pooled(y, pool)
    y = F.relu(y) if relu is None else relu(y)
    return y if pool is None or pool_first else _pooled(y, pool)


def is_table(embedding: nn.Module) -> bool:
    """Whether an embedding looks rows of its weight up, and nothing more, forward and backward."""
    plain = type(embedding) is nn.Embedding and embedding.padding_idx is None and embedding.max_norm is None
    return plain and not embedding.scale_grad_by_freq and not embedding.sparse


def run_table(indices: Tensor, embedding: nn.Module, layer: nn.Module, hx: Tensor | None = None) -> Any:
    """``layer(embedding(indices), hx)`` of an RNN or GRU: as one op where that can be."""
    if type(layer) in (ours.RNN, ours.GRU) and is_table(embedding) and alone(embedding) and alone(layer):
        return _as_one((embedding, layer), layer, indices, hx, embedding=embedding.weight)
    return layer(embedding(indices), hx)


def _as_one(layers: tuple[Any, ...], function: Callable[..., Tensor], *args: Any, **keywords: Any) -> Tensor:
    if told is None:
        return function(*args, **keywords)
    return told(tuple(m for m in layers if isinstance(m, nn.Module)), lambda: function(*args, **keywords))


def _pooled(input: Tensor, pool: Any) -> Tensor:
    return ops.max_pool2d(input, *pool) if type(pool) is tuple else pool(input)
