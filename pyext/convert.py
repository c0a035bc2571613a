"""``torchsmith.convert``: a model of torch.nn on torchsmith's ops, its parameters and names as they are; ``revert`` undoes it.

What is changed is the class of a module, and nothing in it: a layer of torch.nn becomes its twin in :mod:`torchsmith.nn`, a
Sequential the one that runs rows of layers as one, and a module whose forward calls such rows gets a forward that does
(:mod:`torchsmith.rewrite`). Hooks, parameters, buffers and whatever else refers to the modules stay.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedTensorMixin

from . import chains, fusion, rewrite
from . import nn as ours
from .dispatch import KERNEL_DTYPES

__all__ = ["Layer", "convert", "revert", "survey"]

NAMES = ("AvgPool2d", "Conv2d", "MaxPool2d", "Linear", "RNNCell", "GRUCell", "RNN", "GRU", "Sequential")
TWINS: dict[type, type] = {getattr(nn, name): getattr(ours, name) for name in NAMES}
NATIVES = {twin: native for native, twin in TWINS.items()}
OURS = frozenset(getattr(ours, name) for name in ours.__all__)
#: In the __dict__ of a module whose class convert changed, so that revert leaves alone what was torchsmith's from the start.
MARK = "_torchsmith_converted"


@dataclass(frozen=True)
class Layer:
    """What ``convert`` does with one layer, or did."""

    layer: str  #: its name in the model; "" for the model itself
    kind: str  #: class of the layer
    verdict: str  #: "swapped", "fused" or "kept"
    reason: str


def convert(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model on torchsmith's ops: same results within rounding, same state_dict.

    Conv2d, MaxPool2d, AvgPool2d with stride 1, Linear, RNNCell, GRUCell, RNN and GRU of torch.nn become torchsmith's;
    Conv2d -> ReLU (-> MaxPool2d, or with the two the other way round) and Linear -> ReLU run as one op, in a Sequential and in
    a forward that ``torch.fx`` can trace and that is straight-line code; so does there an Embedding with the RNN or GRU that reads
    it. Everything else is left alone: subclasses, scripted,
    quantized and lazily initialised layers, dtypes and devices without kernels. :func:`torchsmith.explain` says for each layer
    what was done and why. Calls that native computes faster on this machine are found, and left to it, by :func:`torchsmith.tune`.

    Args:
        model: any module, on any device, in training or not.
        inplace: change the modules of ``model`` itself. Else it stays as it is, and the result is a model of new modules with
            the same parameters and buffers (the tensors themselves: training either trains both).

    Returns:
        The converted model. A warning says if nothing of it could be converted.

    Raises:
        TypeError: ``model`` is no module, or (``inplace=False``) something in it cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model: expected a torch.nn.Module, got {type(model).__name__}")
    model = model if inplace else _with_new_modules(model)
    plan = _plan(model)
    if not plan.classes and not any(type(m) in OURS for m in model.modules()):
        reasons = dict.fromkeys(f"{line.kind}: {line.reason}" for line in plan.lines)
        warnings.warn(f"convert: nothing was converted ({'; '.join([*reasons][:5])})", stacklevel=2)
    _apply([(m, plan.classes[id(m)], True) for m in model.modules() if id(m) in plan.classes])
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undoes :func:`convert`, in place, in whatever part of a model is given; returns the model.

    It computes bit by bit what the model before computed from the same parameters. Layers that were torchsmith's before
    ``convert`` stay so. Raises TypeError for what is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert: model: expected a torch.nn.Module, got {type(model).__name__}")
    changes = []
    for module in model.modules():
        native = rewrite.native_class(type(module))
        if native is None and MARK in module.__dict__:
            native = NATIVES.get(type(module))
        if native is not None:
            changes.append((module, native, False))
    _apply(changes)
    return model


def survey(model: nn.Module) -> list[Layer]:
    """A line for each layer, converted or not, and for each module whose forward matters."""
    return _plan(model).lines


def _apply(changes: list[tuple[nn.Module, type, bool]]) -> None:
    """Sets the classes and marks, all of them or none."""
    before: list[tuple[nn.Module, type, bool]] = []
    try:
        for module, cls, mark in changes:
            before.append((module, type(module), MARK in module.__dict__))
            _become(module, cls, mark)
    except BaseException:
        for state in reversed(before):
            _become(*state)
        raise


def _become(module: nn.Module, cls: type, mark: bool) -> None:
    object.__setattr__(module, "__class__", cls)
    if mark:
        module.__dict__[MARK] = True
    else:
        module.__dict__.pop(MARK, None)


# --------------------------------------------------------------------------------------------------------------- the plan


@dataclass
class _Plan:
    lines: list[Layer] = field(default_factory=list)
    classes: dict[int, type] = field(default_factory=dict)  #: id of a module -> the class it gets
    kept: dict[int, str] = field(
        default_factory=dict
    )  #: id of a module -> why it is left alone; "" where it only holds others
    fused: dict[int, str] = field(default_factory=dict)  #: id of a module -> what it runs with
    apart: dict[int, str] = field(default_factory=dict)  #: id of a layer -> why it does not

    def note(self, names: str, layers: list[nn.Module]) -> None:
        """Layers that run as one, while none of them has hooks."""
        if all(map(chains.alone, layers)):
            self.fused.update({id(layer): f"{names} in one pass" for layer in layers})
        else:
            self.apart.update({id(layer): f"; apart from {names} while one of them has hooks" for layer in layers})


def _plan(model: nn.Module) -> _Plan:
    """What to do with every module. Nothing is changed."""
    plan = _Plan()
    modules = dict(model.named_modules())
    for module in modules.values():
        cls, why = _twin(module)
        if cls is not None:
            plan.classes[id(module)] = cls
        plan.kept[id(module)] = why

    def kind(module: nn.Module) -> type:
        return plan.classes.get(id(module), type(module))

    for module in modules.values():
        if _runs_in_a_row(module):
            rows = _rows(module, kind)
            if rows and type(module).forward is nn.Sequential.forward:
                inherits = type(module) is not nn.Sequential
                plan.classes[id(module)] = _inheriting(type(module)) if inherits else ours.Sequential
            for text, members in rows:
                plan.note(text, members)
        elif type(module).__dict__.get("_torchsmith"):
            _note_found(module, type(module)._torchsmith[3], plan)
        elif _may_be_rewritten(module):
            try:
                _rewrite(module, kind, plan)
            except rewrite.Untraceable as why:
                if any(kind(part) in (ours.Conv2d, ours.Linear) for part in _called(module)):
                    plan.kept[id(module)] = f"forward not rewritten, layers alone are swapped: {why}"
    for name, module in modules.items():
        verdict = _verdict(module, kind(module), plan)
        if verdict is not None:
            plan.lines.append(Layer(name, type(module).__name__, *verdict))
    return plan


def _verdict(module: nn.Module, becomes: type, plan: _Plan) -> tuple[str, str] | None:
    """None for a module that only holds others."""
    holds = next(module.children(), None) is not None
    if id(module) in plan.fused:
        return "fused", plan.fused[id(module)]
    if becomes in OURS and not holds:
        if MARK not in module.__dict__ and type(module) in OURS:
            return "kept", "a layer of torchsmith already"
        return "swapped", f"torchsmith.nn.{becomes.__name__}{plan.apart.get(id(module), '')}"
    return ("kept", plan.kept[id(module)]) if not holds or plan.kept[id(module)] else None


def _twin(module: nn.Module) -> tuple[type | None, str]:
    """The class a layer gets, or None and why not. Sequential and whatever else holds layers is not decided here."""
    cls = type(module)
    base = next((native for native in TWINS if isinstance(module, native)), None)
    if isinstance(module, torch.jit.ScriptModule):
        return None, "scripted"
    if "quantized" in cls.__module__ or ".ao.nn" in cls.__module__:
        return None, "quantized, or made for it"
    if any(isinstance(p, UninitializedTensorMixin) for p in (*module._parameters.values(), *module._buffers.values())):
        return None, "lazily initialised: run it once, then convert"
    if cls is nn.Sequential or cls in OURS or rewrite.native_class(cls) is not None:
        return None, ""
    if cls not in TWINS:
        if base in (None, nn.Sequential):
            holds = next(module.children(), None) is not None
            return None, "" if holds else "nothing of torchsmith computes it"
        if torch.nn.utils.parametrize.is_parametrized(module):
            return None, f"parametrized, so of a class of its own instead of {base.__name__}"
        return None, f"a subclass of {base.__name__}, which may compute something else"
    if "forward" in module.__dict__:
        return None, "its forward was replaced"
    for name, t in module.named_parameters(recurse=False):
        if t.dtype not in KERNEL_DTYPES:
            return None, f"no kernel for {t.dtype} ({name})"
        if t.device.type not in ("cpu", "cuda", "meta"):
            return None, f"no kernel for device {t.device.type}"
    if cls is nn.AvgPool2d and (why := ours.AvgPool2d.unequal(module)):
        return None, why
    return TWINS[cls], ""


def _runs_in_a_row(module: nn.Module) -> bool:
    """Whether it is a Sequential that calls its layers one after the other."""
    return _is_plain(module) and type(module).forward in (nn.Sequential.forward, ours.Sequential.forward)


def _is_plain(module: nn.Module) -> bool:
    return not isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)) and "forward" not in module.__dict__


def _rows(module: nn.Module, kind: Callable[[nn.Module], type]) -> list[tuple[str, list[nn.Module]]]:
    names, layers = list(module._modules), list(module._modules.values())
    found, at = [], 0
    while at < len(layers):
        row = None if layers[at] is None else chains.row(layers, at, kind)
        count = 1 if row is None else row.count
        if row is not None:
            found.append((" + ".join(names[at : at + count]), layers[at : at + count]))
        at += count
    return found


def _inheriting(cls: type) -> type:
    source = "forward = Sequential.forward"
    return rewrite.class_of(cls, source, (("Sequential", ours.__name__, "Sequential"),), ())


def _may_be_rewritten(module: nn.Module) -> bool:
    return _is_plain(module) and type(module).__module__.partition(".")[0] != "torch" and type(module) not in OURS


def _called(module: nn.Module) -> list[nn.Module]:
    """The layers that a module's own forward is likely to call: its children, also those in lists."""
    found = []
    for child in module.children():
        found += child.children() if isinstance(child, (nn.ModuleList, nn.ModuleDict)) else [child]
    return found


