"""``torchsmith.explain``: what computed a call, and what computes each layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from . import chains, dispatch, tuned, tuning
from . import nn as ours

__all__ = ["Line", "explain"]


@dataclass(frozen=True)
class Line:
    """One call of an op of ours, or one layer of torch.nn that makes none."""

    layer: str  #: its name in the model; "" for the model itself
    kind: str  #: class of the layer
    op: str  #: public op, "" for a layer of torch.nn
    shapes: str  #: of its tensors, as far as they fit
    implementation: str  #: "cpp", "triton" or "torch"
    reason: str
    us: dict[str, float]  #: what the table in use says of such a call: candidate -> microseconds; empty if unknown


def explain(model: Callable[..., Any] | None = None, *inputs: Any, **keywords: Any) -> Any:
    """Without arguments, the last choice made by a public op; with a model, what computes each of its layers.

    Given inputs, the model is called once, as the caller would: under ``torch.no_grad()`` inference is explained, else
    training. A table is printed: layer, op, shapes, implementation, why, and measured times where ``torchsmith.tune`` left
    any. A module alone is not called: the table says what :func:`torchsmith.convert` does with each layer, or did.

    Args:
        model: a module, or any function that uses torchsmith's ops.
        inputs, keywords: what it is called with.

    Returns:
        A :class:`Decision` (None before the first call of an op); with a model, the list of its :class:`Line`; for a module
        alone, of its :class:`~torchsmith.convert.Layer`.
    """
    if model is None:
        return dispatch.explain()
    if not callable(model):
        raise TypeError(f"explain: model: expected a module or a function, got {type(model).__name__}")
    if isinstance(model, nn.Module) and not inputs and not keywords:
        from .convert import survey

        layers = survey(model)
        _print(("layer", "verdict", "why"), ((_named(line), line.verdict, line.reason) for line in layers))
        return layers
    lines: list[Line] = []
    with _layers(model, lines) as path, _calls(path, lines):
        model(*inputs, **keywords)
    _finish(lines)
    _show(lines)
    return lines


@contextmanager
def _layers(model: Any, lines: list[Line]) -> Iterator[list[tuple[str, nn.Module]]]:
    """The layers that are being called, innermost last. A layer without layers that calls none of our ops gets a line."""
    path: list[tuple[str, nn.Module]] = []
    begun: list[int] = []
    handles = []

    def enter(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        path.append((name, module))
        begun.append(len(lines))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name, _ = path.pop()
        if begun.pop() == len(lines) and not list(module.children()):
            _finish(lines)
            why = "calls no op of torchsmith"
            if type(module).__module__.startswith("torch.nn"):
                why = "a layer of torch.nn"
            elif isinstance(module, ours.AvgPool2d) and args:  # none where the input was given by name
                why = module.why_torch(*args) or why
            lines.append(Line(name, type(module).__name__, "", _shapes(args), "torch", why, {}))

    named = list(model.named_modules()) if isinstance(model, nn.Module) else []
    names = {id(module): name for name, module in named}

    def together(row: tuple[nn.Module, ...], compute: Callable[[], Any]) -> Any:
        path.append((names.get(id(row[0]), ""), row[0]))
        output = compute()
        path.pop()
        _finish(lines)
        for module in row[1:]:
            with_it = f"in one pass with {names.get(id(row[0]), 'the layer before')}"
            lines.append(
                Line(names.get(id(module), ""), type(module).__name__, "", "", lines[-1].implementation, with_it, {})
            )
        return output

    for name, module in named:
        handles.append(module.register_forward_pre_hook(lambda m, a, name=name: enter(name, m, a)))
        handles.append(module.register_forward_hook(leave))
    chains.onlookers.update(handle.id for handle in handles)
    chains.told = together
    try:
        yield path
    finally:
        chains.told = None
        chains.onlookers.difference_update(handle.id for handle in handles)
        for handle in handles:
            handle.remove()


@contextmanager
def _calls(path: list[tuple[str, nn.Module]], lines: list[Line]) -> Iterator[None]:
    """Every call of an op inside gets a line; what decides it is asked as ever."""
    from .spec import all_specs

    before = dict(dispatch.KNOWN)

    def note(op: str, tensors: tuple[Any, ...], others: tuple[Any, ...]) -> str:
        _finish(lines)
        name, module = path[-1] if path else ("", None)
        entry = tuned.entry_of(tuning.call_of(op, tensors, others).key)
        kind = "" if module is None else type(module).__name__
        lines.append(Line(name, kind, op, _shapes(tensors), "", "", {} if entry is None else entry.us))
        known = before.get(op)
        return known(tensors, others) if known and dispatch.automatic(op) else ""

    dispatch.observe({spec.name: lambda t, o, op=spec.name: note(op, t, o) for spec in all_specs()})
    try:
        yield
    finally:
        dispatch.observe(None)


def _finish(lines: list[Line]) -> None:
    """The last call is over: what computed it is known."""
    if lines and not lines[-1].implementation:
        made = dispatch.explain()
        lines[-1] = replace(lines[-1], implementation=made.implementation, reason=made.reason)


def _shapes(values: Any) -> str:
    from .bench.pairs import leaves

    shapes = ["x".join(map(str, t.shape)) or "scalar" for t in leaves(values)]
    return ", ".join(shapes[:3]) + (f", … ({len(shapes)})" if len(shapes) > 3 else "")


def _named(line: Any) -> str:
    return f"{line.layer or '-'} ({line.kind})" if line.kind else "-"


def _show(lines: list[Line]) -> None:
    rows = []
    for line in lines:
        measured = ", ".join(f"{name} {us:.4g}" for name, us in line.us.items()) or "-"
        rows.append((_named(line), line.op or "-", line.shapes, line.implementation, line.reason, measured))
    _print(("layer", "op", "shapes", "implementation", "why", "measured us"), rows)


def _print(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for cells in rows:
        table.add_row(*map(Text, cells))
    (console if console.is_terminal else Console(width=160)).print(table)
