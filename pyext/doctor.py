"""``torchsmith doctor``: what this installation was built for, what it finds here, and the cure of what does not fit.

It runs also where torchsmith, or torch itself, cannot be imported: nothing of either is imported at the top of this file,
and ``torchsmith/__init__.py`` calls :func:`stand_in` when its own import fails.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from .cli import HelpfulCommand  # needs nothing but click

__all__ = ["Check", "diagnose", "doctor", "stand_in"]

FOLDER = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 10)
REBUILD = "pip install --force-reinstall --no-deps . (in the repository of torchsmith)"


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    name: str
    level: str  #: "ok", "note" (works, but not all of it, or not as one might think) or "problem"
    found: str
    cure: str = ""


# ------------------------------------------------------------------------------------------------ what is checked


@contextlib.contextmanager
def _failure(into: list[str]) -> Iterator[None]:
    """Keeps the text of whatever is raised inside."""
    try:
        yield
    except Exception as error:  # a broken installation raises anything
        into.append(f"{type(error).__name__}: {error.__cause__ or error}")


def check_python() -> Iterator[Check]:
    ours = [f.name for f in FOLDER.glob("_native*.so")]
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    found = f"{platform.python_version()} ({sys.executable})"
    if ours and f"_native{suffix}" not in ours:
        yield Check("python", "problem", f"{found}, but the library is built for {', '.join(ours)}", REBUILD)
    else:
        yield Check("python", "ok", found)


def check_torch() -> Iterator[Check]:
    failed: list[str] = []
    with _failure(failed):
        torch = importlib.import_module("torch")
        cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        found = f"{torch.__version__}, {cuda} ({Path(torch.__file__).parent})"
        if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
            yield Check("torch", "problem", f"{found}: too old", "pip install 'torch>=2.10'")
        else:
            yield Check("torch", "ok", found)
    if failed:
        yield Check("torch", "problem", failed[0], "pip install 'torch>=2.10'")


#: Part of a loader's message -> what it means, what to do.
LOAD_ERRORS = (
    (r"undefined symbol", "the library and this torch do not fit: another ABI, or a torch older than 2.10", REBUILD),
    (r"GLIBC(XX)?_[\d.]+' not found|CXXABI_[\d.]+' not found", "built on a newer system than this", REBUILD),
    (
        r"libcudart|libcuda\.so",
        "CUDA's own libraries are not found",
        "install NVIDIA's driver, or a CUDA build of torch",
    ),
    (r"cannot open shared object file", "a library that it needs is not found", "reinstall torch, then " + REBUILD),
    (r"file too short|invalid ELF header|wrong ELF class", "the file is damaged, or of another processor", REBUILD),
)


def _explained(name: str, text: str) -> Check:
    for pattern, meaning, cure in LOAD_ERRORS:
        if re.search(pattern, text):
            return Check(name, "problem", f"{meaning}: {text}", cure)
    return Check(name, "problem", text, REBUILD)


def _load(file: Path) -> str:
    """Loads a library of ours; why it cannot be, or ""."""
    failed: list[str] = []
    with _failure(failed):
        importlib.import_module("torch").ops.load_library(str(file))
    return failed[0] if failed else ""


def check_library() -> Iterator[Check]:
    file = FOLDER / "_cpu.so"
    if not file.is_file():
        yield Check(
            "library", "problem", f"{file} is missing: torchsmith is not built", "pip install . (in the repository)"
        )
        return
    if text := _load(file):
        yield _explained("library", text)
        return
    failed: list[str] = []
    with _failure(failed):
        native = importlib.import_module("torchsmith._native")
        built = native.build_info()
        facts = f"torchsmith {built['version']} by {built['compiler']} against torch {built['torch']}"
        yield Check("library", "ok", f"{facts}, for any from {built['torch_target']}")
        yield from _check_age(native)
    if failed and "TORCHSMITH_ISA" in failed[0]:
        yield Check(
            "instruction set", "problem", failed[0], "unset TORCHSMITH_ISA, or set it to one that is allowed here"
        )
    elif failed:
        yield _explained("library", failed[0])


def _check_age(native: Any) -> Iterator[Check]:
    """The library beside the Python sources, which a changed checkout leaves behind."""
    called = set()
    for source in (FOLDER / "ops").glob("*.py"):
        called |= set(re.findall(r'\bkernel\("(\w+)"\)', source.read_text(encoding="utf-8")))
    missing = called - {row["op"] for row in native.registry()}
    if missing:
        yield Check("library", "problem", f"older than the sources: it has no {', '.join(sorted(missing))}", REBUILD)


def check_instruction_set() -> Iterator[Check]:
    native = importlib.import_module("torchsmith._native")
    active, best = native.isa_active(), native.isa_found()
    forced = os.environ.get("TORCHSMITH_ISA")
    if forced and active != best:
        found = f"{active}, forced by TORCHSMITH_ISA; {best} is there and faster"
        yield Check("instruction set", "note", found, "unset TORCHSMITH_ISA")
    elif best != native.isa_built()[-1] and best == "base":
        yield Check(
            "instruction set", "note", f"{best}: this processor has no AVX2, kernels are slower than they could be"
        )
    else:
        yield Check("instruction set", "ok", f"{active} (here: {', '.join(native.isa_available())})")


def check_compiler() -> Iterator[Check]:
    wanted = (os.environ.get("CXX"), "g++", "clang++", "c++")
    found = next((path for name in wanted if name and (path := shutil.which(name))), None)
    if found is None:
        found = "none: torch.compile's CPU code and a rebuild of torchsmith need one"
        yield Check("C++ compiler", "note", found, "install g++ or clang++")
    else:
        yield Check("C++ compiler", "ok", found)


def check_cuda() -> Iterator[Check]:
    torch = importlib.import_module("torch")
    file, gpus = FOLDER / "_cuda.so", sorted(Path("/dev").glob("nvidia[0-9]*"))
    if torch.version.cuda is None:
        if gpus:
            found = f"{len(gpus)} NVIDIA device(s), but this torch has no CUDA"
            yield Check("CUDA", "note", found, "install a CUDA build of torch: https://pytorch.org/get-started/locally")
        else:
            yield Check(
                "CUDA",
                "ok",
                f"not used: no GPU, torch without CUDA; _cuda.so {'built' if file.is_file() else 'not built'}",
            )
        return
    if not file.is_file():
        level = "problem" if gpus else "note"
        yield Check(
            "CUDA", level, "torch has CUDA, but torchsmith was built without its CUDA kernels", _how_to_build_cuda()
        )
    elif text := _load(file):
        yield _explained("CUDA", text)
    else:
        yield from _check_driver(torch)


def _how_to_build_cuda() -> str:
    nvcc = shutil.which("nvcc") or next((str(p) for p in [Path("/usr/local/cuda/bin/nvcc")] if p.is_file()), None)
    need = "" if nvcc else "install the CUDA toolkit (12 or newer) or set CUDA_HOME, then "
    return f"{need}FORCE_CUDA=1 {REBUILD}"


def _check_driver(torch: Any) -> Iterator[Check]:
    failed: list[str] = []
    with _failure(failed):
        torch.cuda.init()
    if failed:
        if "too old" in failed[0]:
            yield Check(
                "CUDA", "problem", failed[0], f"a driver for CUDA {torch.version.cuda} or newer, or an older torch"
            )
        else:
            yield Check("CUDA", "note", f"kernels are there, no GPU to run them: {failed[0].splitlines()[0]}")
        return
    archs = importlib.import_module("torchsmith._native").build_info()["cuda_archs"]
    for index in range(torch.cuda.device_count()):
        yield fits(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index), archs)


def fits(gpu: str, capability: tuple[int, int], archs: list[str]) -> Check:
    """Whether a library built for ``archs`` ("8.0", "9.0a", "12.0+PTX") runs on a GPU of this compute capability."""
    own = f"{capability[0]}.{capability[1]}"
    for arch in archs:
        major, minor = (int(n) for n in re.match(r"(\d+)\.(\d+)", arch).groups())
        # A binary runs on later minor versions of its major one, an "a" one on its own alone; PTX is compiled for later ones.
        exact = own == f"{major}.{minor}"
        if exact or (major == capability[0] and minor <= capability[1] and arch[-1] not in "af" and "PTX" not in arch):
            return Check("CUDA", "ok", f"{gpu} ({own}), kernels for {arch}")
        if arch.endswith("+PTX") and (major, minor) <= capability:
            return Check(
                "CUDA", "ok", f"{gpu} ({own}), kernels for {arch}: the driver compiles them at the first start"
            )
    found = f"{gpu} has compute capability {own}, the kernels are built for {', '.join(archs) or 'none'}"
    return Check("CUDA", "problem", found, f"TORCH_CUDA_ARCH_LIST={own} {REBUILD}")


def check_toolkit() -> Iterator[Check]:
    """nvcc matters where CUDA kernels are to be built; its major version must be torch's."""
    cuda = importlib.import_module("torch").version.cuda
    nvcc = shutil.which("nvcc")
    if cuda is None or nvcc is None:
        return
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    version = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if version and version[1] != cuda.partition(".")[0]:
        yield Check(
            "nvcc", "note", f"{nvcc} is CUDA {version[1]}.{version[2]}, torch's is {cuda}", f"a toolkit of CUDA {cuda}"
        )
    else:
        yield Check("nvcc", "ok", f"{nvcc}{f', CUDA {version[1]}.{version[2]}' if version else ''}")


