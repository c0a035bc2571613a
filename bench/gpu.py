"""Everything a GPU can tell, by one command (``make gpu``): build, contract tests, compute-sanitizer, benchmarks.

Works in the interpreter that runs it and installs nothing. Each stage is a process with a time limit; one that fails costs
only itself. The record (JSON) is written anew, atomically, after every stage, to bench/records/gpu.json or ``--out``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Stage:
    name: str
    command: list[str]
    seconds: int  #: its time limit
    read: Callable[[str], dict] = lambda output: {}  #: facts for the record from what it printed
    environment: dict[str, str] = field(default_factory=dict)
    tool: str = ""  #: a program without which the stage is skipped


def run_stage(stage: Stage, logs: Path | None = None) -> dict:
    """The stage's entry in the record: ``status`` (passed, failed, timed out, skipped), seconds, facts, error."""
    if stage.tool and shutil.which(stage.tool) is None:
        return {"status": "skipped", "note": f"{stage.tool} is not installed"}
    start, entry = time.monotonic(), {}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            process = subprocess.Popen(
                stage.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **stage.environment},
                start_new_session=True,
            )
        except OSError as error:
            return {"status": "failed", "seconds": 0.0, "error": str(error)}
        try:
            entry["status"] = "failed" if process.wait(stage.seconds) else "passed"
        except subprocess.TimeoutExpired:
            entry["status"] = "timed out"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the stage's own group
            process.wait()
        output.seek(0)
        said = output.read()
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / f"{stage.name.replace(' ', '_')}.txt").write_text(said)
    entry["seconds"] = round(time.monotonic() - start, 1)
    try:
        entry.update(stage.read(said))
    except (ValueError, KeyError, IndexError) as error:
        entry["note"] = f"its output cannot be read: {error}"
    if entry["status"] != "passed":
        entry["error"] = said.strip()[-2000:]
    return entry


def run_stages(stages: list[Stage], record: dict, out: Path, logs: Path | None = None) -> dict:
    """Runs them in turn; the record is on disk after each."""
    record["stages"] = {}
    for stage in stages:
        entry = record["stages"][stage.name] = run_stage(stage, logs)
        print(
            f"{stage.name:12} {entry['status']:10} {entry.get('seconds', 0):6.1f} s  {entry.get('note', '')}",
            flush=True,
        )
        save(record, out)
    return record


def save(record: dict, out: Path) -> None:
    """All or nothing, as bench/report.py does it, which needs the built package."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
        file.write(json.dumps(record, indent=1) + "\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, out)


def pytest_counts(output: str) -> dict:
    """The numbers of pytest's last line; of a run cut short, those of the letters it had printed."""
    lines = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?)", lines[-1]) if lines else []
    if found:
        return {"counts": {name: int(count) for count, name in found}}
    letters = "".join(re.findall(r"^([.FsE]+)(?: +\[ *\d+%\])?$", output, re.MULTILINE))
    words = {".": "passed", "F": "failed", "s": "skipped", "E": "errors"}
    return {"counts": {word: letters.count(letter) for letter, word in words.items() if letter in letters}}


def timed_rows(output: str) -> dict:
    """The rows printed so far; of one that came again the last."""
    rows = (json.loads(line) for line in output.splitlines() if line.startswith('{"op"') and line.endswith("}"))
    found = {(row["op"], row["label"], row["mode"], row["tf32"]): row for row in rows}
    if not found:
        raise ValueError("no row of it was printed")
    return {"rows": list(found.values())}


def sanitized(output: str) -> dict:
    """How many calls were checked, and the sanitizer's own summary."""
    counts = [json.loads(line) for line in output.splitlines() if line.startswith('{"calls"')]
    summary = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY: .*)$", output, re.MULTILINE)
    return {**counts[0], "summary": summary[-1]}


def stages(package: Path, arch: str, libraries: Path | None = None) -> list[Stage]:
    """Limits add up to less than nine minutes. ``libraries``: a folder of libraries built already."""
    python, inside = sys.executable, {"PYTHONPATH": str(package)}
    on_device = {**inside, "TORCHSMITH_TEST_DEVICE": "cuda"}
    tests = [python, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    tests += _in_parallel()
    build = [python, str(ROOT / "bench" / "gpu_build.py"), str(package), *([str(libraries)] if libraries else [])]
    check = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    small = [python, "-m", "torchsmith.bench.gpu_sanitize"]
    only = {"TORCH_CUDA_ARCH_LIST": arch, "FORCE_CUDA": "1"}
    # Else a tensor's neighbours in the cache hide what is written beside it.
    uncached = {**inside, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Stage("build", build, 120, environment=only),
        Stage("tests", [*tests, "tests/test_contract.py"], 100, pytest_counts, on_device),
        Stage("on device", [*tests, "tests/on_device.py"], 120, pytest_counts, on_device),
        Stage("benchmarks", [python, "-m", "torchsmith.bench.gpu_times"], 110, timed_rows, inside),
        Stage("memcheck", [*check, "memcheck", *small, "25"], 45, sanitized, uncached, "compute-sanitizer"),
        Stage("racecheck", [*check, "racecheck", *small, "20"], 40, sanitized, inside, "compute-sanitizer"),
    ]


def _in_parallel() -> list[str]:
    """pytest's options for several processes, where its plugin for that is installed: most of a test is Python's time."""
    processes = min(12, (os.cpu_count() or 2) * 3 // 4)
    return ["-n", str(processes)] if importlib.util.find_spec("xdist") and processes > 1 else []


def facts() -> dict:
    """Date, device, driver, torch, nvcc. Raises SystemExit where there is no GPU."""
    try:
        import torch
    except ImportError:
        raise SystemExit("make gpu: this Python has no torch; name one that has with PYTHON=...") from None
    if torch.version.cuda is None or not torch.cuda.is_available():
        raise SystemExit(
            f"make gpu: torch {torch.__version__} finds no NVIDIA GPU here. Nothing was measured or written."
        )
    major, minor = torch.cuda.get_device_capability()
    return {
        "format": 1,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "arch": f"{major}.{minor}",
        "driver": say("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "nvcc": say("nvcc", "--version"),
    }


def say(*command: str) -> str | None:
    """The last line a program prints; None where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[-2]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "records" / "gpu.json")
    parser.add_argument("--libraries", type=Path, help="folder of libraries built already: they are not built again")
    parser.add_argument("--logs", type=Path, help="folder for all that the stages print")
    options = parser.parse_args(arguments)
    record = facts()
    with tempfile.TemporaryDirectory(prefix="torchsmith-gpu-") as scratch:
        run_stages(stages(Path(scratch), record["arch"], options.libraries), record, options.out, options.logs)
    print(f"record: {options.out}")
    return 0 if all(e["status"] in ("passed", "skipped") for e in record["stages"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
