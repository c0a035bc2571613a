"""Plants bugs, one at a time, and shows that the tests catch each: ``make mutants`` (hours on 2 cores).

A bug is a replacement in one source file of a copy of this repository, rebuilt where it is C++, tested with the contract
tests that a change of that kind concerns; in CUDA sources, with the tests that execute the row's kernels on the host; in Triton's,
with the row's under its interpreter. A bug that no test catches ends the run with exit status 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bugs import PAIRS, TILES, Bug, all_bugs

from torchsmith import _native

ROOT = Path(__file__).parent.parent


def copy_tree(to: Path) -> None:
    ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".pytest_cache", "*.egg-info")
    shutil.copytree(ROOT, to, ignore=ignored)


def caught(bug: Bug, tree: Path, environment: dict[str, str]) -> bool:
    source = tree / bug.file
    text = source.read_text()
    if bug.right not in text:
        raise SystemExit(f"{bug.name}: {bug.file} no longer holds {bug.right!r}")
    source.write_text(text.replace(bug.right, bug.wrong))
    try:
        if bug.triton:
            return caught_interpreted(bug, tree, environment)
        if bug.file.startswith("csrc") and not bug.cuda:
            build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            subprocess.run(build, cwd=tree, env=environment, check=True, capture_output=True)
        files = ["contract", "cpu_ways", "call_key"] if not bug.cuda else ["cuda_kernels"]
        files = [f"tests/test_{name}.py" for name in files]
        tests, row = ("on_the_host", {"TORCHSMITH_TEST_ROWS": bug.tests}) if bug.cuda else (bug.tests, {})
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", tests]
        run = subprocess.run(command, cwd=tree, env=environment | row, capture_output=True, text=True)
        if (
            "does not compile for the host" in run.stdout
        ):  # a bug the compiler refuses or warns of shows nothing of the tests
            raise SystemExit(f"{bug.name}: does not compile without a warning:\n{run.stdout[-2000:]}")
        if run.returncode < 0:  # a crash is a failing test too
            return True
        if run.returncode > 1:
            raise SystemExit(f"{bug.name}: the tests did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
        return run.returncode == 1
    finally:
        source.write_text(text)


def caught_interpreted(bug: Bug, tree: Path, environment: dict[str, str]) -> bool:
    out = str(tree.parent / "launches.json")
    row = {"TRITON_INTERPRET": "1", "TORCHSMITH_TEST_ROWS": bug.tests, "TORCHSMITH_TEST_OUT": out}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/triton_checks.py"]
    run = subprocess.run(command, cwd=tree, env=environment | row, capture_output=True, text=True)
    if run.returncode > 1 or (run.returncode == 1 and "::test_values[" not in run.stdout):
        raise SystemExit(f"{bug.name}: the tests did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.returncode == 1


def main() -> int:
    wanted = sys.argv[1:]  # parts of names; all without
    bugs = [bug for bug in all_bugs() if not wanted or any(part in bug.name for part in wanted)]
    if "avx512_bf16" not in _native.isa_available():
        for bug in [bug for bug in bugs if bug.tests.startswith(PAIRS)]:
            print(f"left out  {bug.name}: this machine has no AVX512-BF16")
            bugs.remove(bug)
    if "avx512_amx" not in _native.isa_available():
        for bug in [bug for bug in bugs if bug.tests.startswith(TILES)]:
            print(f"left out  {bug.name}: this machine has no AMX")
            bugs.remove(bug)
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        copy_tree(tree)
        package = Path(folder, "path")
        package.mkdir()
        (package / "torchsmith").symlink_to(tree / "pyext")
        (tree / "pyext" / "kernels").symlink_to(tree / "kernels")
        # The bugs in CUDA sources are shown on the host: no time for nvcc.
        environment = {**os.environ, "PYTHONPATH": str(package), "TORCHSMITH_CUDA": "0"}
        for file in ("csrc/cuda/gemm.cuh", "csrc/cpu/gemm.h"):
            cuda = file.startswith("csrc/cuda")
            kind = [b for b in bugs if b.cuda == cuda and not b.triton]
            every = sorted({b.tests if cuda else f"({b.tests})" for b in kind})
            whole = Bug("none", file, "#pragma once", "#pragma once", (" " if cuda else " or ").join(every))
            if kind and caught(whole, tree, environment):
                raise SystemExit("the tests fail without any planted bug: nothing can be shown")
        for bug in bugs:
            ok = caught(bug, tree, environment)
            print(f"{'caught' if ok else 'MISSED'}  {bug.name}  ({bug.file})", flush=True)
            missed += [] if ok else [bug.name]
    print(f"{len(bugs) - len(missed)} of {len(bugs)} planted bugs caught")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
