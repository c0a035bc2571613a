"""What a GPU would do with our CUDA kernels, worked out without one: launch plans, occupancy and a roofline ESTIMATE.

The launches are those the C++ launchers make (``_native.cuda_plan``, csrc/plans/), on the shapes of the benchmarks. Times are
``max(FLOPs / peak, bytes / bandwidth)`` from public data sheets. Nothing here is measured. Left out: launch latency (some
microseconds, more than many of these kernels), caches, what an instruction reaches of the peak, tails of the last wave.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["DEVICES", "Device", "Line", "Occupancy", "explain", "get_device", "occupancy", "roofline", "unplanned"]

KIB = 1024
WARP = 32
REGISTER_UNIT = 256  #: registers are given to a warp in units of so many,
WARP_UNIT = 4  #: and the warps that fit the registers come in fours: one for each scheduler
SHARED_UNIT = 128  #: bytes
SHARED_RESERVED = KIB  #: bytes of each block's shared memory that are the system's, from compute capability 8.0 on


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet. Peaks are dense (no sparsity), in TFLOP/s, of the arithmetic that the kernels name."""

    title: str
    sm: int  #: compute capability, 10 * major + minor
    multiprocessors: int
    lanes: int  #: float32 multiply-adds of a multiprocessor in a clock
    clock: float  #: GHz, boost
    peak: dict[str, float]
    bandwidth: float  #: GB/s
    shared_per_sm: int
    shared_per_block: int
    threads_per_sm: int
    blocks_per_sm: int
    source: str
    registers: int = 65536  #: 32-bit, of a multiprocessor


_LIMITS = "limits of a multiprocessor: CUDA C++ Programming Guide, table of compute capabilities"
_HOPPER = {"fp64": 34.0, "fp32": 67.0, "tf32": 494.5, "fp16": 989.5, "bf16": 989.5}


def _hopper(title: str, bandwidth: float, sheet: str) -> Device:
    source = f"{sheet} (tensor-core figures there are with sparsity: halved; clock from 67 TFLOP/s); {_LIMITS}"
    return Device(
        title, 90, 132, 128, 1.98, _HOPPER, bandwidth, 228 * KIB, 227 * KIB, 2048, 32, source
    )  # fmt: skip


#: Tensor cores: with sums in float32, which is what the kernels keep. fp64: not on tensor cores, which they do not use for it.
DEVICES = {
    "h200": _hopper("H200 SXM 141 GB", 4800.0, "NVIDIA H200 Tensor Core GPU data sheet"),
    "h100": _hopper("H100 SXM 80 GB", 3350.0, "NVIDIA H100 Tensor Core GPU data sheet"),
    "a100": Device(
        "A100 SXM 80 GB", 80, 108, 64, 1.41, {"fp64": 9.7, "fp32": 19.5, "tf32": 156.0, "fp16": 312.0, "bf16": 312.0},
        2039.0, 164 * KIB, 163 * KIB, 2048, 32, f"NVIDIA A100 Tensor Core GPU data sheet and architecture white paper; {_LIMITS}",
    ),
    "l4": Device(
        "L4 24 GB", 89, 58, 128, 2.04, {"fp64": 0.47, "fp32": 30.3, "tf32": 60.0, "fp16": 121.0, "bf16": 121.0},
        300.0, 100 * KIB, 99 * KIB, 1536, 24,
        f"NVIDIA L4 Tensor Core GPU data sheet (with sparsity there: halved; fp64 is 1/64 of fp32); {_LIMITS}",
    ),
    "rtx4090": Device(
        "GeForce RTX 4090 24 GB", 89, 128, 128, 2.52,
        {"fp64": 1.29, "fp32": 82.6, "tf32": 82.6, "fp16": 165.2, "bf16": 165.2},
        1008.0, 100 * KIB, 99 * KIB, 1536, 24,
        f"NVIDIA Ada GPU Architecture white paper, appendix (fp64 is 1/64 of fp32); {_LIMITS}",
    ),
}  # fmt: skip


def get_device(name: str) -> Device:
    try:
        return DEVICES[name]
    except KeyError:
        raise ValueError(f"no device {name!r}; known are: {', '.join(DEVICES)}") from None


# ---------------------------------------------------------------------------------------------- arithmetic


@dataclass(frozen=True)
class Occupancy:
    blocks: int  #: of the launch that a multiprocessor holds at once
    warps: int
    fraction: float  #: of the warps a multiprocessor can hold
    limit: str  #: what there is too little of for one block more


