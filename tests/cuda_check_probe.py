"""Asks an installed torchsmith, under whatever torch is installed, which native ops have CUDA kernels. One line of JSON."""

import json

import torch

import torchsmith  # noqa: F401  (loads the libraries)
from torchsmith.spec import all_specs


def has_cuda(kernel: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"torchsmith::{kernel}", "CUDA")


print(
    json.dumps(
        {
            "cuda": torch.version.cuda,
            "table": [
                {
                    "row": spec.row,
                    "op": spec.name,
                    "kernels": spec.kernels,
                    "missing": [k for k in spec.kernels if not has_cuda(k)],
                }
                for spec in sorted(all_specs(), key=lambda s: (s.row, s.name))
            ],
        }
    )
)
