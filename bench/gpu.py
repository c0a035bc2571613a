"""Everything a GPU can tell, by one command (``make gpu``): build, contract tests, compute-sanitizer, benchmarks.

Works in the interpreter that runs it and installs nothing. Each stage is a process with a time limit; one that fails costs
only itself. The record (JSON) is written anew, atomically, after every stage, to bench/records/gpu.json or ``--out``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
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


def run_stage(stage: Stage) -> dict:
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
    entry["seconds"] = round(time.monotonic() - start, 1)
    try:
        entry.update(stage.read(said))
    except (ValueError, KeyError, IndexError) as error:
        entry["note"] = f"its output cannot be read: {error}"
    if entry["status"] != "passed":
        entry["error"] = said.strip()[-2000:]
    return entry


def run_stages(stages: list[Stage], record: dict, out: Path) -> dict:
    """Runs them in turn; the record is on disk after each."""
    record["stages"] = {}
    for stage in stages:
        entry = record["stages"][stage.name] = run_stage(stage)
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


def last_json(output: str) -> dict:
    return json.loads(output.strip().splitlines()[-1])


def stages(package: Path, arch: str) -> list[Stage]:
    """Limits add up to 530 s."""
    python, inside = sys.executable, {"PYTHONPATH": str(package)}
    on_device = {**inside, "TORCHSMITH_TEST_DEVICE": "cuda"}
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_contract.py"]
    small = [*tests, "-x", "-k", "test_layout_of_outputs_is_native"]  # every op forward, float32, each sample once
    build = [python, str(ROOT / "bench" / "gpu_build.py"), str(package)]
    check = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    only = {"TORCH_CUDA_ARCH_LIST": arch, "FORCE_CUDA": "1"}
    return [
        Stage("build", build, 170, environment=only),
        Stage("tests", tests, 120, pytest_counts, on_device),
        Stage("benchmarks", [python, "-m", "torchsmith.bench.gpu_times"], 120, last_json, inside),
        Stage("memcheck", [*check, "memcheck", *small], 60, pytest_counts, on_device, "compute-sanitizer"),
        Stage("racecheck", [*check, "racecheck", *small], 60, pytest_counts, on_device, "compute-sanitizer"),
    ]


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
    options = parser.parse_args(arguments)
    record = facts()
    with tempfile.TemporaryDirectory(prefix="torchsmith-gpu-") as scratch:
        run_stages(stages(Path(scratch), record["arch"]), record, options.out)
    print(f"record: {options.out}")
    return 0 if all(e["status"] in ("passed", "skipped") for e in record["stages"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
