"""Checks one wheel, unrebuilt, under a CUDA build of torch (``make cuda-check``). Needs nvcc and a network, but no GPU.

The wheel is built with the CPU-only torch of the environment that runs this; the CUDA build of torch (several GB) goes to
an environment of its own, removed afterwards. There every native op must have a CUDA kernel and the CPU ops must still be
right. Prints a table; exits 1 where something is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import compat

ROOT = Path(__file__).resolve().parent.parent
LARGEST_WHEEL = 60e6
PROBE = "cuda_check_probe.py"


def prepare(folder: Path, python: str, release: str) -> Path:
    """The environment's Python; an environment that is there already is used as it is."""
    inside = folder / "bin" / "python"
    if not inside.is_file():
        compat.run(python, "-m", "venv", folder)
        print(f"installing {release} and what it needs of CUDA ...", flush=True)
        pip = (inside, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-cache-dir")
        compat.run(*pip, release, *compat.LIGHT)
    return inside


def probe(inside: Path, wheel: Path, scratch: Path) -> dict:
    """Installs the wheel as it is and asks it, in a folder outside the checkout."""
    compat.run(
        inside, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--force-reinstall", wheel
    )
    for name in (PROBE, "compat_smoke.py"):
        shutil.copy(ROOT / "tests" / name, scratch)
    report = {}
    for name in (PROBE, "compat_smoke.py"):
        done = subprocess.run([inside, "-I", name], cwd=scratch, capture_output=True, text=True, timeout=600)
        try:
            report[name] = json.loads(done.stdout.strip().splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            raise SystemExit(f"{name} gave no report:\n{(done.stdout + done.stderr).strip()[-3000:]}") from None
    return {**report["compat_smoke.py"], **report[PROBE]}


def table(report: dict) -> str:
    lines = [f"{'row':10} {'op':24} {'CUDA kernels':>12}  {'CPU smoke test':16}"]
    for op in report["table"]:
        kernels = f"{len(op['kernels']) - len(op['missing'])} of {len(op['kernels'])}"
        lines.append(f"{op['row']:10} {op['op']:24} {kernels:>12}  {report['wrong'].get(op['op'], 'ok')}")
    return "\n".join(lines)


def problems(report: dict, wheel_bytes: int) -> list[str]:
    """Everything that is not as it should be, in words; empty: the check passed."""
    found = []
    if wheel_bytes >= LARGEST_WHEEL:
        found.append(f"the wheel has {wheel_bytes / 1e6:.1f} MB, allowed are fewer than {LARGEST_WHEEL / 1e6:.0f}")
    if not report["cuda"]:
        found.append(f"torch {report['torch']} is no CUDA build, so nothing of CUDA was checked")
    if not report["installed"]:
        found.append("a checkout was imported in place of the installed wheel")
    if not report["table"]:
        found.append("the wheel describes no op")
    for op in report["table"]:
        if op["missing"]:
            found.append(f"{op['row']}: {op['op']} has no CUDA kernel for {', '.join(op['missing'])}")
    found += [f"{op} is wrong on the CPU: {what}" for op, what in report["wrong"].items()]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="Python of the environment")
    parser.add_argument("--release", default="torch", help="the CUDA build of torch, default: the newest")
    parser.add_argument("--wheel", type=Path, help="a wheel built before, in place of a fresh build")
    parser.add_argument("--environment", type=Path, help="keep the environment in this folder, or use the one there")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="torchsmith-cuda-check-")))
        wheel = options.wheel.resolve() if options.wheel else compat.build_wheel(scratch)
        size = wheel.stat().st_size
        inside = prepare(options.environment or scratch / "venv", options.python, options.release)
        report = probe(inside.absolute(), wheel, scratch)
    print(f"wheel {wheel.name}: {size / 1e6:.1f} MB, built against torch {report['built_against']}")
    print(f"torch {report['torch']}, CUDA {report['cuda']}, {report['isa']}\n\n{table(report)}\n")
    found = problems(report, size)
    print("\n".join(f"MISSING OR WRONG  {problem}" for problem in found) or "all there")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
