"""What a build needs from the machine: torch's headers, compiler, ninja, instruction sets. Never imports torch."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

#: The oldest torch whose stable ABI the libraries ask for: 2.10.
TORCH_TARGET = "2.10"
TORCH_TARGET_VERSION = "0x020a000000000000"

#: No -ffast-math: NaN and inf must behave. What is given up is only errno, traps and uncontracted multiply-adds.
#: Aligned loops: where the innermost loop of a product happened to lie made up to 6 % of its time.
CXX_FLAGS = (
    "-std=c++20 -O3 -falign-loops=32 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden "
    "-fno-math-errno -fno-trapping-math -ffp-contract=fast -Wall -Wextra"
).split()

#: Constant host functions may be called on the device; fatbins are compressed; ptxas says what each kernel takes (registers,
#: spills), which lands in <object>.log beside the object, for the tests.
NVCC_FLAGS = "-std=c++20 -O3 --expt-relaxed-constexpr -Xfatbin=-compress-all -Xptxas=-v".split()
_AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mbmi2 -mprefer-vector-width=512".split()

#: The instruction sets of x86-64, least first; the link keeps this order (see ninjafile.cpu_library).
X86_ISAS = {
    "base": [],
    "avx2": "-mavx2 -mfma -mf16c -mbmi2".split(),
    "avx512": _AVX512,
    "avx512_bf16": [*_AVX512, "-mavx512bf16"],
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


# ---------------------------------------------------------------------------------------------- CUDA

#: Compute capabilities to compile for where TORCH_CUDA_ARCH_LIST is not set, as far as the toolkit knows them: one for each
#: generation, since machine code for 8.0 runs on 8.6, 8.7 and 8.9, that for 10.0 on 10.3 and that for 12.0 on 12.1. Tiles are
#: chosen when a kernel is launched, by the device's own shared memory. The newest goes in as PTX too, for what comes after it.
CUDA_ARCHS = ("7.5", "8.0", "9.0", "10.0", "12.0")
#: C++20 in device code.
OLDEST_CUDA = (12, 0)


@dataclass(frozen=True)
class Cuda:
    """A CUDA toolkit, as files, and what to compile for."""

    nvcc: Path
    lib: Path
    version: str
    archs: tuple[str, ...]  #: "8.0", "9.0a", "12.0+PTX"

    def gencodes(self) -> list[str]:
        flags = []
        for arch in self.archs:
            number, _, ptx = arch.partition("+")
            number = number.replace(".", "")
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
            if ptx:
                flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        return flags


def find_cuda() -> tuple[Cuda | None, str]:
    """The toolkit to build the CUDA library with, or None and why there is none.

    ``TORCHSMITH_CUDA=0`` leaves CUDA out; ``FORCE_CUDA=1`` makes whatever is missing an error. torch need not know CUDA.
    """
    forced = os.environ.get("FORCE_CUDA", "0") not in ("", "0")
    if os.environ.get("TORCHSMITH_CUDA", "1") == "0":
        if forced:
            raise BuildError("TORCHSMITH_CUDA=0 and FORCE_CUDA=1 contradict each other: unset one.")
        return None, "TORCHSMITH_CUDA=0"
    try:
        return _cuda(), ""
    except BuildError as error:
        if forced:
            raise BuildError(f"FORCE_CUDA=1, but {error}") from None
        return None, str(error)


def _cuda() -> Cuda:
    nvcc = _find_nvcc()
    # The nvcc on the PATH may be a script that calls another: the toolkit's folder is the one nvcc itself names.
    plan = _ask(nvcc, "--dryrun", "-c", "-x", "cu", os.devnull)
    top = re.search(r"^#\$ TOP=(.*)$", plan, re.M)
    if not top:
        raise BuildError(f"{nvcc} does not say where its toolkit lies (nvcc --dryrun prints no TOP).")
    home = Path(top.group(1).strip()).resolve()
    release = re.search(r"release (\d+)\.(\d+)", _ask(nvcc, "--version"))
    version = tuple(int(n) for n in release.groups()) if release else (0, 0)
    if version < OLDEST_CUDA:
        raise BuildError(
            f"{nvcc} is CUDA {'.'.join(map(str, version))}; torchsmith needs {'.'.join(map(str, OLDEST_CUDA))}."
        )
    folders = [home / "lib64", home / "lib", home / "targets" / f"{platform.machine()}-linux" / "lib"]
    lib = next((f for f in folders if (f / "libcudart_static.a").is_file()), None)
    if lib is None:
        raise BuildError(f"the CUDA toolkit in {home} has no libcudart_static.a.")
    known = set(re.findall(r"compute_(\d+)", _ask(nvcc, "--list-gpu-arch")))
    return Cuda(nvcc, lib, ".".join(map(str, version)), cuda_archs(known))


def _find_nvcc() -> Path:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    for home in homes:
        if home:
            if Path(home, "bin", "nvcc").is_file():
                return Path(home, "bin", "nvcc")
            raise BuildError(f"CUDA_HOME is {home}, which has no bin/nvcc.")
    for found in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if found and Path(found).is_file():
            return Path(found)
    raise BuildError("no nvcc found: put it on the PATH or set CUDA_HOME to the CUDA toolkit's folder.")


def _ask(nvcc: Path, *arguments: str) -> str:
    done = subprocess.run([str(nvcc), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{nvcc} does not run: {(done.stderr or done.stdout).strip()[:500]}")
    return done.stdout + done.stderr


def cuda_archs(known: set[str]) -> tuple[str, ...]:
    """TORCH_CUDA_ARCH_LIST, else the default ones, of what this nvcc knows (``{"75", "80", ...}``)."""
    text = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    wanted = [a for a in re.split(r"[;,\s]+", text) if a]
    for arch in wanted:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: {arch!r} is none of the forms 8.0, 9.0a, 8.6+PTX.")
        if (number := re.sub(r"[af]?(\+PTX)?$", "", arch).replace(".", "")) not in known:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: this nvcc does not know {arch}; it knows {', '.join(sorted(known, key=int))}."
            )
        if int(number) < 75:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: {arch}: the kernels need compute capability 7.5 or newer.")
    if wanted:
        return tuple(wanted)
    archs = [a for a in CUDA_ARCHS if a.replace(".", "") in known]
    if not archs:
        raise BuildError(f"this nvcc knows none of {', '.join(CUDA_ARCHS)}.")
    return (*archs[:-1], archs[-1] + "+PTX")
