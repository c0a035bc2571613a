"""The comparator of the tests is the package's own, by which ``torchsmith selftest`` judges too."""

from torchsmith.compare import compare, nudged

__all__ = ["compare", "nudged"]
