"""The measured table that ``auto`` obeys: for calls seen on this machine, how long each implementation takes.

An entry is a call's arguments as far as they matter (sizes, dtypes, layouts, device, other arguments, threads, with or without
autograd) and a median for each candidate; tuning.py measures it. Three kinds of calls have candidates: a public op has our
kernels and native; a native op has its C++ and its Triton kernel, where both run; a Triton kernel has its configurations.
A call with the same arguments takes the fastest; a call between the sizes measured takes what the measured ones of its size
class take together. Without an entry, the first candidate is taken. Of equals native is, so that ``auto`` never loses to it.

The table is one JSON file in the user's cache folder (``TORCHSMITH_CACHE`` names another). It holds for one torch, one
torchsmith, one processor and instruction set; another's is ignored, and replaced by the next measuring.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from . import _native, dispatch, triton_backend

__all__ = ["Entry", "Table", "describe", "entry_of", "fastest", "keep", "made_for", "only", "table_path", "tensors_of"]

FORMAT = 2
#: Another than native, or than the first candidate, is taken when that takes this much longer: repeated medians differ by
#: 1-2 %.
MARGIN = 1.03
#: Calls whose choice is remembered; beyond that (lengths that never repeat) it is forgotten and looked up again.
REMEMBERED = 10_000

_TYPES = {"packed": PackedSequence, "tensor": torch.Tensor, "parameter": torch.nn.Parameter}

# ------------------------------------------------------------------------------------------------ what a call is


def describe(value: Any) -> Any:
    """An argument as far as speed depends on it: hashable, and the same again after a trip through JSON."""
    if isinstance(value, torch.Tensor):
        elsewhere = () if value.is_cpu else (triton_backend.device_name(value),)
        return "tensor", tuple(value.shape), str(value.dtype).removeprefix("torch."), _layout(value), *elsewhere
    if isinstance(value, PackedSequence):
        return "packed", describe(value.data), int(value.batch_sizes[0]), len(value.batch_sizes)
    if isinstance(value, (tuple, list, torch.Size)):
        if len(value) == 2 and isinstance(value[0], int) and value[0] == value[1]:
            return value[0]  # a window of (3, 3) is one of 3
        return tuple(describe(v) for v in value)
    return value


def _layout(t: torch.Tensor) -> str:
    if t.is_contiguous():
        return "contiguous"
    return "channels_last" if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) else "strided"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def size_class(described: Any) -> Any:
    """The same with every size of a tensor rounded: to 8 exactly, above that to a half octave."""
    if not isinstance(described, tuple) or not described:
        return described
    if described[0] == "tensor":
        return "tensor", tuple(map(_half_octave, described[1])), *described[2:]
    if described[0] == "packed":
        return "packed", size_class(described[1]), *map(_half_octave, described[2:])
    return tuple(size_class(d) for d in described)


def _half_octave(n: int) -> int:
    # (n * n).bit_length() counts half octaves in integers: twice log2(n), rounded down.
    return n if n <= 8 else 8 + (n * n).bit_length()


@dataclass(frozen=True)
class Entry:
    op: str  #: public op, native op or Triton kernel
    arguments: Any  #: described
    threads: int
    grad: bool
    us: dict[str, float]  #: candidate -> median in microseconds

    @property
    def key(self) -> tuple[Any, ...]:
        return self.op, self.arguments, self.threads, self.grad

    @property
    def fastest(self) -> str:
        return fastest(self.us)


def fastest(us: dict[str, float]) -> str:
    """The candidate to take: native, else the first, unless the best of the others is faster by more than measuring's noise."""
    kept, best = "torch" if "torch" in us else next(iter(us)), min(us, key=us.__getitem__)
    return best if us[kept] >= MARGIN * us[best] else kept


# ------------------------------------------------------------------------------------------------ the table


def table_path() -> Path:
    """Where this user's table lies."""
    folder = os.environ.get("TORCHSMITH_CACHE")
    if not folder:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchsmith"
    return Path(folder) / "tuned.json"


def made_for() -> dict[str, str]:
    """What a table's figures hold for."""
    from .bench.harness import environment

    facts = environment()
    return {name: str(facts[name]) for name in ("torch", "torchsmith", "processor", "isa")}


