"""Writes docs/<row>.md: one op's three implementations side by side, from the sources' own headers and bodies.

    python docs/side_by_side.py [--check]

Nothing is said here that the sources do not say; where the page is wrong, a header is.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gru.md"
#: title -> language, files whose headers tell it, file and pattern of the cell's own lines
PARTS = {
    "C++ (CPU)": (
        "cpp",
        ("csrc/cpu/sequence.h",),
        "csrc/cpu/gru.cpp",
        r"        const Vec<W> r = .*?(?=        if \(!s\))",
    ),
    "CUDA C++": (
        "cpp",
        ("csrc/cuda/sequence.cuh", "csrc/cuda/steps.cuh", "csrc/cuda/cell.cuh"),
        "csrc/cuda/gru.cuh",
        r"  __device__ __forceinline__ W forward.*?\n  }\n",
    ),
    "Triton": ("python", ("kernels/_recurrent.py", "kernels/_steps.py"), "kernels/_steps.py", r"def _gru\(.*?\n\n"),
}


def header(path: str) -> str:
    """What a file says of itself: its docstring, or the comment that it begins with."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        return textwrap.dedent(re.match(r'"""(.*?)"""', text, re.S).group(1)).strip()
    lines = text[: re.search(r"^(?!//)", text, re.M).start()].splitlines()
    return "\n".join(line.removeprefix("//").removeprefix(" ") for line in lines).strip()


def body(path: str, pattern: str) -> str:
    found = re.search(pattern, (ROOT / path).read_text(encoding="utf-8"), re.S)
    if not found:
        raise ValueError(f"{path}: nothing like {pattern!r}: the page needs another pattern")
    return textwrap.dedent(found.group(0)).strip()


def page() -> str:
    parts = [
        "# gru, three times",
        "One op, three implementations. Made from the sources by `make readme`.",
        f"## The formula\n\n`csrc/contract/gru.h`:\n\n```\n{header('csrc/contract/gru.h')}\n```",
        f"## The sequence\n\n`csrc/contract/sequence.h`:\n\n```\n{header('csrc/contract/sequence.h')}\n```",
    ]
    for title, (language, headers, path, pattern) in PARTS.items():
        parts.append(f"## {title}")
        parts += [f"`{name}`:\n\n```\n{header(name)}\n```" for name in headers]
        parts.append(f"The gates, `{path}`:\n\n```{language}\n{body(path, pattern)}\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    elif page() != PAGE.read_text(encoding="utf-8"):
        sys.exit(f"{PAGE.relative_to(ROOT)} is not current: run `make readme`")


if __name__ == "__main__":
    main()