def check_triton() -> Iterator[Check]:
    absent = importlib.import_module("torchsmith.triton_backend").absent()
    if absent:
        yield Check("triton", "note", f"absent: {absent}", "pip install 'torchsmith[triton]', where a GPU is to use it")
    else:
        yield Check("triton", "ok", importlib.import_module("triton").__version__)


def check_cache() -> Iterator[Check]:
    tuned = importlib.import_module("torchsmith.tuned")
    path = tuned.table_path()
    failed: list[str] = []
    with _failure(failed):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    if failed:
        yield Check(
            "cache",
            "problem",
            f"{path.parent} cannot be written: {failed[0]}",
            "set TORCHSMITH_CACHE to another folder",
        )
    if not path.is_file():
        if not failed:
            yield Check("cache", "ok", f"{path.parent}; nothing measured yet (torchsmith tune)")
        return
    with _failure(failed := []):
        data = json.loads(path.read_text(encoding="utf-8"))
        made = data["made_for"] if data["format"] == tuned.FORMAT else {"format": data["format"]}
        now = tuned.made_for() if data["format"] == tuned.FORMAT else {"format": tuned.FORMAT}
        other = [f"{name} {made.get(name)}, here {now[name]}" for name in now if made.get(name) != now[name]]
        if other:
            yield Check("tuning", "note", f"{path} is ignored: made for {'; '.join(other)}", "torchsmith tune")
        else:
            entries = len(tuned.Table.load().entries)
            if entries != len(data["entries"]):
                raise ValueError(f"{len(data['entries'])} entries, of which none can be read")
            yield Check("tuning", "ok", f"{path}: {entries} entries in use")
    if failed:
        yield Check(
            "tuning", "problem", f"{path} is damaged ({failed[0]}) and ignored", f"rm {path}, then torchsmith tune"
        )


