"""What ours is compared with: native as it is, torch.compile of it, and native with MKL allowed AVX-512.

MKL takes AVX2 on processors of other vendors than its own, so part of a gain over it can be dispatch and no merit of
ours. A function it asks, ``mkl_serv_intel_cpu_true``, is answered by a preloaded library of one line; that needs a
process of its own. So do instruction sets other than the best, which native chooses when it is loaded.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from torchsmith import _native
from torchsmith.bench import pairs

__all__ = ["BASELINES", "ISAS", "NAMES", "Unavailable", "isa_environment", "mkl_environment", "prepare"]

BASELINES = ("eager", "compile", "mkl-avx512")
NAMES = {"eager": "native", "compile": "torch.compile", "mkl-avx512": "native with MKL allowed AVX-512"}

#: What native reads when it starts; ours reads TORCHSMITH_ISA.
ISAS: dict[str, dict[str, str]] = {
    "base": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
#: Says on stderr that it was asked, where that is wanted.
_ANSWER = """\
#include <stdlib.h>
#include <unistd.h>
int mkl_serv_intel_cpu_true(void) {
  if (getenv("TORCHSMITH_MKL_ASKED") && write(2, "mkl asked\\n", 10) < 0) return 1;
  return 1;
}
"""
_TINY = "import torch; a = torch.ones(64, 64); a @ a"


class Unavailable(Exception):
    """A baseline this machine or torch cannot give; the message says why."""


def isa_environment(isa: str) -> dict[str, str]:
    """The variables under which both sides use this instruction set. Raises Unavailable where ours cannot."""
    if isa not in _native.isa_available():
        raise Unavailable(f"--isa {isa}: this machine and build have {', '.join(_native.isa_available())}")
    return {"TORCHSMITH_ISA": isa, **ISAS[isa]}


def mkl_environment(folder: Path) -> dict[str, str]:
    """The variables under which MKL uses AVX-512; the library they preload is built in ``folder``.

    Raises Unavailable: not Linux, no MKL in torch, no AVX-512, no C compiler, or MKL never asks the library.
    """
    if not sys.platform.startswith("linux"):
        raise Unavailable("mkl-avx512: a library can be preloaded on Linux only")
    if not torch.backends.mkl.is_available():
        raise Unavailable("mkl-avx512: this torch has no MKL")
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        raise Unavailable(f"mkl-avx512: this machine has {torch.backends.cpu.get_cpu_capability()}, not AVX-512")
    library = build_answer(folder)
    environment = {"LD_PRELOAD": " ".join(filter(None, (str(library), os.environ.get("LD_PRELOAD"))))}
    line = [sys.executable, "-c", _TINY]
    variables = {**os.environ, **environment, "TORCHSMITH_MKL_ASKED": "1"}
    said = subprocess.run(line, env=variables, capture_output=True, text=True, check=False, timeout=120).stderr
    if "mkl asked" not in said:
        raise Unavailable("mkl-avx512: torch's MKL does not ask the preloaded library")
    return environment


def build_answer(folder: Path) -> Path:
    """Compiles the one-line library with the machine's C compiler ($CC, cc, gcc or clang)."""
    compiler = next((c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and _runs(c)), None)
    if compiler is None:
        raise Unavailable("mkl-avx512: no C compiler found")
    source, library = folder / "answer.c", folder / "answer.so"
    source.write_text(_ANSWER, encoding="utf-8")
    line = [*shlex.split(compiler), "-shared", "-fPIC", str(source), "-o", str(library)]
    made = subprocess.run(line, capture_output=True, text=True, check=False)
    if made.returncode:
        raise Unavailable(f"mkl-avx512: the C compiler failed: {made.stderr.strip().splitlines()[-1:]}")
    return library


def _runs(command: str) -> bool:
    return shutil.which(shlex.split(command)[0]) is not None


@functools.cache
def no_compiler() -> str:
    """Why torch.compile does not work here; empty where it does."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(3))
    except Exception as error:  # whatever inductor needs and lacks: a compiler, headers, a supported Python
        return str(error).strip().splitlines()[0][:200] or type(error).__name__
    return ""


def compiled(native: Any) -> Any:
    """torch.compile of a function, or of a module in place; earlier shapes are forgotten, so that none is made dynamic."""
    torch._dynamo.reset()
    if isinstance(native, torch.nn.Module):
        native.compile(dynamic=False)
        return native
    return torch.compile(lambda *args, **keywords: native(*args, **keywords), dynamic=False)


def prepare(job: Any) -> pairs.Pair:
    """The job's pair; skips the benchmark where its baseline cannot be had."""
    import pytest

    if job.baseline != "compile":
        return job.pair(job.dtype, None)
    if no_compiler():
        pytest.skip(f"torch.compile does not work here: {no_compiler()}")
    pair = job.pair(job.dtype, compiled)
    try:
        pair.native(1)
    except Exception as error:
        pytest.skip(f"torch.compile fails on this: {str(error).strip().splitlines()[0][:200]}")
    return pair