def occupancy(device: Device, threads: int, shared: int, registers: int | None) -> Occupancy:
    """How many blocks fit a multiprocessor. ``registers`` of a thread; None: not known, and left out."""
    warps = -(-threads // WARP)
    fits = {"blocks": device.blocks_per_sm, "threads": device.threads_per_sm // (warps * WARP)}
    block = -(-(shared + SHARED_RESERVED) // SHARED_UNIT) * SHARED_UNIT
    fits["shared memory"] = device.shared_per_sm // block if shared <= device.shared_per_block else 0
    if registers is not None:
        of_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
        fits["registers"] = device.registers // of_warp // WARP_UNIT * WARP_UNIT // warps
    limit = min(fits, key=lambda name: fits[name])
    blocks = fits[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps * WARP / device.threads_per_sm, limit)


def roofline(device: Device, arithmetic: str, flops: int, bytes: int, ctas: int) -> tuple[float, float]:
    """Microseconds for the arithmetic and for the memory; the longer of the two is the estimate.

    Where there are fewer blocks than multiprocessors, only theirs compute; the memory is taken to be at full speed.
    """
    busy = min(1.0, ctas / device.multiprocessors)
    return flops / (device.peak[arithmetic] * 1e6 * busy), bytes / (device.bandwidth * 1e3)


# ---------------------------------------------------------------------------------------------- launches


@dataclass(frozen=True)
class Line:
    """One launch of a benchmark's call. Times are estimates, never measurements."""

    op: str
    shape: str
    dtype: str
    mode: str  #: "forward" or "backward"
    native: str  #: the native op
    product: str
    kernel: str
    tile: str | None
    arithmetic: str
    grid: tuple[int, int, int]
    ctas: int
    threads: int
    shared: int  #: bytes a block
    registers: int | None  #: a thread; None: not on record
    occupancy: float
    blocks_per_sm: int
    limit: str
    waves: float
    flops: int
    bytes: int
    compute_us: float
    memory_us: float
    estimate_us: float
    bound: str  #: "memory", "compute", or "few blocks": compute, of fewer multiprocessors than there are


def unplanned() -> dict[str, tuple[str, ...]]:
    """Public op -> those of its native ops whose CUDA launches cannot be told yet."""
    from torchsmith import _native

    from .spec import all_specs

    known = set(_native.cuda_planned())
    missing = {spec.name: tuple(k for k in spec.kernels if k not in known) for spec in all_specs()}
    return {name: kernels for name, kernels in missing.items() if kernels}


def explain(
    device: Device,
    ops: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    tf32: bool = False,
    seen: Callable[[str], None] = lambda text: None,
) -> Iterator[Line]:
    """The launches of every benchmark shape of every op all of whose launches are known, forward then backward.

    ``ops`` and ``dtypes`` choose (empty: all). ``tf32``: as if torch allowed TF32 for products of float32. ``seen`` is told
    of every call before it is traced.
    """
    import torch

    from .spec import all_specs

    missing = unplanned()
    recorded = _registers()
    for spec in all_specs():
        if spec.name in missing or (ops and spec.name not in ops):
            continue
        for case in spec.bench:
            for dtype in spec.dtypes:
                name = str(dtype).removeprefix("torch.")
                if dtypes and name not in dtypes:
                    continue
                seen(f"{spec.name} {case.label} {name}")
                sample = case.make(dtype, torch.device("cpu"))
                for mode, native, arguments in trace(spec, sample, case.frozen, tf32):
                    for step in _plan(device, native, arguments):
                        yield _line(device, (spec.name, case.label, name, mode, native), step, spec.row, recorded)


def _plan(device: Device, native: str, arguments: list[Any]) -> list[dict[str, Any]]:
    from torchsmith import _native

    return _native.cuda_plan(native, arguments, device.sm, device.multiprocessors, device.shared_per_block)


def _line(device: Device, where: tuple[str, ...], step: dict[str, Any], row: str, recorded: dict) -> Line:
    kernel = short(step["kernel"])
    registers = registers_on(device, recorded.get(f"{row}: {kernel}") or recorded.get(kernel, {}))
    held = occupancy(device, step["threads"], step["shared"], registers)
    if held.blocks == 0:
        raise ValueError(f"{kernel}: a block does not fit {device.title}: {held.limit}")
    x, y, z = step["grid"]
    ctas = x * y * z
    compute, memory = roofline(device, step["arithmetic"], step["flops"], step["bytes"], ctas)
    tile = re.search(r"\bTile<\w+, (\d+), (\d+)", kernel)
    return Line(
        *where,
        product=step["product"],
        kernel=kernel,
        tile=f"{tile[1]}x{tile[2]}" if tile else None,
        arithmetic=step["arithmetic"],
        grid=(x, y, z),
        ctas=ctas,
        threads=step["threads"],
        shared=step["shared"],
        registers=registers,
        occupancy=held.fraction,
        blocks_per_sm=held.blocks,
        limit=held.limit,
        waves=ctas / (held.blocks * device.multiprocessors),
        flops=step["flops"],
        bytes=step["bytes"],
        compute_us=compute,
        memory_us=memory,
        estimate_us=max(compute, memory),
        bound="memory" if compute <= memory else "compute" if ctas >= device.multiprocessors else "few blocks",
    )


def short(name: str) -> str:
    """A kernel's name as in bench/records/cuda_kernels.json: no namespaces, ``>>`` closed up, ``long`` without ``int``."""
    name = re.sub(r"\bts::(?:cuda::)?", "", name).replace("<long int>", "<long>")
    while "> >" in name:
        name = name.replace("> >", ">>")
    return name


def registers_on(device: Device, recorded: dict[str, int]) -> int | None:
    """Of the architectures on record, the one whose machine code the device runs: its generation's newest not beyond it."""
    fit = [int(sm) for sm in recorded if int(sm) // 10 == device.sm // 10 and int(sm) <= device.sm]
    return recorded[str(max(fit))] if fit else None


def _registers() -> dict[str, dict[str, int]]:
    """ "<row>: <kernel>" -> architecture -> registers of a thread. Empty in an installation without the records.

    And "<kernel>" alone: rows that share kernels have them in one row's object.
    """
    from . import bench

    path = Path(bench.__file__).parent / "records" / "cuda_kernels.json"
    if not path.is_file():
        return {}
    kernels = json.loads(path.read_text())["kernels"]
    found = {name: {sm: facts["registers"] for sm, facts in one["sm"].items()} for name, one in kernels.items()}
    return {**{name.partition(": ")[2]: registers for name, registers in found.items()}, **found}


def as_json(device: str, lines: Sequence[Line], ops: Sequence[str] = ()) -> dict[str, Any]:
    """Everything, ready for strict JSON."""
    missing = {op: list(kernels) for op, kernels in unplanned().items() if not ops or op in ops}
    return {
        "measured": False,
        "note": NOTE,
        "device": {"name": device, **asdict(get_device(device))},
        "launches": [asdict(line) for line in lines],
        "no_plan_exposed_yet": missing,
    }


NOTE = (
    "ESTIMATE, not measured: max(FLOPs / peak, bytes / bandwidth) of a launch by the data sheet, each operand read once. "
    "Launch latency, caches, the last wave's tail, what an instruction reaches of the peak and the waiting of a recurrent "
    "layer's step for the one before are left out."
)


# ---------------------------------------------------------------------------------------------- native calls of an op


def trace(spec: Any, sample: Any, frozen: Sequence[int], tf32: bool) -> list[tuple[str, str, list[Any]]]:
    """(mode, native op, arguments) of one call and its backward pass. Nothing is computed: the tensors are fake.

    On the CPU, whose way to the native ops is that of a GPU, but for the flag allow_tf32, which is set here.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils._mode_utils import no_dispatch
    from torch.utils._python_dispatch import TorchDispatchMode

    from .bench.pairs import leaves, map_tensors
    from .dispatch import backend

    calls: list[tuple[str, str, list[Any]]] = []
    mode = "forward"

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "torchsmith":
                calls.append((mode, func.name().partition("::")[2], _arguments(func._schema, args, kwargs or {}, tf32)))
            tensors = leaves((args, kwargs or {}))
            real = tensors and not any(isinstance(t, FakeTensor) for t in tensors)
            with no_dispatch() if real else nullcontext():
                return func(*args, **(kwargs or {}))

    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def change(gradient: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def to_fake(t: torch.Tensor) -> torch.Tensor:
            real = not t.is_floating_point()  # a packed sequence's batch sizes, which are read
            return t if real else fake.from_tensor(t.detach()).requires_grad_(gradient)

        return to_fake

    arguments = [map_tensors(a, change(i not in frozen)) for i, a in enumerate(sample.args)]
    with backend("cpp"), fake, Record(), torch.enable_grad():
        outputs = [t for t in leaves(spec.function(*arguments, **sample.kwargs)) if t.requires_grad]
        mode = "backward"
        wanted = [t for t in leaves(arguments) if t.requires_grad]
        torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs], allow_unused=True)
    return calls


def _arguments(schema: Any, args: Sequence[Any], kwargs: dict[str, Any], tf32: bool) -> list[Any]:
    """All arguments of a call in the schema's order, tensors as their sizes, strides and dtype."""
    values = []
    for i, argument in enumerate(schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
        values.append(tf32 if argument.name == "allow_tf32" else _plain(value))
    return values


def _plain(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"sizes": list(value.shape), "strides": list(value.stride()), "dtype": dtype}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
