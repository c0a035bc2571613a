"""What a build needs from the machine: torch's headers, compiler, ninja, instruction sets. Never imports torch."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

#: The oldest torch whose stable ABI the libraries ask for: 2.10.
TORCH_TARGET = "2.10"
TORCH_TARGET_VERSION = "0x020a000000000000"

#: No -ffast-math: NaN and inf must behave. What is given up is only errno, traps and uncontracted multiply-adds.
CXX_FLAGS = (
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden "
    "-fno-math-errno -fno-trapping-math -ffp-contract=fast -Wall -Wextra"
).split()

#: The instruction sets of x86-64, least first; the link keeps this order (see ninjafile.cpu_library).
X86_ISAS = {
    "base": [],
    "avx2": "-mavx2 -mfma -mf16c -mbmi2".split(),
    "avx512": (
        "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mbmi2 -mprefer-vector-width=512"
    ).split(),
}


class BuildError(Exception):
    """Something the build needs is missing; the message says what and how to get it."""


@dataclass(frozen=True)
class Torch:
    """An installed torch, as files."""

    include: Path
    lib: Path
    version: str


def isas() -> dict[str, list[str]]:
    """The instruction sets to compile for, least first, and their flags."""
    return X86_ISAS if platform.machine().lower() in ("x86_64", "amd64") else {"base": []}


def _site_folders() -> list[str]:
    """Where packages of the environment that is built for lie, which pip's build isolation hides from sys.path."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    config = Path(sys.prefix, "pyvenv.cfg")
    shared = config.is_file() and re.search(r"include-system-site-packages\s*=\s*true", config.read_text(), re.I)
    if shared:
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        folders += [sysconfig.get_path("purelib", vars=base), sysconfig.get_path("platlib", vars=base)]
    if shared or sys.prefix == sys.base_prefix:
        folders += site.getsitepackages([sys.base_prefix])
        if site.ENABLE_USER_SITE is not False:
            folders.append(site.getusersitepackages())
    return folders


def find_torch_dir() -> Path | None:
    """The folder of the torch to compile against: the target environment's, else the one on sys.path, else None."""
    for folder in dict.fromkeys(_site_folders()):
        if Path(folder, "torch", "version.py").is_file():
            return Path(folder, "torch")
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent
    return None


def find_torch() -> Torch:
    folder = find_torch_dir()
    if folder is None:
        raise BuildError(
            "torchsmith compiles against an installed torch >= 2.10 and found none. "
            "Install torch first, or build without --no-build-isolation."
        )
    text = (folder / "version.py").read_text()
    match = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)['\"]", text, re.M)
    version = match.group(1) if match else "unknown"
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < (2, 10):
        raise BuildError(f"torchsmith needs torch >= 2.10 to compile against; {folder} holds torch {version}.")
    if not (folder / "include" / "torch" / "csrc" / "stable" / "library.h").is_file():
        raise BuildError(f"torch {version} in {folder} has no C++ headers (include/torch/csrc/stable).")
    return Torch(folder / "include", folder / "lib", version)


def find_compiler() -> str:
    """The C++ compiler command: $CXX, else c++, g++ or clang++."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(shlex.split(name)[0]):
            return name
    raise BuildError("no C++ compiler found: torchsmith needs one that knows C++20 (g++ >= 11 or clang++ >= 14).")


def find_ninja() -> str:
    try:
        import ninja

        return str(Path(ninja.BIN_DIR, "ninja"))
    except ImportError:
        found = shutil.which("ninja")
        if found:
            return found
    raise BuildError("ninja not found: pip install ninja.")


def pybind11_include() -> str:
    try:
        import pybind11
    except ImportError:
        raise BuildError("pybind11 not found: pip install pybind11.") from None
    return pybind11.get_include()


def max_jobs() -> int | None:
    """$MAX_JOBS, checked; None leaves the choice to ninja."""
    text = os.environ.get("MAX_JOBS", "").strip()
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise BuildError(f"MAX_JOBS must be a whole number >= 1, got {text!r}.")
    return int(text)
