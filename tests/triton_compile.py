"""Compiles launches that triton_checks.py wrote down to machine code, for GPUs that are not there. Run by test_triton.py.

Argument: the file of launches. Prints, as JSON, one entry for each kernel x configuration x dtype x architecture.
bfloat16 is float16's launch with the other dtype: the interpreter does not compute it. TF32 is compiled in one configuration
of each kernel: the others differ from it in sizes that float32 is compiled with.
"""

import json
import re
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from triton import compile as triton_compile
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "u8", "int32": "i32", "int64": "i64"}


def chosen(launches: list[dict]) -> list[dict]:
    """Of each kernel, configuration and dtype the launch with the most of the kernel's options on."""
    best: dict[tuple, dict] = {}
    for one in launches:
        key = (*configuration(one), dtype_of(one))
        on = sum(v is True for v in one["constants"].values())
        if key not in best or on > best[key][0]:
            best[key] = on, one
    return [one for _, one in best.values()]


def configuration(one: dict) -> tuple:
    numbers = {k: v for k, v in one["constants"].items() if k[0] in "BG" and type(v) is int}  # blocks, gates
    return one["kernel"], json.dumps(numbers, sort_keys=True), json.dumps(one["options"])


def dtype_of(one: dict) -> str:
    """The launch's own: what is kept in full width stands beside it."""
    return "float16" if "float16" in one["tensors"].values() else "float32"


def variants(one: dict, wide: set, seen: set):
    """(name, launch, architecture): every kernel and configuration for each architecture in one dtype: for Hopper in float32,
    which takes the most shared memory, where it was launched so (``wide``), for the others in float16 and bfloat16, whose tensor
    cores are theirs to choose; of each kernel one more for Hopper in float16 and TF32.
    """
    dtype, constants = dtype_of(one), one["constants"]
    more = (one["kernel"], dtype) not in seen
    seen.add((one["kernel"], dtype))
    if dtype == "float32":
        yield "float32", one, 90
        if more and constants.get("PRECISION") == "ieee":
            yield "tf32", {**one, "constants": {**constants, "PRECISION": "tf32"}}, 90
        return
    yield "float16", one, 80
    yield "bfloat16", {**one, "tensors": {k: v.replace("float16", "bfloat16") for k, v in one["tensors"].items()}}, 100
    if more or configuration(one) not in wide:
        yield "float16", one, 90


def build(one: dict, arch: int) -> dict:
    kernel = getattr(import_module(f"torchsmith.kernels.{one['file']}"), one["kernel"])
    signature = {}
    for name in kernel.arg_names:
        kind = one["tensors"].get(name)
        signature[name] = f"*{NAMES[kind]}" if kind else "constexpr" if name in one["constants"] else "i32"
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in one["constants"].items()})
    made = triton_compile(source, target=GPUTarget("cuda", arch, 32), options=one["options"])
    ptx = made.asm["ptx"]
    cubin = made.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", used).groups())
    cores = next((name for name in ("tcgen05.mma", "wgmma.mma_async", "mma.sync") if name in ptx), "")
    dots = [line for line in made.asm["ttgir"].splitlines() if "tt.dot " in line]
    return {
        "shared": made.metadata.shared,
        "chained": sum("maxNumImpreciseAcc" not in line for line in dots),  # products added to the sum as they come
        "cubin": len(cubin),
        "tensor_cores": cores,
        "registers": registers,
        "stack": stack,
    }


def main() -> None:
    with open(sys.argv[1]) as file:
        launches = chosen(json.load(file))
    entries, seen, wide = [], set(), {configuration(one) for one in launches if dtype_of(one) == "float32"}
    for one in launches:
        for dtype, variant, arch in variants(one, wide, seen):
            facts = build(variant, arch)
            entries.append(
                {"kernel": one["kernel"], "dtype": dtype, "arch": arch, "constants": one["constants"], **facts}
            )
    print(json.dumps(entries))


if __name__ == "__main__":
    main()
