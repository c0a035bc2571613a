"""``torchsmith doctor`` and ``torchsmith selftest``: what they say of a sound installation, and of each broken one."""

import json
import os
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import processes
import pytest
import torch
from click.testing import CliRunner

import torchsmith
from torchsmith import _native, contract, doctor, selftest, spec, tuned
from torchsmith.cli import main

PACKAGE = Path(torchsmith.__file__).parent


def run(*args):
    return CliRunner().invoke(main, args, prog_name="torchsmith")


def levels(checks, name):
    return [(check.level, check.found) for check in checks if check.name == name]


def the(checks, name):
    (check,) = (check for check in checks if check.name == name)
    return check


# ------------------------------------------------------------------------------------------------ doctor


def test_a_sound_installation():
    result = run("doctor", "--json")
    facts = json.loads(result.output)
    assert result.exit_code == 0 and facts["problems"] == 0
    found = {check["name"]: check["found"] for check in facts["checks"]}
    assert {"python", "torch", "library", "CUDA", "instruction set", "triton", "cache", "data"} <= set(found)
    assert found["torch"].startswith(torch.__version__)
    assert _native.build_info()["torch"] in found["library"] and _native.isa_active() in found["instruction set"]
    table = run("doctor")
    assert table.exit_code == 0 and "torchsmith is well" in table.output and _native.isa_active() in table.output


@pytest.fixture
def copy_of_the_package(tmp_path):
    """A package folder of its own, so that what is broken in it is nobody else's; returns what changes it and runs there."""

    def make(change):
        folder = tmp_path / "torchsmith"
        shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        for library in PACKAGE.glob("*.so"):
            (folder / library.name).symlink_to(library)
        for room in ("bench", "kernels"):  # of a checkout; an installed package holds them
            if not (folder / room).exists():
                (folder / room).symlink_to(PACKAGE.parent / room)
        change(folder)

        def run(*args, **env):
            env = {**os.environ, "PYTHONPATH": str(tmp_path), **env}
            return processes.run(*args, cwd=tmp_path, env=env)

        return run

    return make


def remove(folder, name):
    (folder / name).unlink()


def damage(folder, name):
    (folder / name).unlink()
    (folder / name).write_bytes(b"\x7fELF not a library")


def stale(folder):
    """Sources that call an op which the library does not have."""
    file = folder / "ops" / "linear.py"
    file.write_text(file.read_text().replace('kernel("linear_forward")', 'kernel("linear_forward_v2")'))


