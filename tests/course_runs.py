"""A run of a row of the course, as the tests of the course start one."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from torchsmith.course import get_row


@pytest.fixture(autouse=True)
def _few_pictures(request, monkeypatch):
    """They take longer than most of these trainings do; those of brief_runs, one of each row, are drawn."""
    if "brief_runs" not in request.fixturenames:
        monkeypatch.setattr("torchsmith.plots.training_curves", lambda record, panel=None: b"\x89PNG")


def quiet():
    return Console(file=io.StringIO(), width=120)


def run(name, folder, splits=None, **given):
    row = get_row(name)
    more = {"splits": splits} if splits else {}
    return row.run(row.settings(**{"threads": 1, **given}), folder=folder, console=quiet(), **more)


def small(name):
    """The embedded data, of the images a few only."""
    splits = get_row(name).load(get_row(name).embedded)
    return splits if len(splits.train[0]) < 1000 else replace(splits, train=tuple(t[:256] for t in splits.train))