def check_data() -> Iterator[Check]:
    folder = os.environ.get("TORCHSMITH_DATA")
    if not folder:
        yield Check("data", "ok", "embedded (TORCHSMITH_DATA is not set)")
        return
    held = [name for name in ("mnist", "names", "diabetes") if (Path(folder) / name).is_dir()]
    if held:
        yield Check("data", "ok", f"{folder}: {', '.join(held)}")
    else:
        what = "holds none of mnist/, names/, diabetes/" if Path(folder).is_dir() else "is no folder"
        yield Check(
            "data", "problem", f"TORCHSMITH_DATA: {folder} {what}", "set it to the folder that holds them, or unset it"
        )


# ------------------------------------------------------------------------------------------------ the diagnosis

#: In this order; those of the second line need a library that loads.
FIRST: tuple[Callable[[], Iterator[Check]], ...] = (check_python, check_torch)
WITH_TORCH = (check_library, check_cuda, check_toolkit)
WITH_LIBRARY = (check_instruction_set, check_triton, check_cache)
ALWAYS = (check_compiler, check_data)


def diagnose(error: BaseException | None = None) -> list[Check]:
    """Every check that can be made here. ``error``: why ``import torchsmith`` failed, if it did."""
    checks: list[Check] = []

    def make(functions: tuple[Callable[[], Iterator[Check]], ...]) -> bool:
        for function in functions:
            failed: list[str] = []
            with _failure(failed):
                checks.extend(function())
            if failed:
                checks.append(Check(function.__name__.removeprefix("check_"), "problem", failed[0], REBUILD))
        return not any(check.level == "problem" for check in checks)

    if make(FIRST) and make(WITH_TORCH) and error is None:
        make(WITH_LIBRARY)
    make(ALWAYS)
    if error is not None and not any(check.level == "problem" for check in checks):
        checks.append(Check("import", "problem", f"{type(error).__name__}: {error}", REBUILD))
    return checks


@click.command(cls=HelpfulCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.pass_obj
def doctor(error: BaseException | None, as_json: bool) -> None:
    """Check this installation, and say how to cure what is wrong with it.

    Versions built against and found, instruction set, CUDA, Triton, cache, data. It also runs where torchsmith cannot be
    imported. Exit code 1 if there is a problem; notes are none.
    """
    checks = diagnose(error)
    problems = sum(check.level == "problem" for check in checks)
    if as_json:
        click.echo(json.dumps({"problems": problems, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        _show(checks, problems)
    sys.exit(1 if problems else 0)


def _show(checks: list[Check], problems: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "what", "found"):
        table.add_column(column, overflow="fold")
    styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for check in checks:
        found = Text(check.found)
        if check.cure:
            found.append(f"\n-> {check.cure}", "bold")
        table.add_row(Text(check.level, styles[check.level]), Text(check.name), found)
    (console if console.is_terminal else Console(width=160)).print(table)
    verdict = f"{problems} problem{'s' * (problems != 1)}: see the arrows" if problems else "torchsmith is well"
    console.print(Text(verdict, styles["problem" if problems else "ok"]))


def stand_in(error: BaseException) -> None:
    """Runs the doctor, and ends the process, where the command is ``torchsmith doctor`` and torchsmith cannot be imported."""
    command = list(sys.orig_argv)
    module = "-m" in command and command[command.index("-m") + 1 :][:1] == ["torchsmith"]
    if (module or Path(sys.argv[0]).name == "torchsmith") and sys.argv[1:2] == ["doctor"]:
        doctor.main(sys.argv[2:], prog_name="torchsmith doctor", obj=error)
