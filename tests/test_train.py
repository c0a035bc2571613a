"""The trainer: what it reaches, what it records, how it ends; the course's CNN."""

import json
import os
import random
import signal
from dataclasses import replace
from io import StringIO

import numpy as np
import processes
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch.nn import functional as F

from torchsmith import native_nn
from torchsmith import nn as ours
from torchsmith.cli import main
from torchsmith.course import get_row, train
from torchsmith.course.record import summarise, write_atomically
from torchsmith.course.row import Metric
from torchsmith.course.trainer import Arm, build_arms
from torchsmith.data import load_digits, load_mnist, normalise
from torchsmith.models import MnistCNN

pytestmark = pytest.mark.minutes(0.7)

CNN = get_row("cnn")
FILES = ["checkpoint.pt", "curves.csv", "curves.png", "record.json", "steps.csv"]


@pytest.fixture(autouse=True)
def _few_pictures(request, monkeypatch):
    """They take longer than most of these trainings do; that of digits_run is drawn."""
    if "digits_run" not in request.fixturenames:
        monkeypatch.setattr("torchsmith.plots.training_curves", lambda record, panel=None: b"\x89PNG")


def brief(**given):
    """Settings on one thread: with other work on the cores, two threads wait for each other at every op."""
    return CNN.settings(**{"threads": 1, **given})