@dataclass
class Table:
    entries: dict[tuple[Any, ...], Entry] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None = None) -> Table:
        """The saved table; an empty one where there is none, it is broken, or it was made for another installation."""
        try:
            data = json.loads((path or table_path()).read_text(encoding="utf-8"))
            if data["format"] != FORMAT or data["made_for"] != made_for():
                return cls()
            rows = [Entry(**{**row, "arguments": _tuples(row["arguments"])}) for row in data["entries"]]
        except (OSError, ValueError, KeyError, TypeError):
            return cls()
        return cls({row.key: row for row in rows})

    def save(self, path: Path | None = None) -> Path:
        """Joins the saved table and this one (this one's figures win) and replaces the file in one step."""
        from filelock import FileLock  # torch needs it too

        path = path or table_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            self.entries = {**Table.load(path).entries, **self.entries}
            data = {"format": FORMAT, "made_for": made_for(), "entries": [asdict(e) for e in self.entries.values()]}
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(data, file, indent=1)
                os.replace(name, path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        return path

    def activate(self) -> None:
        """Lets ``auto`` obey this table, and no other."""
        global _active
        _active = self
        public, native, configurations = {}, {}, {}
        for entry in self.entries.values():
            if "ours" in entry.us:
                public.setdefault(entry.op, Known(others_are="native")).add(entry)
            elif "cpp" in entry.us:
                native.setdefault(entry.op, Known(others_are="Triton's kernel")).add(entry)
            else:
                configurations[entry.op, entry.arguments] = entry.fastest
        dispatch.KNOWN.clear()
        dispatch.FASTER_IN_TRITON.clear()
        dispatch.MEASURED.clear()
        dispatch.MEASURED.update(public)
        # An op whose first candidate never loses needs no looking up.
        dispatch.KNOWN.update({op: known.by_call() for op, known in public.items() if known.loses_with})
        dispatch.FASTER_IN_TRITON.update({op: k.of_kernel for op, k in native.items() if k.loses_with})
        dispatch.renew()
        triton_backend.use_configurations(configurations)


_active = Table()


def entry_of(key: tuple[Any, ...]) -> Entry | None:
    """What the table in use says of exactly such a call."""
    return _active.entries.get(key)


@contextlib.contextmanager
def only(entries: list[Entry]) -> Iterator[list[Entry]]:
    """A table of these entries alone decides inside."""
    before = _active
    Table({entry.key: entry for entry in entries}).activate()
    try:
        yield entries
    finally:
        before.activate()


class Known:
    """What the table says of one op's calls: why the second candidate is the faster one, or nothing."""

    def __init__(self, others_are: str) -> None:
        self.others_are = others_are
        self.exact: dict[Any, str] = {}
        self.classes: dict[Any, dict[str, float]] = {}
        self.remembered: dict[Any, str] = {}
        self.loses_with: set[bool] = set()  # with or without autograd: the calls that need looking up at all

    def add(self, entry: Entry) -> None:
        why = self.exact[entry.arguments, entry.threads, entry.grad] = self._verdict(entry.us, "these sizes")
        if why:
            self.loses_with.add(entry.grad)
        sums = self.classes.setdefault((size_class(entry.arguments), entry.threads, entry.grad), {})
        for name, us in entry.us.items():
            sums[name] = sums.get(name, 0.0) + us

    def by_call(self) -> Callable[[tuple[Any, ...], tuple[Any, ...]], str]:
        """:meth:`of_call` that finds what it said before by the call's number: a description takes 10 us, and comparing
        descriptions reads dozens of objects that a large call before it put out of the cache."""
        return _native.remembered(
            **_TYPES,
            grad_enabled=torch.is_grad_enabled,
            slow=self.of_call,
            without_grad=False in self.loses_with,
            most=REMEMBERED,
        )

    def of_call(self, tensors: tuple[Any, ...], others: tuple[Any, ...]) -> str:
        grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors_of(tensors))
        return self._look_up((describe((*tensors, *others)), torch.get_num_threads(), grad))

    def of_kernel(self, args: tuple[Any, ...]) -> str:
        """The same for a native op, which is below autograd and runs on a device of its own."""
        return self._look_up((describe(args), 0, False))

    def _look_up(self, key: tuple[Any, ...]) -> str:
        try:
            reason = self.remembered.get(key)
        except TypeError:  # no hash: a size is a symbol, of which nothing was measured
            return ""
        if reason is None:
            reason = self.exact.get(key)
            if reason is None:
                sums = self.classes.get((size_class(key[0]), *key[1:]))
                reason = self._verdict(sums, "sizes like these") if sums else ""
            if len(self.remembered) >= REMEMBERED:
                self.remembered.clear()
            self.remembered[key] = reason
        return reason

    def _verdict(self, us: dict[str, float], what: str) -> str:
        best, first = fastest(us), next(iter(us))
        if best == first:
            return ""
        how = "faster" if us[first] >= MARGIN * us[best] else "as fast as ours"
        return f"{self.others_are} is {how} for {what}: measured {us[best]:.3g} us against {us[first]:.3g} us"


def tensors_of(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, PackedSequence):
            yield value.data
        elif isinstance(value, (list, tuple)):
            yield from tensors_of(value)


def keep(entries: Iterable[Entry], save: bool = True) -> None:
    """Adds entries to the table in use, and with ``save`` to the file."""
    table = Table.load()
    table.entries |= {entry.key: entry for entry in entries}
    if save:
        table.save()
    table.activate()
