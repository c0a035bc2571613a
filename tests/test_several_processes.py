"""Trainings that several processes share: as one process would train with all of their batches."""

import io
import json
import os
import socket
import subprocess
import sys

import numpy as np
import processes
import pytest
import torch
from rich.console import Console

from torchsmith.course import get_row
from torchsmith.course.checkpoint import read_checkpoint


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """They take longer than these trainings do."""
    monkeypatch.setattr("torchsmith.plots.training_curves", lambda record, panel=None: b"")


def quiet():
    return Console(file=io.StringIO(), width=120)


def train(row, folder, splits=None, resume=None, **given):
    settings = row.settings(**{"threads": 1, **given})
    return row.run(settings, splits=splits, folder=folder, resume=resume, console=quiet())


def torchrun(processes, *args, timeout=150):
    """The command in so many processes of this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    environment.pop("TORCHSMITH_DATA", None)
    return subprocess.run(
        [sys.executable, *launcher, "-m", "torchsmith", *map(str, args)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
    )


def started_by_hand(count, *args, timeout=150):
    """The same without torchrun: each process is told its place by the environment, as torchrun tells it. The first one's."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    told = {**os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "COLUMNS": "120"}
    told.pop("TORCHSMITH_DATA", None)
    places = [{"RANK": str(i), "LOCAL_RANK": str(i), "LOCAL_WORLD_SIZE": str(count)} for i in range(count)]
    line = ["-m", "torchsmith", *args, "--threads", 1]
    first, *others = [processes.start(*line, env={**told, **place}) for place in places]
    out, err = first.communicate(timeout)
    said = [other.communicate(timeout) for other in others]
    code = next((p.returncode for p in (first, *others) if p.returncode), 0)  # a signal is a negative one
    return subprocess.CompletedProcess(line, code, out + "".join(o for o, _ in said), err + "".join(e for _, e in said))


@pytest.mark.minutes(1)
@pytest.mark.parametrize(
    ("name", "given", "launch"),
    [
        # 1,437 digits: the last step has 3, of which one process has twice as many as the other.
        ("cnn", {"batch_size": 239, "epochs": 2, "lr": 0.1, "seed": 4}, started_by_hand),
        # 642 names: the last step has 42; SGD, as Adam makes much of a rounding where a gradient is almost 0.
        ("names", {"batch_size": 50, "epochs": 1, "lr": 0.3, "seed": 4, "optimizer": "SGD"}, torchrun),
    ],
)
def test_two_processes_are_one_with_a_double_batch(name, given, launch, tmp_path):
    more = [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", value)]
    result = launch(2, "train", name, *more, "--out", tmp_path / "two")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"Epoch {given['epochs']} ours") == 1  # one process shows
    one = train(get_row(name), tmp_path / "one", **{**given, "batch_size": 2 * given["batch_size"]}).record
    two = json.loads((tmp_path / "two" / "record.json").read_text())
    for arm in ("ours", "native"):
        losses = [record["arms"][arm]["losses"] for record in (one, two)]
        assert len(losses[0]) == len(losses[1]) >= 6
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
        for part in ("train", "test"):
            metrics = [record["arms"][arm]["epochs"][-1][part]["accuracy"] for record in (one, two)]
            assert metrics[0] == pytest.approx(metrics[1], abs=2e-3)
    weights = [read_checkpoint(tmp_path / folder)["arms"]["ours"]["model"] for folder in ("one", "two")]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=2e-5)


def test_processes_refuse_together():
    result = started_by_hand(2, "train", "linear", "--optimizer", "LBFGS", "--epochs", "1", "--out", "nowhere")
    assert result.returncode != 0
    assert "expected one that asks for the gradient once a step for 2 processes, got LBFGS" in result.stderr
    assert not os.path.exists("nowhere")
