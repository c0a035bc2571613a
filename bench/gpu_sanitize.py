"""The CUDA kernels alone, forward and backward on the contract's small samples, to be run under compute-sanitizer.

    compute-sanitizer python -m torchsmith.bench.gpu_sanitize SECONDS     prints one line of JSON

Nothing of native's runs: under the sanitizer its libraries take minutes to load. Values are what the contract tests compare.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from torchsmith.contract import Call, samples_of
from torchsmith.dispatch import _device_has_kernels, backend, explain
from torchsmith.spec import all_specs

MOST = 20_000  # elements of a sample: under the sanitizer a kernel takes a hundred times as long


def run(device: str, seconds: float) -> dict[str, int]:
    """Calls made and left out: the ops take turns, so that each has its share when time is up."""
    end, calls = time.monotonic() + seconds, []
    for spec in all_specs():
        for dtype in (torch.float32, torch.float16):
            # On the CPU, whose generator is no kernel.
            small = [s for s in samples_of(spec, dtype, torch.device("cpu")) if _elements(s) <= MOST]
            if _device_has_kernels(spec.name, torch.device(device).type):
                calls += [(i, dtype.itemsize == 2, spec, sample) for i, sample in enumerate(small)]
    made = 0
    with backend("cpp"):
        for _, _, spec, sample in sorted(calls, key=lambda call: call[:2]):
            if time.monotonic() > end:
                break
            Call(sample, device=device).gradients(spec.function)
            made += explain().implementation == "cpp"
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return {"calls": made, "left out": len(calls) - made}


def _elements(sample) -> int:
    return sum(t.numel() for t in Call(sample).tensors)


if __name__ == "__main__":
    print(json.dumps(run("cuda", float(sys.argv[1]))))