NATIVE = f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
BROKEN = {
    "not built": (lambda f: remove(f, "_cpu.so"), {}, "library", "not built", "pip install ."),
    "damaged": (lambda f: damage(f, "_cpu.so"), {}, "library", "damaged", "pip install --force-reinstall"),
    "other python": (
        lambda f: (f / NATIVE).rename(f / "_native.cpython-39-x86_64-linux-gnu.so"),
        {},
        "python",
        "built for _native.cpython-39",
        "pip install --force-reinstall",
    ),
    "stale": (stale, {}, "library", "it has no linear_forward_v2", "pip install --force-reinstall"),
    "isa": (lambda f: None, {"TORCHSMITH_ISA": "sse9"}, "instruction set", "'sse9' is not an", "unset TORCHSMITH_ISA"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_installation_that_cannot_be_imported(copy_of_the_package, name):
    change, env, what, found, cure = BROKEN[name]
    command = copy_of_the_package(change)
    done = command("-m", "torchsmith", "doctor", "--json", **env)
    assert done.returncode == 1, done.stderr
    check = next(c for c in json.loads(done.stdout)["checks"] if c["name"] == what and c["level"] == "problem")
    assert found in check["found"] and cure in check["cure"]
    if name == "not built":
        done = command("-m", "torchsmith", "doctor")
        assert done.returncode == 1 and "1 problem: see the arrows" in done.stdout and "pip install ." in done.stdout
        done = command("-m", "torchsmith", "info")  # other commands fail as ever
        assert done.returncode == 1 and "torchsmith is not built" in done.stderr and not done.stdout


def test_the_console_script_stands_in_too(copy_of_the_package, tmp_path):
    script = tmp_path / "bin" / "torchsmith"  # what pip makes of the entry point
    script.parent.mkdir()
    script.write_text("import sys\nfrom torchsmith.cli import main\nsys.exit(main())\n")
    done = copy_of_the_package(lambda folder: remove(folder, "_cpu.so"))(str(script), "doctor")
    assert done.returncode == 1 and "not built" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "text, meaning",
    [
        ("/x/_cpu.so: undefined symbol: aoti_torch_call_dispatcher", "a torch older than 2.10"),
        (
            "/lib64/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by /x/_cpu.so)",
            "built on a newer system",
        ),
        ("libcudart.so.13: cannot open shared object file: No such file or directory", "CUDA's own libraries"),
        ("libtorch.so: cannot open shared object file: No such file or directory", "a library that it needs"),
    ],
)
def test_what_the_loader_says_is_explained(text, meaning):
    check = doctor._explained("library", text)
    assert check.level == "problem" and meaning in check.found and text in check.found and check.cure


@pytest.mark.parametrize(
    "capability, archs, level",
    [
        ((9, 0), ["8.0", "9.0"], "ok"),
        ((8, 6), ["8.0", "9.0"], "ok"),  # a binary runs on later minor versions
        ((7, 0), ["7.5", "8.0"], "problem"),
        ((10, 0), ["8.0", "9.0a"], "problem"),
        ((12, 1), ["9.0", "12.0+PTX"], "ok"),
        ((9, 0), [], "problem"),
        ((8, 9), ["9.0+PTX"], "problem"),
    ],
)
def test_the_gpu_must_be_among_the_built_ones(capability, archs, level):
    check = doctor.fits("a GPU", capability, archs)
    assert check.level == level
    assert level == "ok" or f"TORCH_CUDA_ARCH_LIST={capability[0]}.{capability[1]}" in check.cure


def test_cuda_in_torch_without_our_kernels(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "FOLDER", tmp_path)
    (check,) = doctor.check_cuda()
    assert check.level in ("note", "problem") and "FORCE_CUDA=1" in check.cure
    (tmp_path / "_cuda.so").write_bytes(b"not a library")
    (check,) = doctor.check_cuda()
    assert check.level == "problem" and "damaged" in check.found


def test_an_old_driver(monkeypatch, tmp_path):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    (check,) = doctor._check_driver(torch)
    assert check.level == "problem" and "too old" in check.found and "CUDA 13.0" in check.cure


def test_triton_absent_is_a_note(monkeypatch):
    monkeypatch.setattr(torchsmith.triton_backend, "absent", lambda: "ModuleNotFoundError: No module named 'triton'")
    (check,) = doctor.check_triton()
    assert check.level == "note" and "No module named 'triton'" in check.found and "torchsmith[triton]" in check.cure


def test_cache_and_table(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHSMITH_CACHE", str(tmp_path / "cache"))
    assert levels(doctor.check_cache(), "cache")[0][0] == "ok"
    table = tuned.table_path()
    tuned.Table().save()
    assert [c.level for c in doctor.check_cache()] == ["ok"]
    data = json.loads(table.read_text())
    table.write_text(json.dumps({**data, "made_for": {**data["made_for"], "torch": "2.10.0"}}))
    (check,) = doctor.check_cache()
    assert check.level == "note" and "made for torch 2.10.0, here" in check.found
    table.write_text("{")
    (check,) = doctor.check_cache()
    assert check.level == "problem" and "damaged" in check.found and f"rm {table}" in check.cure
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHSMITH_CACHE", str(tmp_path / "file" / "below"))
    (check,) = doctor.check_cache()
    assert check.level == "problem" and "cannot be written" in check.found and "TORCHSMITH_CACHE" in check.cure


def test_data(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHSMITH_DATA", str(tmp_path))
    (check,) = doctor.check_data()
    assert check.level == "problem" and "holds none of" in check.found
    (tmp_path / "mnist").mkdir()
    (check,) = doctor.check_data()
    assert check.level == "ok" and check.found.endswith("mnist")
    monkeypatch.setenv("TORCHSMITH_DATA", str(tmp_path / "gone"))
    assert the(doctor.check_data(), "data").level == "problem"
    assert run("doctor").exit_code == 1


def test_a_forced_instruction_set_is_a_note(monkeypatch):
    if _native.isa_found() == "base":
        pytest.skip("there is none but base")
    monkeypatch.setenv("TORCHSMITH_ISA", "base")
    _native.force_isa("base")
    try:
        (check,) = doctor.check_instruction_set()
    finally:
        _native.force_isa(None)
    assert check.level == "note" and "base, forced by TORCHSMITH_ISA" in check.found


def test_a_check_that_breaks_is_a_problem(monkeypatch):
    def check_data():
        raise PermissionError("no")
        yield

    monkeypatch.setattr(doctor, "ALWAYS", (check_data,))
    assert the(doctor.diagnose(), "data") == doctor.Check("data", "problem", "PermissionError: no", doctor.REBUILD)


# ------------------------------------------------------------------------------------------------ selftest


def test_right_kernels(monkeypatch):
    result = run("selftest", "--op", "linear_relu", "--op", "gru_cell", "--dtype", "float32", "--json")
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and facts["wrong"] == 0
    expected = {(op, isa) for op in ("linear_relu", "gru_cell") for isa in _native.isa_available()}
    assert {(row["op"], row["implementation"]) for row in facts["rows"]} == expected
    counts = {s.name: len(list(s.samples(torch.float32, torch.device("cpu")))) for s in spec.all_specs()}
    assert all(row["samples"] == counts[row["op"]] and row["dtype"] == "float32" for row in facts["rows"])
    assert _native.isa_active() == _native.isa_found()
    table = run("selftest", "--op", "linear", "--dtype", "bfloat16", "--isa", "base")
    assert table.exit_code == 0 and f"{counts['linear']} right" in table.output
    assert "all right: 1 kernels on this machine" in table.output


def test_every_instruction_set_is_in_force_for_its_row(monkeypatch):
    seen = []
    monkeypatch.setattr(contract.Expected, "wrong", lambda self, by: seen.append((by, _native.isa_active())) or ())
    result = run("selftest", "--op", "linear", "--dtype", "float32", "--json")
    assert result.exit_code == 0
    assert set(seen) == {("cpp", isa) for isa in _native.isa_available()}


def test_a_wrong_kernel_is_found(monkeypatch):
    (linear,) = (s for s in spec.all_specs() if s.name == "linear")

    def wrong(input, weight, bias=None):
        y = linear.function(input, weight, bias)
        return y if y.numel() < 2 else torch.cat((y.flatten()[:-1], y.flatten()[-1:] * 1.001)).view_as(y)

    monkeypatch.setattr(selftest, "all_specs", lambda: (replace(linear, function=wrong),))
    result = run("selftest", "--dtype", "float32", "--isa", "base", "--json")
    (row,) = json.loads(result.stdout)["rows"]
    assert result.exit_code == 1 and any(text.startswith("15x16x33: output 0: error ") for text in row["wrong"])
    table = run("selftest", "--dtype", "float32", "--isa", "base")
    assert table.exit_code == 1 and "WRONG: 1 of 1 kernels" in table.output and "output 0: error" in table.output


def test_a_kernel_that_raises_or_does_not_compute_is_found(monkeypatch):
    (linear,) = (s for s in spec.all_specs() if s.name == "linear")
    sample = contract.samples_of(linear, torch.float32, torch.device("cpu"))[1]

    def raising(*args):
        raise RuntimeError("no such kernel")

    found = selftest._judged(
        contract.Expected(replace(linear, function=raising, reference=linear.reference), sample), "base"
    )
    assert found == ["RuntimeError: no such kernel"]
    expected = contract.Expected(linear, sample)
    monkeypatch.setattr(contract, "backend", lambda name: torchsmith.backend("torch"))
    assert list(expected.wrong()) == ['computed by torch: backend("torch") is set']


@pytest.mark.parametrize(
    "args, words",
    [
        (("--op", "linera"), ("'linera'", "linear")),
        (("--dtype", "int8"), ("'int8'", "bfloat16")),
        (("--device", "tpu"), ("device: 'tpu' is not on this machine; there are: cpu",)),
        (("--isa", "sse9"), ("isa: 'sse9' is not on this machine; there are: base",)),
        (("--verbose",), ("No such option '--verbose'", "--json")),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_choices(args, words):
    result = run("selftest", *args)
    assert result.exit_code == 2 and all(word in result.output for word in words)