def read_record(folder):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((folder / "record.json").read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def small():
    """300 digits to train on, 360 to test."""
    splits = load_digits()
    return replace(splits, train=tuple(tensor[:300] for tensor in splits.train))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The command on the embedded digits, both arms, 15 epochs."""
    out = tmp_path_factory.mktemp("digits") / "not" / "there yet"
    args = "train cnn --data digits --epochs 15 --threads 1 --out"
    return CliRunner().invoke(main, [*args.split(), str(out)], env={"COLUMNS": "120"}), out


def test_digits_reach_their_accuracy(digits_run):
    result, out = digits_run
    assert result.exit_code == 0, result.output
    record = read_record(out)
    for name in ("ours", "native"):
        figures = record["summary"]["arms"][name]
        assert figures["test"]["accuracy"] >= 0.90
        assert figures["train"]["accuracy"] >= 0.93
        assert figures["final_loss"] < 0.2


def test_arms_agree(digits_run):
    arms = read_record(digits_run[1])["arms"]
    gaps = np.abs(np.subtract(arms["ours"]["losses"], arms["native"]["losses"]))[:100]
    assert len(gaps) == 100
    assert gaps.max() < 1e-3
    assert read_record(digits_run[1])["summary"]["comparison"]["max_loss_difference"] == gaps.max()


def test_record_is_complete(digits_run):
    record = read_record(digits_run[1])
    assert record["status"] == "finished"
    assert record["row"] == "cnn"
    assert record["settings"] == {
        "epochs": 15,
        "batch_size": 64,
        "lr": 0.01,
        "momentum": 0.5,
        "optimizer": "SGD",
        "seed": 0,
        "data": "digits",
        "threads": 1,
        "workers": 0,
        "device": "cpu",
        "amp": None,
        "compare": True,
        "compare_optimizers": False,
        "choices": {},
    }
    assert record["data"] == {"name": "digits", "source": "scikit-learn", "train": 1437, "test": 360}
    assert record["environment"]["torch"] == torch.__version__
    assert record["environment"]["threads"] == 1
    assert record["environment"]["isa"]
    assert record["parameters"] == 8490
    assert list(record["arms"]) == ["ours", "native"]
    for arm in record["arms"].values():
        assert len(arm["losses"]) == len(arm["step_seconds"]) == 15 * 23
        assert min(arm["step_seconds"]) > 0
        assert [epoch["epoch"] for epoch in arm["epochs"]] == list(range(1, 16))
        assert arm["epochs"][2]["loss"] == pytest.approx(np.mean(arm["losses"][46:69]))


def test_only_whole_files_are_left(digits_run):
    out = digits_run[1]
    assert sorted(path.name for path in out.iterdir()) == FILES
    picture = (out / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n") and picture.rstrip().endswith(b"IEND\xaeB`\x82")


def test_what_a_person_sees(digits_run):
    result, out = digits_run
    record = read_record(out)
    lines = result.output.splitlines()
    for name in ("ours", "native"):
        last = record["arms"][name]["epochs"][-1]
        (line,) = (line for line in lines if line.startswith(f"Epoch 15 {name}"))
        assert f"loss {last['loss']:.6f}" in line
        assert f"train accuracy {100 * last['train']['accuracy']:.2f} %" in line
        assert f"test accuracy {100 * last['test']['accuracy']:.2f} %" in line
    for words in ("side by side", "median ms a step", "native / ours", "gap at most", f"torch {torch.__version__}"):
        assert words in result.output
    assert "100%" in result.output and "left" in result.output


def test_loss_line_every_300_batches(small, tmp_path):
    text = StringIO()
    splits = replace(small, train=tuple(torch.cat([tensor] * 3) for tensor in small.train))
    settings = brief(epochs=1, batch_size=1, lr=0.001)
    outcome = train(CNN, settings, splits=splits, folder=tmp_path, console=Console(file=text, width=120))
    lines = [line for line in text.getvalue().splitlines() if line.startswith("Train Epoch")]
    assert [line.split("Loss")[0].strip() for line in lines] == [
        "Train Epoch: 1 [300/900 (33%)]",
        "Train Epoch: 1 [600/900 (67%)]",
        "Train Epoch: 1 [900/900 (100%)]",
    ]
    arms = outcome.record["arms"]
    means = [f"{np.mean(arms[name]['losses'][300:600]):.6f} {name}" for name in ("ours", "native")]
    assert lines[1].split("Loss: ")[1].split("  ") == means


def test_ours_alone_and_threads(tmp_path):
    before = torch.get_num_threads()
    args = "train cnn --data digits --epochs 1 --no-compare --threads 1 --out"
    result = CliRunner().invoke(main, [*args.split(), str(tmp_path)])
    assert result.exit_code == 0, result.output
    record = read_record(tmp_path)
    assert list(record["arms"]) == ["ours"]
    assert record["summary"]["comparison"] is None
    assert record["environment"]["threads"] == 1
    assert "native" not in result.output
    assert torch.get_num_threads() == before


def test_default_folder_is_named_after_row_and_time(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = train(CNN, brief(epochs=1, compare=False), splits=small)
    assert outcome.folder.parts[0] == "runs" and outcome.folder.name.startswith("cnn-20")
    assert (tmp_path / outcome.folder / "record.json").is_file()


def test_same_seed_same_training(small, tmp_path):
    def losses(seed, **kwargs):
        random.seed(), np.random.seed(), torch.seed()  # what came before must not matter
        settings = brief(epochs=2, seed=seed, **kwargs)
        record = train(CNN, settings, splits=small, folder=tmp_path).record
        return record["arms"]["ours"]["losses"]

    first = losses(5)
    assert losses(5) == first
    assert losses(5, compare=False) == first  # the other arm leaves ours alone
    assert losses(6) != first


def test_arms_take_turns_at_going_first_and_see_the_same_batches(small, tmp_path):
    seen = []

    def model(layers, settings, facts):
        made = MnistCNN(layers=layers)
        name = "ours" if layers is ours else "native"
        made.register_forward_pre_hook(
            lambda module, inputs: seen.append((name, inputs[0].sum().item())) if torch.is_grad_enabled() else None
        )
        return made

    train(replace(CNN, model=model), brief(epochs=2), splits=small, folder=tmp_path)
    names, sums = zip(*seen, strict=True)
    a, b = "ours", "native"
    assert names == (a, b, b, a, a, b, b, a, a, b) * 2
    assert sums[0::2] == sums[1::2]  # the same batch for both
    assert len(set(sums)) == 10  # another in each step, in both epochs


def test_arms_start_from_the_same_weights_in_tensors_of_their_own():
    smith, native = build_arms(CNN, CNN.settings())
    assert (smith.name, native.name) == ("ours", "native")
    assert isinstance(smith.model.conv1, ours.Conv2dReLUMaxPool2d)
    assert isinstance(native.model.conv1, native_nn.Conv2dReLUMaxPool2d)
    for a, b in zip(smith.model.parameters(), native.model.parameters(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    assert smith.optimizer.param_groups[0]["params"][0] is smith.model.conv1.weight
    assert native.optimizer.param_groups[0]["params"][0] is native.model.conv1.weight


def test_optimizer_is_the_courses():
    (arm,) = build_arms(CNN, CNN.settings(compare=False, data="somewhere"))
    group = arm.optimizer.param_groups[0]
    assert type(arm.optimizer) is torch.optim.SGD
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.01, 0.5, 0, False)
    assert (CNN.settings(data="somewhere").epochs, CNN.settings(data="somewhere").batch_size) == (10, 64)


def test_accuracy_is_over_the_whole_split(small, tmp_path):
    """Also where the last evaluated batch is smaller."""
    many = replace(small, test=tuple(torch.cat([tensor] * 3)[:1003] for tensor in small.test))
    outcome = train(CNN, brief(epochs=3), splits=many, folder=tmp_path)
    with torch.no_grad():
        for part in ("train", "test"):
            images, labels = getattr(many, part)
            expected = (outcome.model(normalise(images)).argmax(1) == labels).double().mean().item()
            assert outcome.record["arms"]["ours"]["epochs"][-1][part]["accuracy"] == pytest.approx(expected, abs=0.002)
    assert outcome.model.training


@pytest.mark.parametrize("layers", [ours, native_nn], ids=["ours", "native"])
def test_cnn_is_the_courses(layers):
    """Pooling before ReLU, as the course writes it, in plain torch."""
    torch.manual_seed(0)
    model = MnistCNN(layers=layers)
    state = model.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "conv1.weight": (10, 1, 5, 5),
        "conv1.bias": (10,),
        "conv2.weight": (20, 10, 5, 5),
        "conv2.bias": (20,),
        "fc.weight": (10, 320),
        "fc.bias": (10,),
    }
    x = torch.randn(3, 1, 28, 28)
    y = F.relu(F.max_pool2d(F.conv2d(x, state["conv1.weight"], state["conv1.bias"]), 2))
    y = F.relu(F.max_pool2d(F.conv2d(y, state["conv2.weight"], state["conv2.bias"]), 2))
    y = F.linear(y.view(3, -1), state["fc.weight"], state["fc.bias"])
    torch.testing.assert_close(model(x), y)


def test_cnn_is_ours_by_default():
    assert isinstance(MnistCNN().conv1, ours.Conv2dReLUMaxPool2d)


def _row_that_signals(number, at_step):
    """The CNN, sending this process a signal in the loss of ours at a step."""
    calls = iter(range(1, 10**6))

    def loss(output, target):
        if next(calls) == at_step:
            os.kill(os.getpid(), number)
        return F.cross_entropy(output, target)

    return replace(CNN, loss=loss)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("at_call", "steps", "epochs"), [(1, 1, 0), (2, 1, 0), (13, 7, 1)])
def test_a_signal_ends_it_with_equal_arms_and_a_record(small, tmp_path, number, at_call, steps, epochs):
    before = signal.getsignal(number)
    row = _row_that_signals(number, at_call)  # two calls a step, 5 steps an epoch
    outcome = train(row, brief(epochs=50), splits=small, folder=tmp_path)
    assert outcome.signal == number
    assert signal.getsignal(number) == before
    record = read_record(tmp_path)
    assert record["status"] == "interrupted"
    for arm in record["arms"].values():
        assert len(arm["losses"]) == len(arm["step_seconds"]) == steps
        assert len(arm["epochs"]) == epochs
    assert (tmp_path / "curves.png").is_file()


def test_a_signal_during_evaluation(small, tmp_path):
    def metric(output, target):
        os.kill(os.getpid(), signal.SIGINT)
        return output.argmax(1) == target

    row = replace(CNN, metrics={"accuracy": Metric(metric)})
    outcome = train(row, brief(epochs=2), splits=small, folder=tmp_path)
    record = read_record(tmp_path)
    assert (outcome.signal, record["status"]) == (signal.SIGINT, "interrupted")
    assert all(len(arm["losses"]) == 5 and arm["epochs"] == [] for arm in record["arms"].values())


def test_ctrl_c_from_the_shell(tmp_path):
    args = ["train", "cnn", "--data", "digits", "--epochs", "100000", "--threads", "1", "--out", str(tmp_path)]
    process = processes.start("-m", "torchsmith", *args)
    try:
        for line in process.stdout:
            if line.startswith("Epoch"):
                process.send_signal(signal.SIGINT)
                break
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "cnn on digits: interrupted" in output
    record = read_record(tmp_path)
    assert record["status"] == "interrupted"
    assert len(record["arms"]["ours"]["losses"]) == len(record["arms"]["native"]["losses"]) >= 23
    assert len(record["arms"]["ours"]["epochs"]) >= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_a_diverged_training_is_strict_json(small, tmp_path):
    train(CNN, brief(epochs=2, lr=1e30), splits=small, folder=tmp_path)
    record = read_record(tmp_path)
    assert "nan" in record["arms"]["ours"]["losses"]
    assert record["summary"]["comparison"]["max_loss_difference"] == "nan"


def test_summary_of_known_numbers():
    def arm(name, losses, seconds):
        return Arm(name, torch.nn.Identity(), None, losses, seconds)

    smith = arm("ours", [1.0, 2.0, 3.5], [0.001, 0.002, 0.004])
    summary = summarise([smith, arm("native", [1.0, 2.25, 3.0], [0.004] * 3)])
    assert summary["comparison"] == {"native_over_ours": 2.0, "compared_steps": 3, "max_loss_difference": 0.5}
    assert summary["arms"]["ours"]["median_step_ms"] == pytest.approx(2.0)
    assert summary["arms"]["ours"]["final_loss"] == pytest.approx(6.5 / 3)
    hidden = summarise([arm("ours", [1.0, float("nan"), 1.0], [1.0] * 3), arm("native", [1.0] * 3, [1.0] * 3)])
    assert np.isnan(hidden["comparison"]["max_loss_difference"])
    empty = summarise([arm("ours", [], []), arm("native", [], [])])
    assert empty["comparison"] == {"native_over_ours": None, "compared_steps": 0, "max_loss_difference": None}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_atomically(path, b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "epochs: expected at least 1, got 0"),
        ("batch_size", 0, "batch_size: expected at least 1, got 0"),
        ("threads", 0, "threads: expected at least 1, got 0"),
        ("seed", -1, "seed: expected at least 0, got -1"),
        ("lr", -0.1, "lr: expected a number greater than 0, got -0.1"),
        ("momentum", 1.0, "momentum: expected 0 to less than 1, got 1.0"),
    ],
)
def test_settings_refuse_what_cannot_be(name, value, message):
    with pytest.raises(ValueError, match=message):
        CNN.settings(**{name: value})


@pytest.mark.skipif(not os.environ.get("TORCHSMITH_DATA"), reason="TORCHSMITH_DATA does not name a data folder")
def test_300_steps_of_real_mnist(tmp_path):
    splits = load_mnist(os.environ["TORCHSMITH_DATA"])
    splits = replace(splits, train=tuple(tensor[: 300 * 64] for tensor in splits.train))
    record = train(CNN, brief(data="mnist", epochs=1), splits=splits, folder=tmp_path).record
    assert len(record["arms"]["ours"]["losses"]) == 300
    assert record["summary"]["comparison"]["max_loss_difference"] < 1e-3
    accuracies = {name: arm["test"]["accuracy"] for name, arm in record["summary"]["arms"].items()}
    assert accuracies["ours"] >= 0.88
    assert abs(accuracies["ours"] - accuracies["native"]) < 0.01
