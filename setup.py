"""Builds the native libraries and lays the rooms of this repository out as one package.

Quick rebuild while working on csrc/ (compiles what changed, places the libraries in pyext/):

    python setup.py build_ext --inplace

Knobs: MAX_JOBS, CXX, CXXFLAGS, LDFLAGS; CUDA_HOME, TORCH_CUDA_ARCH_LIST, FORCE_CUDA=1, TORCHSMITH_CUDA=0. What is compiled and how is in buildtools/.
"""

import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "buildtools"))

import ninjafile  # noqa: E402
import toolchain  # noqa: E402

#: package -> folder; each is a room of its own in the repository.
ROOMS = {"torchsmith": "pyext", "torchsmith.kernels": "kernels", "torchsmith.bench": "bench"}


def packages() -> list[str]:
    found = []
    for package, folder in ROOMS.items():
        found += [package, *(f"{package}.{name}" for name in find_packages(str(ROOT / folder)))]
    return found


class NinjaBuild(build_ext):
    """Lets ninja make every library at once, then places each where setuptools expects its extension."""

    def get_ext_filename(self, fullname):
        # _cpu.so and _cuda.so are loaded by torch, not imported: they have no Python version in their names.
        package, _, name = fullname.rpartition(".")
        file = f"{name}.so" if name != "_native" else f"{name}{ninjafile.EXT_SUFFIX}"
        return str(Path(*package.split("."), file)) if package else file

    def build_extensions(self):
        try:
            made = ninjafile.build(ROOT, self.distribution.get_version(), verbose=self.verbose > 1)
        except toolchain.BuildError as error:
            raise SystemExit(f"error: {error}") from None
        for extension in self.extensions:
            if extension.optional and extension.name.rpartition(".")[2] + ".so" not in made:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)  # not an old build's
                continue
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            # Never written in place: a process that has the old library mapped would crash.
            target.unlink(missing_ok=True)
            shutil.copy2(made[target.name], target)


class FreshBuildPy(build_py):
    """Starts from an empty folder, so that a module removed from the sources does not linger in wheels."""

    def run(self):
        if not self.editable_mode:
            for package in ROOMS:
                shutil.rmtree(Path(self.build_lib, *package.split(".")), ignore_errors=True)
        super().run()


setup(
    packages=packages(),
    package_dir=ROOMS,
    ext_modules=[
        Extension("torchsmith._cpu", []),
        Extension("torchsmith._cuda", [], optional=True),  # where there is a CUDA toolkit
        Extension("torchsmith._native", []),
    ],
    cmdclass={"build_ext": NinjaBuild, "build_py": FreshBuildPy},
)
