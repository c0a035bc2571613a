"""The example of csrc/example/: an op of ours called from C++, without Python."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

import torchsmith

SOURCE = Path(__file__).parent.parent / "csrc" / "example" / "linear_relu.cpp"
LIBRARY = Path(torchsmith.__file__).with_name("_cpu.so")


@pytest.mark.minutes(1)
def test_an_op_from_cpp(tmp_path):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    libraries, program = Path(torch.__file__).parent / "lib", tmp_path / "linear_relu"
    command = [
        compiler,
        "-std=c++20",
        "-O0",
        str(SOURCE),
        "-o",
        str(program),
        f"-L{libraries}",
        f"-Wl,-rpath,{libraries}",
    ]
    command += [f"-I{path}" for path in include_paths()] + [
        "-Wl,--no-as-needed",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
        "-ldl",
    ]
    command.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    done = subprocess.run([program, LIBRARY], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("torchsmith::linear_forward on 64 x 50: differs from at::linear by ")
    assert 0 <= float(done.stdout.split()[-1]) < 1e-4

    done = subprocess.run([program, tmp_path / "_cpu.so"], capture_output=True, text=True)
    assert done.returncode == 2 and "cannot open shared object file" in done.stderr
