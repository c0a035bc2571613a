"""CUDA kernels on the host: builds ``csrc/cuda/<row>.cu`` with g++ and tests/cuda_shim, loads it, sends ops to it.

The library registers the row's kernels as ``torch.ops.torchsmith_host.*`` for CPU tensors. Inside :class:`HostCuda` every
call of ``torch.ops.torchsmith.<op>``, from forward and backward alike, goes there, so the specs' samples test the CUDA
sources, their glue included. The library is built with AddressSanitizer and UndefinedBehaviorSanitizer: the process that
loads it needs the environment of :func:`environment`, and what is undefined behaviour ends it with SIGILL.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "cuda"
SHIM = ROOT / "tests" / "cuda_shim"
ORDERS = {"ascending": 0, "descending": 1, "random": 2}
#: name -> (compute capability, multiprocessors): plans differ with both
DEVICES = {"h200": (90, 132), "one multiprocessor": (80, 1), "turing": (75, 40)}

#: The undefined behaviour that kernels are prone to, without what takes most of the compile time for little: a null pointer
#: that is used ends the process anyway, and what goes beyond an object goes into AddressSanitizer's red zones (not what stays
#: inside a larger one), so pointers are not checked while they are computed. Nor is the poisoning of variables out of scope
#: there, of which a kernel keeps no pointers, nor are words for undefined behaviour: it ends in SIGILL.
SANITIZE = (
    "-fsanitize=address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero "
    "-fno-sanitize-address-use-after-scope -fsanitize-undefined-trap-on-error"
).split()
#: -Og: what is slow in a test is the switching of fibers; -O1 takes half as long again to compile, and runs a tenth faster. The
#: compiler's memory is not tidied up below 2 GB.
FLAGS = [
    "-std=c++20",
    "-Og",
    "--param=ggc-min-heapsize=2000000",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    *SANITIZE,
]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas"]  # `#pragma unroll` is nvcc's


def rows() -> list[str]:
    return sorted(p.stem for p in SOURCES.glob("*.cu"))


def compiler() -> str | None:
    """g++: the shim is written for it (naked functions, _Float16)."""
    return shutil.which("g++")


def host_command(row: str, out: Path) -> list[str]:
    home = Path(torch.__file__).parent
    include = [f"-I{SHIM}", "-isystem", str(home / "include")]
    libraries = [f"-L{home / 'lib'}", "-ltorch_cpu"]
    target = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    return [
        compiler(),
        *FLAGS,
        *WARNINGS,
        target,
        *include,
        "-shared",
        "-o",
        str(out),
        "-x",
        "c++",
        str(SOURCES / f"{row}.cu"),
        *libraries,
    ]


def build(row: str, folder: Path | None = None) -> Path:
    """The host library of a row, built if its sources have changed since."""
    folders = [ROOT / "csrc" / name for name in ("contract", "cuda", "glue", "plans")]
    inputs = [p for sources in (*folders, SHIM) for p in sources.rglob("*.[ch]*")]
    return compiled(row, lambda out: host_command(row, out), inputs, folder)


def build_selftest() -> Path:
    """The program in which the shim is tested itself, without torch."""
    flags = [f for f in FLAGS if f not in ("-fPIC", "-fvisibility=hidden")]
    command = [compiler(), *flags, *WARNINGS, f"-I{SHIM}", str(SHIM / "selftest.cpp")]
    return compiled("selftest", lambda out: [*command, "-o", str(out)], list(SHIM.rglob("*.[ch]*")))


def compiled(
    name: str, command: Callable[[Path], list[str]], inputs: Iterable[Path], folder: Path | None = None
) -> Path:
    """What ``command`` makes of ``inputs``, made once for all processes and kept until an input changes."""
    folder = folder or ROOT / "build" / "cuda_host"
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([torch.__version__, *command(Path()), *(p.read_text() for p in sorted(inputs))])
    out = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    with FileLock(folder / f"{name}.lock"):
        if not out.is_file():
            for old in folder.glob(f"{name}-*.so"):
                old.unlink()
            made = out.with_suffix(".tmp")
            done = subprocess.run(command(made), capture_output=True, text=True)
            if done.returncode or done.stderr:  # warnings count
                raise AssertionError(f"{name} does not compile for the host:\n{done.stderr[:4000]}")
            made.rename(out)
    return out


def environment() -> dict[str, str]:
    """The sanitizers' runtimes must be in the process from its start."""
    names = ("libasan.so", "libstdc++.so")
    found = [subprocess.run([compiler(), f"-print-file-name={n}"], capture_output=True, text=True) for n in names]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(f.stdout.strip() for f in found),
        # Python keeps memory for good, which is no leak of ours.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "OMP_NUM_THREADS": "1",
    }


class HostCuda(TorchDispatchMode):
    """Runs ``torch.ops.torchsmith.<op>`` by the CUDA kernels of a row on the host, in a thread order, on a kind of device."""

    def __init__(self, row: str, order: str = "ascending", device: str = "h200"):
        super().__init__()
        self.library = load(row)
        self.order, self.device = order, device
        self.calls: list[str] = []

    def __enter__(self):
        self.library.ts_shim_set(ORDERS[self.order], *DEVICES[self.device])
        return super().__enter__()

    @classmethod
    def _should_skip_dynamo(cls):
        """Nothing is compiled here; torch would import its compiler to say so, 3 s a process."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "torchsmith":
            name = func.name().split("::")[1]
            if name in registered(self.library.row):
                self.calls.append(name)
                func = getattr(torch.ops.torchsmith_host, name).default
        return func(*args, **(kwargs or {}))


_loaded: dict[str, ctypes.CDLL] = {}
_schemas = torch.library.Library("torchsmith_host", "DEF")  # noqa: TOR901  (lives as long as the process)


def registered(row: str) -> set[str]:
    """The ops a row's source registers, read from the source."""
    text = (SOURCES / f"{row}.cu").read_text()
    return set(re.findall(r'm\.impl\("(\w+)"', text))


def declared(row: str) -> set[str]:
    """The kernels that a row's own files define, read from the sources."""
    found = set()
    for path in (SOURCES / f"{row}.cuh", SOURCES / f"{row}.cu"):
        found |= set(re.findall(r"__global__ void\s+(?:__launch_bounds__\([^\n]*\)\s+)?(\w+)\(", path.read_text()))
    return found


def load(row: str) -> ctypes.CDLL:
    if row not in _loaded:
        for op in sorted(registered(row)):
            schema = str(getattr(torch.ops.torchsmith, op).default._schema)
            _schemas.define(schema.replace("torchsmith::", "", 1))
        path = build(row)
        torch.ops.load_library(str(path))
        library = ctypes.CDLL(str(path))
        library.ts_shim_kernels.restype = ctypes.c_char_p
        library.row = row
        _loaded[row] = library
    return _loaded[row]


@dataclass(frozen=True)
class Launched:
    """Of one kernel instantiation: launches in this process, and the most threads and shared memory one of them asked for."""

    launches: int
    threads: int
    shared: int


def kernels(row: str) -> dict[str, Launched]:
    """Every kernel instantiation that a row's library can launch."""
    lines = [line.split(" ", 3) for line in load(row).ts_shim_kernels().decode().splitlines()]
    return {name: Launched(*map(int, numbers)) for *numbers, name in lines}
