"""Diabetes: eight measurements of a person, and whether the disease is there (or has advanced)."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch

from .files import find, read_rows
from .splits import Splits

__all__ = ["FEATURES", "load_diabetes"]

FEATURES = 8


def load_diabetes(source: str | os.PathLike[str] | None = None) -> Splits:
    """The course's file from the folder (or of the path) ``source``; scikit-learn's set for None or ``scikit-learn``.

    The file, ``diabetes.csv`` (or ``.gz``), has 8 numbers and a class 0 or 1 in a row. Scikit-learn's set has 442 people: 8
    of its 10 features (two of its six blood values are left out), scaled to -1..1; the class says whether the disease advanced more than in half of them.

    Train: features float32 [N, 8], class float32 [N, 1]; there is no test part, as in the course. Raises
    FileNotFoundError or ValueError naming file, line, expectation and finding; ImportError where scikit-learn is missing.
    """
    if source is None or source == "scikit-learn":
        return _embedded()
    root = Path(source)
    path = root if root.is_file() else find(root, "diabetes", ("diabetes.csv",))[0]
    features, classes = [], []
    for place, fields in read_rows(path, FEATURES + 1, "a CSV file"):
        try:
            *values, label = map(float, fields)
        except ValueError:
            raise ValueError(f"{place}: expected {FEATURES + 1} numbers, got {', '.join(fields)}") from None
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{place}: expected finite numbers, got {', '.join(fields)}")
        if label not in (0, 1):
            raise ValueError(f"{place}: class: expected 0 or 1, got {fields[-1]}")
        features.append(values)
        classes.append([label])
    if not classes:
        raise ValueError(f"{path}: expected at least 1 row, got none")
    return Splits("diabetes", str(path), (torch.tensor(features), torch.tensor(classes)))


def _embedded() -> Splits:
    try:
        from sklearn.datasets import load_diabetes as sklearn_diabetes
    except ImportError as error:
        raise ImportError(
            "the embedded diabetes set comes with scikit-learn, which is not installed: pip install 'torchsmith[course]'"
        ) from error
    features, target = sklearn_diabetes(return_X_y=True)
    features = features[:, :FEATURES] / np.abs(features[:, :FEATURES]).max(axis=0)
    classes = target > np.median(target)
    tensors = torch.from_numpy(features).float(), torch.from_numpy(classes).float().unsqueeze(1)
    return Splits("scikit-learn", "scikit-learn's diabetes set", tensors)
