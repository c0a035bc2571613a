"""What the compiler made of the CUDA kernels: registers, spills and shared memory, from the logs of the build.

``python tests/cuda_gates.py`` (after a build for all architectures and a run of test_cuda_kernels.py) writes the table to
bench/records/cuda_kernels.json, which test_cuda_build.py holds against every later build with the same nvcc.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "bench" / "records" / "cuda_kernels.json"
LAUNCHES = ROOT / "build" / "cuda_host"

_ENTRY = re.compile(
    r"Compiling entry function '(\S+)' for 'sm_(\w+)'\s*\n(?:ptxas info.*\n)*?"
    r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s*\n"
    r"ptxas info\s*: Used (\d+) registers"
)


def build_folder() -> Path:
    machine = sysconfig.get_platform().rpartition("-")[2]
    return ROOT / "build" / "native" / f"{sys.implementation.cache_tag}-{machine}"


def logs() -> dict[str, str]:
    """row -> what nvcc said when it compiled the row; empty where nothing was built here."""
    return {p.name.removesuffix(".cuda.o.log"): p.read_text() for p in sorted(build_folder().glob("*.cuda.o.log"))}


def short(name: str) -> str:
    """A kernel's name without namespaces, return type and parameters, the same from nvcc's symbols and from g++."""
    name = re.sub(r"\bts::(cuda::)?|\{anonymous\}::|\(anonymous namespace\)::|^void ", "", name.strip())
    name = re.sub(r"\((?:int|bool|unsigned int)\)(\w+)", r"\1", name)  # template arguments as casts
    name = name.replace("long int", "long")
    depth = 0
    for i, c in enumerate(name):
        depth += {"<": 1, ">": -1}.get(c, 0)
        if c == "(" and depth == 0:
            name = name[:i]
            break
    return name.replace("> >", ">>").replace("> >", ">>")


def demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return [short(n) for n in done.stdout.splitlines()]


def compiled(text: str) -> dict[str, dict[str, dict[str, int]]]:
    """kernel -> architecture -> registers, stack and spilled bytes."""
    found = _ENTRY.findall(text)
    table: dict[str, dict[str, dict[str, int]]] = {}
    for kernel, (_, arch, stack, stores, loads, registers) in zip(demangle([f[0] for f in found]), found, strict=True):
        facts = {"registers": int(registers), "stack": int(stack), "spilled": int(stores) + int(loads)}
        table.setdefault(kernel, {})[arch] = facts
    return table


def launched(row: str) -> dict[str, dict[str, int]]:
    """kernel -> the most threads and bytes of shared memory a launch in the tests asked for."""
    path = LAUNCHES / f"{row}.launches.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def nvcc_version(nvcc: Path) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text).group(1)


def find_cuobjdump() -> str | None:
    """On the PATH, beside nvcc, or from the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm."""
    places = [shutil.which("cuobjdump"), "/usr/local/cuda/bin/cuobjdump"]
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        places += [str(p) for p in Path(folder).glob("*/bin/cuobjdump")]
    return next((p for p in places if p and Path(p).is_file()), None)


def instructions(library: Path, arch: str, wanted: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """kernel -> how often each wanted instruction stands in its machine code for an architecture."""
    command = [find_cuobjdump(), "--dump-sass", "-arch", f"sm_{arch}", str(library)]
    path = f"{Path(command[0]).parent}:{os.environ['PATH']}"  # it calls nvdisasm
    text = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}).stdout
    parts = re.split(r"Function : (\S+)", text)[1:]
    names, bodies = demangle(parts[::2]), parts[1::2]
    return {n: {w: b.count(f" {w}") for w in wanted} for n, b in zip(names, bodies, strict=True)}


def main() -> None:
    sys.path.insert(0, str(ROOT / "buildtools"))
    import toolchain

    cuda, why_not = toolchain.find_cuda()
    if cuda is None:
        raise SystemExit(why_not)
    kernels = {}
    for row, text in logs().items():
        for kernel, archs in compiled(text).items():
            ways = launched(row).get(kernel)
            if ways is None:
                raise SystemExit(f"{kernel} was never launched: run tests/test_cuda_kernels.py first")
            kernels[f"{row}: {kernel}"] = {**ways, "sm": dict(sorted(archs.items(), key=lambda a: int(a[0])))}
    record = {"nvcc": nvcc_version(cuda.nvcc), "archs": list(cuda.archs), "kernels": dict(sorted(kernels.items()))}
    RECORD.write_text(
        re.sub(
            r"\{\s+(\"registers[^}]*?)\s+\}",
            lambda m: "{" + re.sub(r"\s+", " ", m[1]) + "}",
            json.dumps(record, indent=1),
        )
        + "\n"
    )
    print(f"{RECORD.relative_to(ROOT)}: {len(kernels)} kernels")


if __name__ == "__main__":
    main()
