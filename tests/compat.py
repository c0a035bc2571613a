"""Builds one wheel and checks it, unrebuilt, in fresh environments with other releases of torch (``make compat``).

There the sources are also compiled against that torch's headers, as an installation from source does. Each environment
is removed after its check: a CUDA build of torch takes about 5 GB. Exits 1 where a check fails.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "buildtools"))

import toolchain  # noqa: E402

RELEASES = ("torch==2.10.*", "torch==2.11.*", "torch")
LIGHT = ("numpy", "click", "rich")


def run(*command: object, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([str(c) for c in command], check=True, **kwargs)


def build_wheel(folder: Path) -> Path:
    """With the torch of the environment that runs this script."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def uncompiled(python: Path) -> dict[str, str]:
    """What does not compile against the headers of that environment's torch, and why: the C++ with torch glue, CUDA's glue."""
    find = "import pathlib, torch; print(pathlib.Path(torch.__file__).parent / 'include')"
    include = run(python, "-c", find, capture_output=True, text=True).stdout.strip()
    flags = ["-std=c++20", f"-I{ROOT / 'csrc'}", f"-DTORCH_TARGET_VERSION={toolchain.TORCH_TARGET_VERSION}"]
    flags += ["-isystem", include, "-DTS_BUILT_BASE=1", "-DTS_ISA=base", "-DTS_GLUE=1", "-x"]
    commands = {s: ["c++", "-fsyntax-only", *flags, "c++", s] for s in sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))}
    if shutil.which("nvcc"):
        glue = ROOT / "csrc" / "cuda" / "glue.cuh"
        commands[glue] = ["nvcc", "-DUSE_CUDA", "-arch=sm_90", "-c", "-o", "/dev/null", *flags, "cu", glue]
    done = {
        source.name: subprocess.run(command, capture_output=True, text=True) for source, command in commands.items()
    }
    return {name: f"does not compile: {one.stderr[:500]}" for name, one in done.items() if one.returncode}


def check(release: str, wheel: Path, python: str) -> dict:
    """The smoke test's own report, or {"error": ...}."""
    with tempfile.TemporaryDirectory(prefix="torchsmith-compat-") as scratch:
        folder = Path(scratch)
        try:
            run(python, "-m", "venv", folder / "venv")
            inside = folder / "venv" / "bin" / "python"
            pip = (inside, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-cache-dir")
            run(*pip, release, *LIGHT)
            run(*pip, "--no-deps", wheel)
            shutil.copy(ROOT / "tests" / "compat_smoke.py", folder)
            # -I and a folder outside the checkout: nothing but what was installed can be imported.
            done = subprocess.run(
                [inside, "-I", "compat_smoke.py"], cwd=folder, capture_output=True, text=True, timeout=600
            )
            broken = uncompiled(inside)
        except (subprocess.SubprocessError, OSError) as error:
            return {"error": str(error)}
        lines = done.stdout.strip().splitlines()
        try:
            report = json.loads(lines[-1]) if lines else {"error": done.stderr.strip()[-2000:]}
        except json.JSONDecodeError:
            return {"error": (done.stdout + done.stderr).strip()[-2000:]}
    if "error" not in report:
        report["wrong"].update(broken)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="Python of the fresh environments")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "compat.json", help="where the record goes")
    parser.add_argument("releases", nargs="*", default=RELEASES, help="requirements, by default %(default)s")
    options = parser.parse_args()
    reports = {}
    with tempfile.TemporaryDirectory(prefix="torchsmith-wheel-") as scratch:
        wheel = build_wheel(Path(scratch))
        print(f"wheel {wheel.name}", flush=True)
        for release in options.releases:
            report = reports[release] = check(release, wheel, options.python)
            print(f"{release:16} {verdict(report)}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"wheel": wheel.name, "reports": reports}, indent=1) + "\n")
    return 0 if all(good(r) for r in reports.values()) else 1


def good(report: dict) -> bool:
    return bool(report.get("ops")) and not report.get("wrong", True)


def verdict(report: dict) -> str:
    if "error" in report:
        return f"FAILED\n{report['error']}"
    where = f"torch {report['torch']}, built against {report['built_against']}, {report['isa']}"
    if good(report):
        return f"ok: {report['ops']} ops forward and backward, {where}"
    return f"FAILED: {report['wrong'] or 'no ops'}, {where}"


if __name__ == "__main__":
    sys.exit(main())
