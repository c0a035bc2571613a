"""Auto, C++, Triton, native eager, torch.compile and CUDA-graph replays, on the course's shapes: interleaved, medians.

    python -m torchsmith.bench.gpu_times     prints a line of JSON for each row, as it is measured

Times come from CUDA events on a GPU and from the clock on a CPU; the rest is the same, so that it is tested without one.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from torchsmith import dispatch
from torchsmith.bench import pairs
from torchsmith.spec import all_specs


@dataclass(frozen=True)
class Arm:
    """A function of a count, and the backend under which it is timed: setting one takes milliseconds."""

    run: Callable[[int], None]
    backend: str = "auto"

    def __call__(self, calls: int) -> None:
        with dispatch.backend(self.backend):
            self.run(calls)


def seconds(arm: Arm, calls: int, device: torch.device) -> float:
    """Of one call; on a GPU between two events, so that the queue is the device's and not Python's clock."""
    with dispatch.backend(arm.backend):
        arm.run(1)
        if device.type != "cuda":
            start = time.perf_counter()
            arm.run(calls)
            return (time.perf_counter() - start) / calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        arm.run(calls)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls


def medians(
    arms: dict[str, Arm], device: torch.device, rounds: int = 11, calls: int = 20, round_s: float = 3e-3
) -> dict[str, float]:
    """Microseconds a call of each arm; the arms take turns, a turn is ``calls`` of them or what ``round_s`` has room for.

    In another order each round: what ran before an arm has a share in its time.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    turns = {}
    for name, arm in arms.items():
        arm(3)
        turns[name] = max(1, min(calls, int(round_s / seconds(arm, 1, device))))
    order, shuffled = list(arms), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            times[name].append(seconds(arms[name], turns[name], device))
    return {name: statistics.median(values) * 1e6 for name, values in times.items()}


def replay(arm: Arm) -> Arm:
    """The arm's call captured once as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        arm(3)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        arm(1)

    def run(count: int) -> None:
        for _ in range(count):
            graph.replay()

    return Arm(run)


def arms_of(spec, case, mode: str, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, Arm], dict[str, str]]:
    """The arms, each of ours compared with native before it is timed; and why an arm is missing."""
    pair = pairs.op_pair(spec, case, mode, dtype, device)
    pair.verify()
    arms, missing = {"auto": Arm(pair.ours), "native": Arm(pair.native)}, {}
    if device.type != "cuda":
        return arms, missing

    def ours(name: str) -> Arm:
        with dispatch.backend(name):
            pair.verify()
        return Arm(pair.ours, name)

    makers = {
        "cpp": lambda: ours("cpp"),
        "triton": lambda: ours("triton"),
        "cpp graph": lambda: replay(Arm(pair.ours, "cpp")),
        "triton graph": lambda: replay(Arm(pair.ours, "triton")),
        "native graph": lambda: replay(Arm(pair.native)),
    }
    for name, make in makers.items():
        try:
            arm = make()
            arm(1)
            arms[name] = arm
        except Exception as error:  # whatever a capture cannot do is a note, not the end of the others
            missing[name] = in_a_line(error)
    return arms, missing


def in_a_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def compiled(spec, case, mode: str, dtype: torch.dtype, device: torch.device) -> Arm:
    """Native by torch.compile."""
    torch._dynamo.reset()
    pair = pairs.op_pair(
        spec, case, mode, dtype, device, lambda f: torch.compile(lambda *a, **k: f(*a, **k), dynamic=False)
    )
    return Arm(pair.native)


def allow_tf32(device: torch.device, value: bool) -> None:
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = value


def measure(device: torch.device, limit: float = 85, dtype: torch.dtype = torch.float32, **plan) -> Iterator[dict]:
    """A row for each course shape, mode and TF32 setting of every op with kernels for the device, until time is up.

    First without TF32, then with it; the ops take turns, so that each has its share when time is up. What is then left of it
    goes to torch.compile, which takes seconds for each, without TF32; such a row comes once more.
    """
    end = time.monotonic() + limit
    specs = [spec for spec in all_specs() if dispatch._device_has_kernels(spec.name, device.type)]
    cases = sorted(((i, spec, case) for spec in specs for i, case in enumerate(spec.bench)), key=lambda one: one[0])
    calls = [(spec, case, mode, dtype, device) for _, spec, case in cases for mode in ("forward", "forward+backward")]
    rows = []
    for tf32 in (False, True) if device.type == "cuda" else (False,):
        allow_tf32(device, tf32)
        for call in calls:
            row = _row(call, tf32, end, plan)
            rows += [row] if device.type == "cuda" and not tf32 else []
            yield row
    allow_tf32(device, False)
    for call, row in zip(calls, rows, strict=False):
        if time.monotonic() > end:
            break
        if "us" not in row:
            continue
        try:
            row["us"]["compile"] = medians({"compile": compiled(*call)}, device, **plan)["compile"]
        except Exception as error:
            row["missing"]["compile"] = in_a_line(error)
        yield row


def _row(call: tuple, tf32: bool, end: float, plan: dict) -> dict:
    spec, case, mode, dtype, device = call
    row = {"op": spec.name, "label": case.label, "mode": mode, "dtype": str(dtype)[6:], "tf32": tf32}
    if time.monotonic() > end:
        return {**row, "error": "not measured: the time was up"}
    try:
        arms, row["missing"] = arms_of(*call)
        row["us"] = medians(arms, device, **plan)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:300]
    return row


if __name__ == "__main__":
    for found in measure(torch.device("cuda")):
        print(json.dumps(found), flush=True)
