"""Writes build.ninja for the native libraries and runs it: parallel, incremental, with tracked headers.

A library is a function here that adds its edges to a :class:`Plan` and returns the file it makes; setup.py places those
files in the package. ``cpu_library`` and ``native_module`` exist always, ``cuda_library`` where there is a CUDA toolkit,
also if the installed torch knows no CUDA: a CUDA torch may load the same wheel.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import toolchain

EXT_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

# The C++ runtime is linked by its run-time name. By -lstdc++ the linker may take libstdc++.a (it did on a GPU machine, by
# which of its settings is not known): a second runtime inside, whose streams crashed beside torch's.
_RULES = """\
ninja_required_version = 1.5
rule cxx
  command = $cxx $flags -MD -MF $out.d -c $in -o $out
  description = compile $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = $nvcc $flags -MD -MF $out.d -c $in -o $out 2> $out.log || (cat $out.log >&2; exit 1)
  description = compile $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx -shared -s $in -o $out -l:libstdc++.so.6 $flags
  description = link $out
"""


@dataclass
class Plan:
    """The edges of one build. Paths are absolute, so that a build runs from any folder."""

    root: Path
    out: Path
    version: str
    torch: toolchain.Torch
    cxx: str
    cuda: toolchain.Cuda | None = None
    edges: list[str] = field(default_factory=list)
    #: file in the package -> file made by the build
    products: dict[str, Path] = field(default_factory=dict)

    def edge(self, rule: str, out: Path, sources: Iterable[Path], flags: Iterable[str]) -> Path:
        inputs = " ".join(_path(s) for s in sources)
        self.edges.append(f"build {_path(out)}: {rule} {inputs}\n  flags = {_flags(flags)}\n")
        return out

    def flags(self) -> list[str]:
        """What every source of ours is compiled with."""
        return [*toolchain.CXX_FLAGS, f"-fmacro-prefix-map={self.root}/=", f"-I{self.root / 'csrc'}"]

    def text(self) -> str:
        tools = {"cxx": self.cxx, "nvcc": shlex.quote(str(self.cuda.nvcc)) if self.cuda else "nvcc"}
        return _RULES + "".join(f"{k} = {v.replace('$', '$$')}\n" for k, v in tools.items()) + "".join(self.edges)


def _path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _flags(flags: Iterable[str]) -> str:
    return " ".join(shlex.quote(f).replace("$", "$$") for f in flags)


def _system(*folders: Path | str) -> list[str]:
    """Include folders of others. __FILE__ inside them is shortened, so that no path of this machine is shipped."""
    return [flag for f in folders for flag in ("-isystem", str(f), f"-fmacro-prefix-map={f}/=")]


def _user(name: str) -> list[str]:
    return shlex.split(os.environ.get(name, ""))


def cpu_library(plan: Plan) -> Path:
    """_cpu.so: every csrc/cpu/*.cpp once per instruction set, the baseline object also with torch glue."""
    sets = toolchain.isas()
    common = [*plan.flags(), *(f"-DTS_BUILT_{isa.upper()}=1" for isa in sets)]
    target = f"-DTORCH_TARGET_VERSION={toolchain.TORCH_TARGET_VERSION}"
    glue = ["-DTS_GLUE=1", target, *_system(plan.torch.include)]
    objects = []
    # Least instruction set first: of an inline function that several objects define, a linker keeps the first copy, so
    # an AVX-512 copy of, say, std::vector's growth is never what a machine without AVX-512 runs.
    for isa, machine in sets.items():
        for source in sorted((plan.root / "csrc" / "cpu").glob("*.cpp")):
            flags = [*common, *machine, f"-DTS_ISA={isa}", *(glue if isa == "base" else []), *_user("CXXFLAGS")]
            objects.append(plan.edge("cxx", plan.out / f"{source.stem}.{isa}.o", [source], flags))
    # torch is in the process before this library is, so no path to it is recorded.
    libs = ["-Wl,--as-needed", f"-L{plan.torch.lib}", "-ltorch_cpu", "-ltorch", "-lc10"]
    flags = ["-Wl,-soname,_cpu.so", "-Wl,--no-undefined", *_user("LDFLAGS"), *libs]
    plan.products["_cpu.so"] = plan.edge("link", plan.out / "_cpu.so", objects, flags)
    return plan.products["_cpu.so"]


def nvcc_flags(plan: Plan) -> list[str]:
    """What every csrc/cuda/*.cu is compiled with, but for what to compile for."""
    host = [
        "-fPIC",
        "-fvisibility=hidden",
        f"-fmacro-prefix-map={plan.root}/=",
        f"-fmacro-prefix-map={plan.torch.include}/=",
    ]
    compiler = shlex.split(plan.cxx)[-1]  # nvcc takes one word: what stands before it (ccache) is left out
    return [
        *toolchain.NVCC_FLAGS,
        f"-ccbin={shutil.which(compiler) or compiler}",
        f"-Xcompiler={','.join(host)}",
        f"-DTORCH_TARGET_VERSION={toolchain.TORCH_TARGET_VERSION}",
        "-DUSE_CUDA",  # declares the stable ABI's CUDA functions
        f"-I{plan.root / 'csrc'}",
        f"-isystem={plan.torch.include}",
    ]


def cuda_library(plan: Plan, cpu: Path) -> Path:
    """_cuda.so: every csrc/cuda/*.cu, registering its kernels with the schemas that _cpu.so defines."""
    flags = [*nvcc_flags(plan), *plan.cuda.gencodes()]
    sources = sorted((plan.root / "csrc" / "cuda").glob("*.cu"))
    objects = [plan.edge("nvcc", plan.out / f"{s.stem}.cuda.o", [s], flags) for s in sources]
    # The CUDA runtime goes inside: one library for torch of any CUDA version. libtorch.so of a CUDA torch brings
    # libtorch_cuda.so, where the stream comes from; that of a CPU torch has the same name and serves to link.
    libs = [f"-L{plan.cuda.lib}", "-lcudart_static", "-lrt", "-lpthread", "-ldl", "-Wl,--exclude-libs,ALL"]
    libs += ["-Wl,--no-as-needed", f"-L{plan.torch.lib}", "-ltorch", "-ltorch_cpu", "-lc10"]
    flags = ["-Wl,-soname,_cuda.so", "-Wl,-rpath,$ORIGIN", *_user("LDFLAGS"), *libs]
    plan.products["_cuda.so"] = plan.edge("link", plan.out / "_cuda.so", [*objects, cpu], flags)
    return plan.products["_cuda.so"]


def native_module(plan: Plan, cpu: Path) -> Path:
    """_native: the pybind11 module, linked against the CPU library that lies beside it.

    csrc/plans/*.cpp are part of it: the launch plans of the CUDA kernels, which need neither CUDA nor its compiler. Of the
    kernels themselves they take the names; what is left of the bodies goes with the sections nobody refers to.
    """
    info = plan.out / "generated" / "build_info.h"
    write_if_changed(info, _build_info(plan))
    include = [f"-I{info.parent}", *_system(toolchain.pybind11_include(), sysconfig.get_path("include"))]
    flags = [*plan.flags(), *include, *_user("CXXFLAGS")]
    sources = [plan.root / "csrc" / name for name in ("native.cpp", "short_call.cpp", "call_key.cpp", "direct.cpp")]
    objects = [plan.edge("cxx", plan.out / f"{s.stem}.o", [s], flags) for s in sources]
    folder = plan.root / "csrc" / "plans"
    flags = [*flags, f"-I{folder}", "-O2", "-ffunction-sections", "-Wno-unknown-pragmas"]  # `#pragma unroll` is nvcc's
    objects += [plan.edge("cxx", plan.out / f"plan_{s.stem}.o", [s], flags) for s in sorted(folder.glob("*.cpp"))]
    name = f"_native{EXT_SUFFIX}"
    flags = ["-Wl,-rpath,$ORIGIN", "-Wl,--gc-sections", *_user("LDFLAGS")]
    plan.products[name] = plan.edge("link", plan.out / name, [*objects, cpu], flags)
    return plan.products[name]


def _build_info(plan: Plan) -> str:
    values = {
        "TS_VERSION": plan.version,
        "TS_FLAGS": " ".join([*toolchain.CXX_FLAGS, *_user("CXXFLAGS")]),
        "TS_TORCH_BUILT": plan.torch.version,
        "TS_TORCH_TARGET": toolchain.TORCH_TARGET,
        "TS_CUDA_ARCHS": " ".join(plan.cuda.archs) if plan.cuda else "",
    }
    escaped = {k: v.replace("\\", "\\\\").replace('"', '\\"') for k, v in values.items()}
    return "#pragma once\n" + "".join(f'#define {k} "{v}"\n' for k, v in escaped.items())


def plan_all(root: Path, out: Path, version: str) -> Plan:
    cuda, why_not = toolchain.find_cuda()
    if cuda is None:
        print(f"note: no CUDA library: {why_not}", file=sys.stderr)
    plan = Plan(root, out, version, toolchain.find_torch(), toolchain.find_compiler(), cuda)
    cpu = cpu_library(plan)
    if cuda is not None:
        cuda_library(plan, cpu)
    native_module(plan, cpu)
    return plan


def default_out(root: Path) -> Path:
    """One folder for each Python and machine; objects in it are reused from build to build."""
    return root / "build" / "native" / f"{sys.implementation.cache_tag}-{platform.machine()}"


def build(root: Path, version: str, out: Path | None = None, verbose: bool = False) -> dict[str, Path]:
    """Builds what changed. Returns file in the package -> file made."""
    out = out or default_out(root)
    with _locked(out):
        plan = plan_all(root, out, version)
        write_if_changed(out / "build.ninja", plan.text())
        jobs = toolchain.max_jobs()
        options = [*(["-j", str(jobs)] if jobs else []), *(["-v"] if verbose else [])]
        if subprocess.run([toolchain.find_ninja(), "-C", str(out), *options]).returncode:
            raise toolchain.BuildError("the native libraries did not compile; the compiler's messages are above.")
    return plan.products


def write_if_changed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder: ninja itself does not guard against two."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # no such call on this system: build unguarded
        yield
        return
    with open(folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
