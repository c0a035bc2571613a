"""A module's forward, traced with torch.fx and written anew with layers fused and functions of torch replaced by ours.

Tracing must not change what a model does, and a trace holds only one way through the code. So a forward is rewritten only if
its code has one way: no branch, loop, ``with`` or side effect, in it and in what it calls (:func:`one_way`); and everything
it reads of the module stays a read in the new code, so that ``self.training``, replaced layers and hooks act as before.
"""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
import linecache
import operator
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

__all__ = ["Untraceable", "class_of", "native_class", "one_way", "trace", "written"]


class Untraceable(Exception):
    """Why a forward is left as it is."""


# ------------------------------------------------------------------------------------------- does the code have one way?

_JUMPS = {*dis.hasjrel, *dis.hasjabs, *getattr(dis, "hasjump", ())}
_EFFECTS = {
    "IS_OP": "tests identity",
    "CONTAINS_OP": "tests membership",
    "STORE_ATTR": "sets an attribute",
    "STORE_SUBSCR": "sets an item",
    "STORE_SLICE": "sets an item",
    "STORE_GLOBAL": "sets a global variable",
    "DELETE_ATTR": "deletes an attribute",
    "DELETE_SUBSCR": "deletes an item",
    "IMPORT_NAME": "imports",
    "SETUP_WITH": "uses with",
    "BEFORE_WITH": "uses with",
    "LOAD_SPECIAL": "uses with",
    "SETUP_FINALLY": "uses try",
    "PUSH_EXC_INFO": "uses try",
    "RAISE_VARARGS": "raises",
    "YIELD_VALUE": "yields",
    "RETURN_GENERATOR": "yields",
    "MAKE_FUNCTION": "defines a function",
    "LOAD_BUILD_CLASS": "defines a class",
}
_CONSTANTS = (int, float, complex, str, type(None), torch.dtype, torch.memory_format)


@functools.cache
def _recorded() -> frozenset[Any]:
    """Functions of torch that a proxy records instead of running them."""
    found = set()
    for function in torch.overrides.get_testing_overrides():
        if isinstance(function, (types.FunctionType, types.BuiltinFunctionType)):
            found.add(function)
    return frozenset(found)


def _of_torch(value: Any) -> bool:
    return str(getattr(value, "__module__", None) or "").partition(".")[0] == "torch"


def one_way(function: types.FunctionType, owner: type, seen: set[Any] | None = None) -> None:
    """Raises :class:`Untraceable` unless the function, and what it calls of its class and module, is straight-line code."""
    seen = set() if seen is None else seen
    code = function.__code__
    if code in seen:
        return
    seen.add(code)

    def refuse(what: str) -> None:
        raise Untraceable(f"{function.__qualname__} {what}")

    if code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS) or code.co_kwonlyargcount:
        refuse("takes *, ** or keyword-only arguments")
    instructions = list(dis.get_instructions(code))
    for at, instruction in enumerate(instructions):
        name = instruction.opname
        if instruction.opcode in _JUMPS:
            refuse("branches or loops")
        if name in _EFFECTS:
            refuse(_EFFECTS[name])
        if name in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"):
            value, words = _global(function, instruction.argval), instruction.argval
            for after in instructions[at + 1 :]:
                if not isinstance(value, types.ModuleType) or after.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    break
                value, words = getattr(value, after.argval, None), f"{words}.{after.argval}"
            if isinstance(value, types.FunctionType) and not _of_torch(value):
                one_way(value, owner, seen)
            elif not (isinstance(value, _CONSTANTS) or _is_recorded(value)):
                refuse(f"uses {words}, of which a trace says nothing")
        if name in ("LOAD_ATTR", "LOAD_METHOD"):
            method = inspect.getattr_static(owner, instruction.argval, None)
            if isinstance(method, types.FunctionType) and not _of_torch(method):
                one_way(method, owner, seen)


def _is_recorded(value: Any) -> bool:
    try:
        return value in _recorded()
    except TypeError:  # unhashable
        return False


def _global(function: types.FunctionType, name: str) -> Any:
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if name in cells:
        return cells[name].cell_contents
    if name in function.__globals__:
        return function.__globals__[name]
    return vars(__import__("builtins")).get(name, name)


# ------------------------------------------------------------------------------------------------------------ tracing


class _Proxy(fx.Proxy):
    """Records ``x += y`` as what it is; torch.fx makes a sum of it, which leaves x alone."""