def _rewrite(module: nn.Module, kind: Callable[[nn.Module], type], plan: _Plan) -> None:
    graph = rewrite.trace(module)
    found = fusion.fuse(graph, module, kind)
    if found:
        source, imports = rewrite.written(graph)
        plan.classes[id(module)] = rewrite.class_of(type(module), source, imports, found)
        _note_found(module, found, plan)


def _note_found(module: nn.Module, found: tuple[fusion.Found, ...], plan: _Plan) -> None:
    if found:
        plan.fused[id(module)] = f"forward rewritten: {', '.join(map(str, found))}"
    for each in found:
        plan.note(str(each), [module.get_submodule(name) for name in each.layers])


# ------------------------------------------------------------------------------------------------------- inplace=False


def _with_new_modules(model: nn.Module) -> nn.Module:
    """A model of new modules whose parameters, buffers and hooks are the old ones themselves."""
    memo: dict[int, Any] = {}
    modules = {id(m) for m in model.modules()}

    def keep(value: Any) -> None:
        memo[id(value)] = value

    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            keep(module)
            continue
        held = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        for value in held:
            if isinstance(value, torch.Tensor):
                keep(value)
        for name, hooks in vars(module).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                for hook in hooks.values():
                    if id(getattr(hook, "__self__", None)) not in modules:  # a method of the model goes with the copy
                        keep(hook)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(
            f"convert: model: it cannot be copied ({type(error).__name__}: {error}); convert it with inplace=True"
        ) from error
