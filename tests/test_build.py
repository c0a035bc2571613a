"""The build: what it finds, what it asks for, and what the libraries it makes hold."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import torchsmith

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(torchsmith.__file__).parent


@pytest.fixture
def toolchain(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "buildtools"))
    import toolchain

    return toolchain


@pytest.fixture
def ninjafile(toolchain):
    pytest.importorskip("pybind11", reason="the build's own requirements are not installed")
    import ninjafile

    return ninjafile


def tool(name: str, *args: object) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return subprocess.run([name, *map(str, args)], check=True, capture_output=True, text=True).stdout


# ---------------------------------------------------------------------------------------------- finding torch


def buildtools_python(code: str) -> str:
    prefix = f"import sys; sys.path.insert(0, {str(ROOT / 'buildtools')!r})\n"
    done = subprocess.run([sys.executable, "-c", prefix + code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_torch_is_found_without_importing_it():
    code = "import toolchain; t = toolchain.find_torch(); print(t.version, 'torch' in sys.modules)"
    import torch

    assert buildtools_python(code) == f"{torch.__version__} False"


def test_torch_of_the_target_environment_is_found_when_its_packages_are_hidden():
    # pip's build isolation takes site-packages from sys.path; the interpreter still knows its own folders.
    if not Path(sysconfig.get_path("purelib"), "torch").is_dir():
        pytest.skip("torch is not in this environment's own site-packages")
    code = (
        "import importlib.util as u\n"
        "sys.path[:] = [p for p in sys.path if not p.rstrip('/').endswith('-packages')]\n"
        "import toolchain; print(u.find_spec('torch'), toolchain.find_torch_dir())"
    )
    assert buildtools_python(code) == f"None {Path(sysconfig.get_path('purelib'), 'torch')}"


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_backend_asks_for_torch_only_where_there_is_none(toolchain, monkeypatch, hook):
    pytest.importorskip("setuptools")
    import backend

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    monkeypatch.setattr(backend, "_requires_wheel", lambda settings: ["other"])
    monkeypatch.setattr(backend, "_requires_editable", lambda settings: ["other"])
    assert getattr(backend, hook)() == ["other"]
    monkeypatch.setattr(toolchain, "find_torch_dir", lambda: None)
    assert getattr(backend, hook)() == ["other", "torch>=2.10"]
    monkeypatch.setenv("TORCHSMITH_BUILD_TORCH", "torch==2.13.0")
    assert getattr(backend, hook)() == ["other", "torch==2.13.0"]


def fake_torch(folder: Path, version: str, headers: bool = True) -> Path:
    torch = folder / "torch"
    torch.mkdir()
    (torch / "version.py").write_text(f"__version__ = '{version}'\n")
    if headers:
        (torch / "include" / "torch" / "csrc" / "stable").mkdir(parents=True)
        (torch / "include" / "torch" / "csrc" / "stable" / "library.h").touch()
    return torch


@pytest.mark.parametrize(
    ("version", "headers", "message"),
    [("2.9.1+cpu", True, "needs torch >= 2.10.*2.9.1"), ("2.13.0", False, "no C.. headers")],
)
def test_an_unusable_torch_is_named(toolchain, monkeypatch, tmp_path, version, headers, message):
    torch = fake_torch(tmp_path, version, headers)
    monkeypatch.setattr(toolchain, "find_torch_dir", lambda: torch)
    with pytest.raises(toolchain.BuildError, match=message):
        toolchain.find_torch()


def test_missing_tools_are_named(toolchain, monkeypatch):
    monkeypatch.setattr(toolchain, "find_torch_dir", lambda: None)
    with pytest.raises(toolchain.BuildError, match="found none"):
        toolchain.find_torch()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(toolchain.BuildError, match=r"no C\+\+ compiler"):
        toolchain.find_compiler()


@pytest.mark.parametrize("text", ["0", "two", "-1"])
def test_max_jobs_is_checked(toolchain, monkeypatch, text):
    monkeypatch.setenv("MAX_JOBS", text)
    with pytest.raises(toolchain.BuildError, match=f"MAX_JOBS.*{text}"):
        toolchain.max_jobs()
    monkeypatch.setenv("MAX_JOBS", " 3 ")
    assert toolchain.max_jobs() == 3


# ---------------------------------------------------------------------------------------------- the plan


def plan(ninjafile, root: Path, out: Path):
    return ninjafile.plan_all(root, out, "0.0.0")


def test_a_new_source_is_built_without_any_edit(ninjafile, tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "csrc" / "cpu" / "another.cpp").write_text("")
    (tmp_path / "csrc" / "plans" / "another.cpp").write_text("")
    text = plan(ninjafile, tmp_path, tmp_path / "out").text()
    for isa in ninjafile.toolchain.isas():
        assert f"another.{isa}.o: cxx" in text
    assert "plan_another.o: cxx" in text


def test_glue_is_in_the_baseline_alone_and_linked_first(ninjafile, tmp_path):
    edges = plan(ninjafile, ROOT, tmp_path).edges
    for edge in edges:
        compiled = re.match(r"build \S+\.(\w+)\.o: cxx", edge)
        if compiled:
            glue = "-DTS_GLUE=1" in edge and "-DTORCH_TARGET_VERSION=" in edge
            assert glue == (compiled.group(1) == "base")
            assert ("-m" in re.findall(r" (-m)", edge)) == (compiled.group(1) != "base")
            assert "-ffast-math" not in edge
    (link,) = [e for e in edges if "_cpu.so: link" in e]
    order = re.findall(r"\.(\w+)\.o", link)
    ranks = list(ninjafile.toolchain.isas())
    assert order == sorted(order, key=ranks.index), "the baseline's copy of a shared function must come first"


def test_paths_with_spaces_and_dollars_build(ninjafile, tmp_path):
    assert ninjafile._path(Path("/a b/$c:d")) == "/a$ b/$$c$:d"
    assert ninjafile._flags(["-DX=a b", "-Wl,-rpath,$ORIGIN"]) == "'-DX=a b' '-Wl,-rpath,$$ORIGIN'"


def test_the_runtime_is_shared_where_the_static_one_is_found_first(ninjafile, toolchain, tmp_path):
    """In a folder of its own: for -lstdc++ the linker takes libstdc++.a from there."""
    static = Path(tool(*shlex.split(toolchain.find_compiler()), "-print-file-name=libstdc++.a").strip())
    if not static.is_absolute():
        pytest.skip("there is no libstdc++.a, hence nothing to take by mistake")
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / static.name).symlink_to(static)
    (tmp_path / "a.cpp").write_text(
        "#include <sstream>\nint f(int i) { return (std::ostringstream() << i).str().size(); }"
    )
    built = plan(ninjafile, ROOT, tmp_path)
    built.edges.clear()
    made = built.edge("cxx", tmp_path / "a.o", [tmp_path / "a.cpp"], built.flags())
    built.edge("link", tmp_path / "a.so", [made], ["-Wl,--as-needed", f"-L{tmp_path / 'static'}"])
    (tmp_path / "build.ninja").write_text(built.text())
    subprocess.run([toolchain.find_ninja(), "-C", str(tmp_path)], check=True, capture_output=True)
    assert "[libstdc++.so.6]" in tool("readelf", "-d", tmp_path / "a.so")


# ---------------------------------------------------------------------------------------------- the libraries


def libraries() -> list[Path]:
    found = [PACKAGE / "_cpu.so", *PACKAGE.glob("_native*.so")]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("library", libraries(), ids=lambda p: p.name.partition(".")[0])
def test_libraries_hold_no_path_and_no_symbol_table(library):
    dynamic = tool("readelf", "-d", library)
    for path in re.findall(r"(?:RPATH|RUNPATH)\)\s+Library \w+: \[(.*)\]", dynamic):
        assert path == "$ORIGIN"
    assert ".symtab" not in tool("readelf", "-S", "--wide", library)
    assert str(ROOT).encode() not in library.read_bytes()
    needed = set(re.findall(r"NEEDED\)\s+Shared library: \[(.*)\]", dynamic))
    allowed = r"lib(torch_cpu|torch|c10|stdc\+\+|gcc_s|c|m|pthread|dl)\.so.*|ld-linux.*|_cpu\.so"
    assert all(re.fullmatch(allowed, name) for name in needed), needed


def test_the_cpu_library_exports_only_its_c_interface():
    names = re.findall(r" [TDBRVWui] (\S+)", tool("nm", "-D", "--defined-only", PACKAGE / "_cpu.so"))
    # What else is visible are inline functions of the standard library and torch's headers, by their own attributes.
    assert not [n for n in names if "2ts" in n], "kernels must stay inside the library"
    assert {"ts_isa_found", "ts_isa_force", "ts_registry"} <= set(names)


def isa_objects() -> list[Path]:
    folder = ROOT / "build" / "native" / f"{sys.implementation.cache_tag}-{sysconfig.get_platform().rpartition('-')[2]}"
    return sorted(p for isa in ("avx2", "avx512") for p in folder.glob(f"*.{isa}.o"))


def test_objects_for_wider_machines_share_no_function_with_the_baseline():
    """Of an inline function that two objects define, the linker keeps one: an AVX-512 one would crash elsewhere."""
    objects = isa_objects()
    if not objects:
        pytest.skip("the objects of the build are not here")
    shared = []
    for path in objects:
        isa = path.suffixes[0][1:]
        for line in tool("nm", "-C", "--defined-only", path).splitlines():
            match = re.match(r"[0-9a-f]* ([TWVuBDR]) (.*)", line)
            # Some names of nested lambdas nm leaves as they are.
            if match and not re.search(rf"ts::{isa}::|^_ZZ*NK?2ts{len(isa)}{isa}\d", match.group(2)):
                shared.append(f"{path.name}: {match.group(2)}")
    assert not shared


# ---------------------------------------------------------------------------------------------- the wheel


def test_wheel_holds_the_rooms_and_no_source(tmp_path):
    for name in ("setuptools", "pybind11", "ninja"):
        pytest.importorskip(name, reason="the build's own requirements are not installed")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", tmp_path, ROOT], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("torchsmith-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for wanted in ("__init__.py", "_cpu.so", f"_native{suffix}", "bench/harness.py", "kernels/__init__.py", "spec.py"):
        assert f"torchsmith/{wanted}" in names
    assert {n.split("/")[0] for n in names if not n.startswith("torchsmith-")} == {"torchsmith"}
    assert not [n for n in names if n.endswith((".cpp", ".h", ".o"))]
    for folder, package in (("pyext", ""), ("bench", "bench/"), ("kernels", "kernels/")):
        for source in (ROOT / folder).rglob("*.py"):
            assert f"torchsmith/{package}{source.relative_to(ROOT / folder).as_posix()}" in names