def _in_place(target: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", target, (self, other), {})


for _target in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
    setattr(_Proxy, f"__{_target.__name__}__", _in_place(_target))


class _Tracer(fx.proxy.GraphAppendingTracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Part:
    """Stands for a module in a trace. What is read of it is recorded as read; another module in it is such a part too."""

    __slots__ = ("_module", "_path", "_tracer")

    def __init__(self, tracer: _Tracer, module: nn.Module, path: str) -> None:
        for name, value in (("_tracer", tracer), ("_module", module), ("_path", path)):
            object.__setattr__(self, name, value)

    def _below(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _part(self, name: str) -> _Part:
        return _Part(self._tracer, self._module._modules[name], self._below(name))

    def __getattr__(self, name: str) -> Any:
        module = self._module
        if module._modules.get(name) is not None:
            return self._part(name)
        static = None if name in module.__dict__ else inspect.getattr_static(type(module), name, None)
        if isinstance(static, types.FunctionType) and not self._path and not _of_torch(static):
            return types.MethodType(static, self)
        if hasattr(static, "__get__"):
            raise Untraceable(f"uses {self._below(name)}, a method or property of {type(module).__name__}")
        getattr(module, name)
        return self._tracer.create_proxy("get_attr", self._below(name), (), {})

    def __getitem__(self, key: Any) -> _Part:
        held = type(self._module) in (nn.ModuleList, nn.ModuleDict, nn.Sequential)
        if not held or isinstance(key, slice) or str(key) not in self._module._modules:
            raise Untraceable(f"looks [{key!r}] up in {self._path or 'the module'}")
        return self._part(str(key))

    def __call__(self, *args: Any, **keywords: Any) -> fx.Proxy:
        if not self._path:
            raise Untraceable("calls itself")
        return self._tracer.create_proxy("call_module", self._path, args, keywords)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Untraceable(f"sets {name}")

    def __iter__(self) -> Iterator[Any]:
        raise Untraceable(f"goes through {self._path or 'its layers'}")


def trace(module: nn.Module) -> fx.Graph:
    """The graph of the module's own forward. Raises :class:`Untraceable` with the reason."""
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType) or "forward" in module.__dict__:
        raise Untraceable("its forward is no plain method")
    one_way(forward, type(module))
    graph = fx.Graph()
    tracer = _Tracer(graph)
    try:
        arguments = []
        for parameter in list(inspect.signature(forward).parameters.values())[1:]:
            given = {} if parameter.default is parameter.empty else {"default_value": parameter.default}
            if given and not isinstance(parameter.default, (int, float, str, type(None))):
                raise Untraceable(f"its default for {parameter.name} cannot be written down")
            arguments.append(tracer.proxy(graph.placeholder(parameter.name, **given)))
        with torch.random.fork_rng(devices=()):
            graph.output(tracer.create_arg(forward(_Part(tracer, module, ""), *arguments)))
    except Untraceable:
        raise
    except Exception as error:  # whatever a stranger's code says to proxies
        raise Untraceable(f"torch.fx cannot trace it ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    return graph


# ------------------------------------------------------------------------------------------- the new forward, its class


def written(graph: fx.Graph) -> tuple[str, tuple[tuple[str, str, str], ...]]:
    """The graph as the source of a forward, and the names it uses: (name, module, attribute; "" is the module itself)."""
    code = graph.python_code("self")
    used = _names(compile(code.src, "<forward>", "exec"))
    return code.src, tuple((name, *_where(code.globals[name])) for name in sorted(used & set(code.globals)))


def _names(code: types.CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _where(value: Any) -> tuple[str, str]:
    if isinstance(value, types.ModuleType):
        return value.__name__, ""
    name = getattr(value, "__name__", None) or str(value)
    modules = (getattr(value, "__module__", None), "torch", "torch.nn.functional", "builtins", "math")
    for module in filter(None, modules):
        try:
            if _import(module, name) is value:
                return module, name
        except (ImportError, AttributeError):
            pass
    raise Untraceable(f"uses {name}, which cannot be imported by name")


def _import(module: str, attribute: str) -> Any:
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


@functools.lru_cache(maxsize=4096)
def class_of(native: type, source: str, imports: tuple[tuple[str, str, str], ...], fused: tuple[Any, ...]) -> type:
    """The module's class with another forward. It calls itself what ``native`` does, and is pickled by these arguments."""
    names = {name: _import(module, attribute) for name, module, attribute in imports}
    file = f"<torchsmith's forward of {native.__qualname__} {abs(hash((native, source))):x}>"
    exec(compile(source, file, "exec"), names)
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)  # for tracebacks
    own = {"forward": names["forward"], "__reduce_ex__": _reduce, "__doc__": native.__doc__}
    own |= {"__module__": native.__module__, "__qualname__": native.__qualname__}
    own |= {"_torchsmith": (native, source, imports, fused)}
    return type(native.__name__, (native,), own)


def native_class(cls: type) -> type | None:
    """The class that :func:`class_of` began with; None for another class."""
    made_of = vars(cls).get("_torchsmith")
    return None if made_of is None else made_of[0]


def _reduce(self: nn.Module, protocol: int) -> Any:
    cls = type(self)
    if "_torchsmith" not in vars(cls):  # a class made from ours
        return super(next(c for c in cls.__mro__ if "_torchsmith" in vars(c)), self).__reduce_ex__(protocol)
    make, args, *rest = super(cls, self).__reduce_ex__(protocol)
    if getattr(make, "__name__", "") == "__newobj__" and args[0] is cls:
        make, args = _new, (cls._torchsmith, *args[1:])
    return make, args, *rest


def _new(made_of: tuple[Any, ...], *args: Any) -> nn.Module:
    cls = class_of(*made_of)
    return cls.__new__(cls, *args)
