"""Plants bugs, one at a time, and shows that the tests catch each: ``make mutants`` (about a quarter of an hour on 2 cores).

A bug is a replacement in one source file of a copy of this repository, rebuilt where it is C++, tested with the contract
tests that a change of that kind concerns. A bug that no test catches ends the run with exit status 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    right: str
    wrong: str
    tests: str  # pytest -k expression


VALUES = "test_values_and_gradients and float32 and base and "
BUGS = (
    Bug("sign of a gradient", "csrc/cpu/gru.cpp", "dn = g * (T(1) - z)", "dn = -g * (T(1) - z)", VALUES + "gru"),
    Bug(
        "dilation of rows lost",
        "csrc/cpu/conv_image.h",
        "(kh * DH % SH * phase_rows() + kh * DH / SH)",
        "(kh % SH * phase_rows() + kh / SH)",
        VALUES + "conv2d",
    ),
    Bug(
        "dilation of rows and columns swapped",
        "csrc/cpu/conv_image.h",
        "shift(kw * e.DW - e.left)",
        "shift(kw * e.DH - e.left)",
        VALUES + "conv2d",
    ),
    Bug("lost NaN", "csrc/cpu/pool.h", "(v > best) | (v != v);", "(v > best);", VALUES + "max_pool2d"),
    Bug(
        "the last of two equal cells wins",
        "csrc/cpu/pool.h",
        "(v > best) | (v != v);",
        "(v >= best) | (v != v);",
        VALUES + "max_pool2d",
    ),
    Bug(
        "only the first row of a batch",
        "csrc/cpu/sequence.h",
        "const int64_t rows = min_of(end, d.sizes[t]) - begin, row = d.offsets[t] + begin;\n      if (rows <= 0) continue;\n      gemm_packed",
        "const int64_t rows = min_of(begin + 1, d.sizes[t]) - begin, row = d.offsets[t] + begin;\n      if (rows <= 0) continue;\n      gemm_packed",
        VALUES + "rnn",
    ),
    Bug(
        "gates r and z swapped",
        "csrc/cpu/gru.cpp",
        "r = sigmoid_vector(load_some<T>(x + i, n) + load_some<T>(q + i, n))",
        "r = sigmoid_vector(load_some<T>(x + H + i, n) + load_some<T>(q + H + i, n))",
        VALUES + "gru",
    ),
    Bug(
        "bias of the first vector for the second",
        "csrc/cpu/gemm.h",
        "load_n<T>(column_bias + v * L, n)",
        "load_n<T>(column_bias, n)",
        VALUES + "linear",
    ),
    Bug("the last K block overwrites", "csrc/cpu/gemm.h", "e.accumulate || !first", "e.accumulate", VALUES + "linear"),
    Bug(
        "ceil keeps a window in the padding",
        "csrc/contract/maxpool2d.h",
        "(out - 1) * s >= in + p) --out",
        "(out - 1) * s > in + p + s) --out",
        VALUES + "max_pool2d",
    ),
    Bug(
        "bias gradient missing",
        "csrc/cpu/conv2d.cpp",
        "sums[k] += sum_lanes<T>(sum[0] + sum[1]);",
        "",
        VALUES + "conv2d",
    ),
    Bug(
        "relu passes a gradient at 0",
        "csrc/cpu/simd.h",
        "return y <= Vec<T>{} ? Vec<T>{} : g;",
        "return y < Vec<T>{} ? Vec<T>{} : g;",
        VALUES + "linear_relu",
    ),
    Bug(
        "relu stops a gradient at NaN",
        "csrc/cpu/simd.h",
        "return y <= Vec<T>{} ? Vec<T>{} : g;",
        "return y > Vec<T>{} ? g : Vec<T>{};",
        VALUES + "linear_relu",
    ),
    Bug(
        "no zeros inserted for a strided gradient",
        "csrc/cpu/conv_image.h",
        "|| row * e.insert_h != virtual_row",
        "",
        VALUES + "conv2d",
    ),
    Bug("window not flipped", "csrc/cpu/conv2d.cpp", "* area + area - 1 - i]", "* area + i]", VALUES + "conv2d"),
    Bug(
        "stride of rows and columns swapped",
        "csrc/cpu/conv_image.h",
        "row + i * e.SW + column.shift, e.SW, n",
        "row + i * e.SH + column.shift, e.SH, n",
        VALUES + "conv2d",
    ),
    Bug(
        "pooled gradient of the first vector of channels only",
        "csrc/cpu/conv_sparse.h",
        "c < width; c += kLanes<T>",
        "c < kLanes<T>; c += kLanes<T>",
        VALUES + "conv2d",
    ),
    Bug(
        "0 * NaN skipped in a pooled gradient",
        "csrc/cpu/conv_sparse.h",
        "!way.all_finite(p.x, d.N * d.C * d.H * d.W) ||",
        "",
        VALUES + "conv2d",
    ),
    Bug(
        "reverse direction runs forward",
        "csrc/cpu/sequence.h",
        "reverse ? d.T - 1 - step : step",
        "step",
        VALUES + "gru",
    ),
    Bug(
        "ended sequences not restarted from hx",
        "csrc/cpu/sequence.h",
        "b < known ?",
        "b < d.sizes[t] && before >= 0 && before < d.T ?",
        VALUES + "gru",
    ),
    Bug(
        "threads share a sum",
        "csrc/cpu/conv2d.cpp",
        "flipped,\n                         partial + share * plan.share_size);",
        "flipped, partial);",
        "test_threads_on_real_sizes and conv2d or " + VALUES + "conv2d",
    ),
    Bug(
        "masks of dropout not scaled",
        "pyext/ops/_recurrent.py",
        ".bernoulli_(1 - p).div_(1 - p)",
        ".bernoulli_(1 - p)",
        VALUES + "gru and dropout",
    ),
    Bug(
        "odd padding at the top left",
        "pyext/ops/conv2d.py",
        "return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2",
        "return total[0] - total[0] // 2, total[1] - total[1] // 2, total[0] // 2, total[1] // 2",
        VALUES + "conv2d and same",
    ),
    Bug(
        "saved relu output forgotten in the second derivative",
        "pyext/ops/linear.py",
        "return F.relu(y) if relu else y",
        "return y",
        "linear_relu and float64",
    ),
    Bug(
        "fake kernel ignores channels_last",
        "pyext/ops/maxpool2d.py",
        "if last else y",
        "if False else y",
        "test_opcheck and max_pool2d",
    ),
    Bug(
        "stride 0 accepted",
        "pyext/ops/maxpool2d.py",
        "if min(stride) <= 0:",
        "if min(stride) < 0:",
        "test_errors and max_pool2d",
    ),
)


def copy_tree(to: Path) -> None:
    ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".pytest_cache", "*.egg-info")
    shutil.copytree(ROOT, to, ignore=ignored)


def caught(bug: Bug, tree: Path, environment: dict[str, str]) -> bool:
    source = tree / bug.file
    text = source.read_text()
    if bug.right not in text:
        raise SystemExit(f"{bug.name}: {bug.file} no longer holds {bug.right!r}")
    source.write_text(text.replace(bug.right, bug.wrong))
    try:
        if bug.file.startswith("csrc"):
            subprocess.run(
                [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True, capture_output=True
            )
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                "tests/test_contract.py",
                "-k",
                bug.tests,
            ],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
        )
        if run.returncode < 0:  # a crash is a failing test too
            return True
        if run.returncode > 1:
            raise SystemExit(f"{bug.name}: the tests did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
        return run.returncode == 1
    finally:
        source.write_text(text)


def main() -> int:
    wanted = sys.argv[1:]  # parts of names; all without
    bugs = [bug for bug in BUGS if not wanted or any(part in bug.name for part in wanted)]
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        copy_tree(tree)
        package = Path(folder, "path")
        package.mkdir()
        (package / "torchsmith").symlink_to(tree / "pyext")
        environment = {**os.environ, "PYTHONPATH": str(package)}
        whole = Bug("none", "setup.py", "import sys", "import sys", " or ".join(f"({b.tests})" for b in bugs))
        if caught(whole, tree, environment):
            raise SystemExit("the tests fail without any planted bug: nothing can be shown")
        for bug in bugs:
            ok = caught(bug, tree, environment)
            print(f"{'caught' if ok else 'MISSED'}  {bug.name}  ({bug.file})", flush=True)
            missed += [] if ok else [bug.name]
    print(f"{len(bugs) - len(missed)} of {len(bugs)} planted bugs caught")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
