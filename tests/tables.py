"""Tables of measurements for the tests: made of given figures."""

import torch

from torchsmith.tuned import Entry, Table, describe


def entry(op, arguments, cpp_us, torch_us, grad=False, threads=None):
    return Entry(op, describe(arguments), threads or torch.get_num_threads(), grad, {"ours": cpp_us, "torch": torch_us})


def table(*entries):
    return Table({e.key: e for e in entries})
