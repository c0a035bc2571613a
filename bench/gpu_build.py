"""Lays the package out in a folder, for a process with that folder on PYTHONPATH, with libraries built, or a second folder's.

Installs nothing.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"": "pyext", "kernels": "kernels", "bench": "bench"}


def lay_out(folder: Path, libraries: dict[str, Path]) -> None:
    for name, room in ROOMS.items():
        if (ROOT / room).is_dir():
            skip = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / room, folder / "torchsmith" / name, ignore=skip, dirs_exist_ok=True)
    for name, library in libraries.items():
        shutil.copy2(library, folder / "torchsmith" / name)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "buildtools"))
    import ninjafile

    target, *built = map(Path, sys.argv[1:])
    found = {p.name: p for folder in built for p in folder.glob("*.so")}
    lay_out(target, found or ninjafile.build(ROOT, "0.1.0", target / "objects"))
