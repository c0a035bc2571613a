"""Tables of measurements for the tests, made of given figures, and what is chosen by them."""

import torch

import torchsmith
from torchsmith.tuned import Entry, Table, describe


def entry(op, arguments, cpp_us, torch_us, grad=False, threads=None):
    return Entry(op, describe(arguments), threads or torch.get_num_threads(), grad, {"ours": cpp_us, "torch": torch_us})


def table(*entries):
    return Table({e.key: e for e in entries})


def chosen(op, *arguments, **keywords):
    """What computes a call, and why."""
    getattr(torchsmith, op)(*arguments, **keywords)
    return torchsmith.explain()
