"""Two records of the same measurements: what moved beyond noise.

Compared are the ratios native/ours. Separate runs of one program drift by 20 % together with the machine; the ratio of
two arms that took turns does not. A row moved where its ratio changed by more than the two runs' own scatter (half the
interquartile range of the rounds' ratios, added in quadrature) and by more than medians repeat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torchsmith.bench import report

__all__ = ["Comparison", "Moved", "compare"]

#: Interleaved medians repeat within 1-2 % on the machines in use, so 3 % is the least change worth a name.
LEAST = 0.03


@dataclass(frozen=True)
class Moved:
    row: dict[str, Any]  #: of the new run
    before: dict[str, Any]
    noise: float  #: relative change that scatter alone explains

    @property
    def change(self) -> float:
        """New ratio / old ratio: above 1 ours got faster beside native."""
        return self.row["ratio"] / self.before["ratio"]

    @property
    def sentence(self) -> str:
        r, b = self.row, self.before
        threads = f"{r['threads']} thread" + ("" if r["threads"] == 1 else "s")
        baseline = r.get("baseline", "eager")
        where = f"{r['mode']}, {r['dtype']}, {threads}" + ("" if baseline == "eager" else f", {baseline}")
        word = "faster" if self.change > 1 else "slower"
        factor = max(self.change, 1 / self.change)
        return (
            f"{r['op']} {r['label']} ({where}): {word} by {factor:.2f}x, ratio {b['ratio']:.2f} -> {r['ratio']:.2f} "
            f"(noise {100 * self.noise:.0f} %); ours {report.duration(b['ours_us'])} -> {report.duration(r['ours_us'])}, "
            f"native {report.duration(b['native_us'])} -> {report.duration(r['native_us'])}"
        )


@dataclass(frozen=True)
class Comparison:
    moved: list[Moved]  #: the worst first
    still: int
    new: list[str]
    gone: list[str]
    machines: list[str]  #: what differs between the two environments

    def text(self) -> str:
        lines = [f"{name}." for name in self.machines]
        slower = [m for m in self.moved if m.change < 1]
        faster = [m for m in reversed(self.moved) if m.change > 1]
        for word, group in (("Slower", slower), ("Faster", faster)):
            if group:
                lines += ["", f"{word} than before, beyond noise:", "", *(f"- {m.sentence}" for m in group)]
        for word, names in (("Only in the new run", self.new), ("Only in the old run", self.gone)):
            if names:
                lines += ["", f"{word}: {len(names)} ({'; '.join(names[:5])}{', ...' if len(names) > 5 else ''})"]
        moved = f"{len(self.moved)} moved" if self.moved else "nothing moved beyond noise"
        return "\n".join([*lines, "", f"{len(self.moved) + self.still} compared, {moved}."]).strip()


def compare(new: dict[str, Any], old: dict[str, Any]) -> Comparison:
    rows, before = ({report.key(r): r for r in data["rows"]} for data in (new, old))
    both = [(rows[k], before[k]) for k in rows if k in before]
    moved = [m for row, b in both if abs(math.log((m := Moved(row, b, _noise(row, b))).change)) > m.noise]
    moved.sort(key=lambda m: m.change)
    return Comparison(
        moved,
        len(both) - len(moved),
        [_name(k) for k in rows if k not in before],
        [_name(k) for k in before if k not in rows],
        _machines(new["environment"], old["environment"]),
    )


def _noise(*rows: dict[str, Any]) -> float:
    halves = [(r["ratio_high"] - r["ratio_low"]) / 2 / r["ratio"] for r in rows]
    return max(LEAST, math.hypot(*halves))


def _name(key: tuple[Any, ...]) -> str:
    return " ".join(str(part) for part in key[1:] if part not in ("", "eager", "course"))


def _machines(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    names = ("processor", "cores", "isa", "native_isa", "torch", "compiler")
    return [
        f"Not the same {name}: {old.get(name)} then, {new.get(name)} now"
        for name in names
        if old.get(name) != new.get(name)
    ]
