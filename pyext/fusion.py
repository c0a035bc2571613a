"""What of a traced forward is computed by torchsmith: rows of layers as one op each, functions of torch by ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from . import chains, ops
from . import nn as ours

__all__ = ["Found", "fuse"]

Kind = Callable[[nn.Module], type]
RELUS = (F.relu, torch.relu, torch.relu_, F.relu_)
POOLS = (F.max_pool2d, torch.max_pool2d)
#: The same arguments, by the same names.
FUNCTIONS = {
    F.conv2d: ops.conv2d,
    F.linear: ops.linear,
    F.max_pool2d: ops.max_pool2d,
    torch.max_pool2d: ops.max_pool2d,
}
POOL_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


class Found(NamedTuple):
    """What runs as one: names of layers, or of functions that the forward calls."""

    names: tuple[str, ...]
    layers: tuple[str, ...]  #: those of them that are layers

    def __str__(self) -> str:
        return " + ".join(self.names)


def fuse(graph: fx.Graph, module: nn.Module, kind: Kind) -> tuple[Found, ...]:
    """Changes the graph of ``module``'s forward; returns what was found. ``kind`` says what a layer will be."""
    found = []
    for node in list(graph.nodes):
        made = _row(graph, module, node, kind) or _table(graph, module, node, kind)
        if made is not None:
            found.append(made)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in FUNCTIONS:
            node.target = FUNCTIONS[node.target]
            found.append(Found((node.target.__name__,), ()))
    return tuple(found)


def _row(graph: fx.Graph, module: nn.Module, first: fx.Node, kind: Kind) -> Found | None:
    """Makes one call of the row that begins with a node, if one does."""
    layer = _layer(module, first)
    what = kind(layer) if layer is not None else None
    if what is None and first.op == "call_function":
        what = {F.conv2d: ours.Conv2d, F.linear: ours.Linear}.get(first.target)
    if what not in (ours.Conv2d, ours.Linear) or (layer is not None and _only_argument(first) is None):
        return None
    nodes, pool_first = _followers(module, first, kind, with_pool=what is ours.Conv2d)
    relu = next((n for n in nodes if _is_relu(module, n, kind)), None)
    if relu is None:
        return None
    pool = next((n for n in nodes if n is not relu), None)
    with graph.inserting_before(first):
        window = None if pool is None else _window(graph, module, pool)
        if layer is None:
            new = _one_function(graph, first, what, window)
        else:
            relu_part = graph.get_attr(relu.target) if relu.op == "call_module" else None
            arguments = (_only_argument(first), graph.get_attr(first.target), relu_part, window, pool_first)
            new = graph.call_function(chains.run, arguments)
    nodes[-1].replace_all_uses_with(new)
    names = tuple(_name(n) for n in (first, *nodes))
    layers = tuple(str(n.target) for n in (first, *nodes) if n.op == "call_module")
    for node in (*reversed(nodes), first):
        graph.erase_node(node)
    return Found(names, layers)


def _table(graph: fx.Graph, module: nn.Module, first: fx.Node, kind: Kind) -> Found | None:
    """Makes one call of an embedding and the recurrent layer that alone takes it."""
    layer, user = _layer(module, first), _only_user(first)
    if layer is None or user is None or not chains.is_table(layer) or _only_argument(first) is None:
        return None
    second = _layer(module, user)
    if second is None or kind(second) not in (ours.RNN, ours.GRU) or len(user.args) not in (1, 2) or user.kwargs:
        return None
    with graph.inserting_before(user):
        arguments = (_only_argument(first), graph.get_attr(first.target), graph.get_attr(user.target), *user.args[1:])
        user.replace_all_uses_with(graph.call_function(chains.run_table, arguments))
    names = (str(first.target), str(user.target))
    graph.erase_node(user)
    graph.erase_node(first)
    return Found(names, names)


def _followers(module: nn.Module, first: fx.Node, kind: Kind, with_pool: bool) -> tuple[list[fx.Node], bool]:
    """The calls behind a layer that can run with it, each of which is all that is made of the one before."""
    second = _only_user(first)
    if second is None:
        return [], False
    third = _only_user(second)
    if _is_relu(module, second, kind):
        pooled = with_pool and third is not None and _is_pool(module, third)
        return [second, third] if pooled else [second], False
    if with_pool and _is_pool(module, second) and third is not None and _is_relu(module, third, kind):
        return [second, third], True
    return [], False


def _layer(module: nn.Module, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(node.target) if node.op == "call_module" else None


def _only_user(node: fx.Node) -> fx.Node | None:
    """The one node that takes this one, once and as its input."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    takes = [a for a in (*user.args, *user.kwargs.values()) if a is node]
    return user if len(takes) == 1 and len(user.all_input_nodes) >= 1 and _input(user) is node else None


def _input(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _only_argument(node: fx.Node) -> Any:
    count = len(node.args) + len(node.kwargs)
    return _input(node) if count == 1 else None


def _is_relu(module: nn.Module, node: fx.Node, kind: Kind) -> bool:
    if node.op == "call_module":
        return kind(_layer(module, node)) is nn.ReLU and _only_argument(node) is not None
    if node.op == "call_method":
        return node.target in ("relu", "relu_") and len(node.args) == 1 and not node.kwargs
    return node.op == "call_function" and node.target in RELUS


def _is_pool(module: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return chains.window(_layer(module, node)) is not None and _only_argument(node) is not None
    if node.op != "call_function" or node.target not in POOLS:
        return False
    given = _pool_arguments(node)
    plain = given.get("dilation", 1) in (1, (1, 1)) and not given.get("ceil_mode") and not given.get("return_indices")
    return plain and all(_movable(given.get(name)) for name in ("kernel_size", "stride", "padding"))


def _pool_arguments(node: fx.Node) -> dict[str, Any]:
    return dict(zip(POOL_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)


def _movable(value: Any) -> bool:
    """Whether it means the same where the first layer is called: a number, or something read of the module."""
    if isinstance(value, (tuple, list)):
        return all(_movable(v) for v in value)
    return value is None or type(value) is int or (isinstance(value, fx.Node) and value.op == "get_attr")


def _window(graph: fx.Graph, module: nn.Module, pool: fx.Node) -> Any:
    if pool.op == "call_module":
        return graph.get_attr(pool.target)
    given = _pool_arguments(pool)
    return fx.node.map_arg(
        (given["kernel_size"], given.get("stride") or None, given.get("padding", 0)), lambda n: graph.get_attr(n.target)
    )


def _one_function(graph: fx.Graph, first: fx.Node, what: type, window: Any) -> fx.Node:
    keywords = dict(first.kwargs)
    if window is not None:
        keywords |= dict(zip(("pool_kernel_size", "pool_stride", "pool_padding"), window, strict=True))
    if what is ours.Linear:
        function = ops.linear_relu
    else:
        function = ops.conv2d_relu if window is None else ops.conv2d_relu_maxpool2d
    return graph.call_function(function, first.args, keywords)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__
