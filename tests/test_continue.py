"""Trainings that stop and go on, that compute in bfloat16."""

import io
import json
import os
import signal
from dataclasses import replace

import numpy as np
import processes
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch.nn import functional as F

from torchsmith.cli import main
from torchsmith.course import get_row
from torchsmith.course.checkpoint import read_checkpoint
from torchsmith.data import load_digits, load_names
from torchsmith.models import MnistCNN

pytestmark = pytest.mark.minutes(0.6)

CNN, NAMES = get_row("cnn"), get_row("names")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """They take longer than these trainings do."""
    monkeypatch.setattr("torchsmith.plots.training_curves", lambda record, panel=None: b"")


def quiet():
    return Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="module")
def digits():
    """300 digits to train on, 100 to test."""
    splits = load_digits()
    return replace(splits, train=tuple(t[:300] for t in splits.train), test=tuple(t[:100] for t in splits.test))


def train(row, folder, splits=None, resume=None, **given):
    settings = row.settings(**{"threads": 1, **given})
    return row.run(settings, splits=splits, folder=folder, resume=resume, console=quiet())


def stopping(row, call, number=signal.SIGINT):
    """``row``, sending this process a signal in a call of its loss."""
    calls = iter(range(1, 10**6))

    def loss(output, target):
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return row.loss(output, target)

    return replace(row, loss=loss)


def states(folder):
    state = read_checkpoint(folder)
    return {name: (arm["model"], arm["optimizer"]["state"]) for name, arm in state["arms"].items()}


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (tuple, list)):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def numbers(record):
    """All of a record that must not depend on where it was interrupted."""
    return {name: (arm["losses"], arm["epochs"]) for name, arm in record["arms"].items()}


# ------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("call", [1, 8, 10, 14], ids=lambda call: f"stopped in call {call}")
def test_resume_is_bitwise(digits, tmp_path, call, optimizer):
    """Two calls a step, 5 steps an epoch: in the first step, in the middle, in an epoch's last step, in the second epoch."""
    whole = train(CNN, tmp_path / "whole", digits, epochs=3, optimizer=optimizer)
    first = train(stopping(CNN, call), tmp_path / "parts", digits, epochs=3, optimizer=optimizer)
    assert first.signal == signal.SIGINT and first.record["status"] == "interrupted"
    assert len(first.record["arms"]["ours"]["losses"]) < 15
    torch.manual_seed(99)  # what happens between the two must not matter
    second = train(CNN, None, digits, resume=tmp_path / "parts", epochs=3, optimizer=optimizer)
    assert second.folder == tmp_path / "parts" and second.record["status"] == "finished"
    assert numbers(second.record) == numbers(whole.record)
    assert_same(states(tmp_path / "parts"), states(tmp_path / "whole"))


def test_a_signal_in_evaluation_leaves_a_training_that_can_go_on(digits, tmp_path):
    whole = train(CNN, tmp_path / "whole", digits, epochs=2)
    metric = CNN.metrics["accuracy"]

    def score(output, target):
        os.kill(os.getpid(), signal.SIGTERM)
        return metric.score(output, target)

    row = replace(CNN, metrics={"accuracy": replace(metric, score=score)})
    first = train(row, tmp_path / "parts", digits, epochs=2)
    assert first.signal == signal.SIGTERM and first.record["arms"]["ours"]["epochs"] == []
    second = train(CNN, None, digits, resume=tmp_path / "parts", epochs=2)
    assert numbers(second.record) == numbers(whole.record)


def test_resume_of_packed_names_and_workers(tmp_path):
    splits = load_names()
    splits = replace(splits, train=tuple(t[:200] for t in splits.train))
    given = {"epochs": 2, "batch_size": 50, "compare": False}
    whole = train(NAMES, tmp_path / "whole", splits, **given)
    train(stopping(NAMES, 6), tmp_path / "parts", splits, workers=1, **given)
    second = train(NAMES, None, splits, resume=tmp_path / "parts", **given)
    assert numbers(second.record) == numbers(whole.record)


def test_more_epochs_by_the_command(tmp_path):
    def command(*args):
        environment = {"TORCHSMITH_DATA": None, "COLUMNS": "120"}
        result = CliRunner().invoke(main, ["train", "hello-rnn", *args], env=environment)
        assert result.exit_code == 0, result.output
        return result.output

    command("--epochs", "9", "--seed", "3", "--out", str(tmp_path / "whole"))
    command("--epochs", "4", "--seed", "3", "--out", str(tmp_path / "parts"))
    output = command("--epochs", "9", "--resume", str(tmp_path / "parts"))
    assert "Epoch 5 ours" in output and "Epoch 4 ours" not in output
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("whole", "parts")]
    assert numbers(records[0]) == numbers(records[1])
    assert records[1]["settings"]["seed"] == 3
    elsewhere = tmp_path / "elsewhere"
    command("--resume", str(tmp_path / "parts" / "checkpoint.pt"), "--out", str(elsewhere))
    assert (elsewhere / "record.json").is_file()  # nothing was left to train, and that is no error


def test_generators_go_on(digits, tmp_path):
    """A model that draws random numbers in training meets the same ones."""

    def model(layers, settings, facts):
        made = MnistCNN(layers=layers)
        made.register_forward_hook(
            lambda module, inputs, output: F.dropout(output, 0.5) + np.random.rand() if module.training else None
        )
        return made

    row = replace(CNN, model=model)
    whole = train(row, tmp_path / "whole", digits, epochs=2)
    train(stopping(row, 5), tmp_path / "parts", digits, epochs=2)
    np.random.seed(1)
    torch.manual_seed(1)
    assert numbers(train(row, None, digits, resume=tmp_path / "parts", epochs=2).record) == numbers(whole.record)


def test_checkpoints_are_written_whole_or_not(digits, tmp_path, monkeypatch):
    train(CNN, tmp_path, digits, epochs=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    real, calls = os.fsync, []

    def fail(descriptor):
        calls.append(descriptor)
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        train(CNN, tmp_path, digits, epochs=2)
    monkeypatch.setattr(os, "fsync", real)
    assert calls and (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    train(CNN, None, digits, resume=tmp_path, epochs=2)


def test_long_trainings_are_saved_on_the_way(digits, tmp_path, monkeypatch):
    from torchsmith.course import trainer

    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    seen = []
    real = trainer.write_checkpoint

    def note(path, row, settings, splits, arms, place):
        seen.append(place.epoch)
        real(path, row, settings, splits, arms, place)

    monkeypatch.setattr(trainer, "write_checkpoint", note)
    train(CNN, tmp_path, digits, epochs=3)
    assert seen == [2, 3, 4, 4]


def test_the_environment_does_not_contradict_a_checkpoint(tmp_path):
    def command(*args, data=None):
        return CliRunner().invoke(main, ["train", "diabetes", *args], env={"TORCHSMITH_DATA": data})

    out = str(tmp_path / "out")
    assert command("--epochs", "1", "--out", out).exit_code == 0
    result = command("--epochs", "2", "--resume", out, data=str(tmp_path))
    assert result.exit_code == 0, result.output
    result = command("--epochs", "3", "--resume", out, "--data", str(tmp_path))
    assert result.exit_code == 1 and "data: expected scikit-learn, as in" in result.output


def test_ctrl_c_with_workers(tmp_path):
    """The shell sends it to all processes of the command: the workers must not die of it before the parent is done."""
    args = "train diabetes --batch-size 8 --workers 2 --epochs 100000 --threads 1 --out".split()
    environment = {name: value for name, value in os.environ.items() if name != "TORCHSMITH_DATA"}
    process = processes.start("-m", "torchsmith", *args, tmp_path, env=environment, merge=True)  # leads its group
    try:
        while not process.stdout.readline().startswith("Epoch"):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, output
    assert "Traceback" not in output and "interrupted" in output
    state = read_checkpoint(tmp_path)
    assert len(state["arms"]["ours"]["losses"]) == len(state["arms"]["native"]["losses"]) > 0


# ------------------------------------------------------------------------------------------------- wrong checkpoints


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train(CNN, folder, digits, epochs=1)
    return folder


def refused(*args):
    result = CliRunner().invoke(main, ["train", *map(str, args)], env={"TORCHSMITH_DATA": None, "COLUMNS": "200"})
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    return " ".join(result.output.split())


def test_checkpoint_of_another_row(trained, tmp_path):
    assert "expected a checkpoint of mlp, got one of cnn" in refused("mlp", "--resume", trained)


def test_checkpoint_with_other_settings(trained):
    output = refused("cnn", "--resume", trained, "--lr", "0.5")
    assert "lr: expected 0.01, as in" in output and "(only epochs, threads, workers may change), got 0.5" in output


def test_checkpoint_of_other_data(trained):
    """The fixture's data are fewer than the command's."""
    output = refused("cnn", "--resume", trained, "--epochs", "2")
    assert "data: expected {'name': 'digits', 'train': 300, 'test': 100}, as it was trained on" in output


def test_checkpoint_of_another_model(trained, digits, tmp_path):
    state = read_checkpoint(trained)
    state["arms"]["ours"]["model"]["conv1.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(
        ValueError, match=r"checkpoint.pt: expected weights of MnistCNN, got others: (?s:.*)size mismatch"
    ):
        train(CNN, None, digits, resume=tmp_path / "checkpoint.pt", epochs=2)


def test_checkpoint_of_other_arms(trained, digits):
    with pytest.raises(ValueError, match=r"arms: expected \['ours', 'native'\], got \['ours'\]"):
        train(CNN, None, digits, resume=trained, epochs=2, compare=False)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_files_that_are_no_checkpoints(tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    assert "gone: expected a checkpoint, found nothing" in refused("cnn", "--resume", "gone")
    (tmp_path / "text").write_text("hello")
    assert "text: expected a checkpoint, got a file that torch cannot read" in refused("cnn", "--resume", "text")
    (tmp_path / "half").write_bytes((trained / "checkpoint.pt").read_bytes()[:-1000])
    assert "half: expected a checkpoint, got a file that torch cannot read" in refused("cnn", "--resume", "half")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other")
    assert "other: expected a torchsmith checkpoint of format 1" in refused("cnn", "--resume", "other")
    torch.save({"format": 1, "row": Evil()}, tmp_path / "code")
    assert "code: expected a checkpoint, got a file that torch cannot read" in refused("cnn", "--resume", "code")
    assert not (tmp_path / "evil").exists()


# ------------------------------------------------------------------------------------------------- bfloat16


def test_bf16(digits, tmp_path):
    plain = train(CNN, tmp_path / "plain", digits, epochs=3, lr=0.1)
    mixed = train(CNN, tmp_path / "mixed", digits, epochs=3, lr=0.1, amp="bf16")
    for name in ("ours", "native"):
        one, other = (np.array(o.record["arms"][name]["losses"]) for o in (plain, mixed))
        assert not np.array_equal(one[:5], other[:5])
        np.testing.assert_allclose(one[:5], other[:5], rtol=0.03)
        assert other[-5:].mean() < other[:5].mean() - 0.3
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    assert mixed.record["settings"]["amp"] == "bf16"


def test_bf16_runs_forward_passes_in_bfloat16(digits, tmp_path):
    seen = set()

    def loss(output, target):
        seen.add(output.dtype)
        return F.cross_entropy(output, target)

    def model(layers, settings, facts):
        made = MnistCNN(layers=layers)
        made.register_forward_hook(lambda module, inputs, output: seen.add(("output", output.dtype)))
        return made

    train(replace(CNN, model=model, loss=loss), tmp_path, digits, epochs=1, amp="bf16")
    assert seen == {torch.float32, ("output", torch.bfloat16)}


@pytest.mark.parametrize("name", ["diabetes", "hello-rnncell", "hello-embedding", "names", "poem"])
def test_bf16_of_other_rows(name, tmp_path):
    row = get_row(name)
    splits = row.load(row.embedded)
    splits = replace(splits, train=tuple(t[:64] for t in splits.train))
    record = train(row, tmp_path, splits, epochs=2, amp="bf16").record
    losses = [record["arms"][arm]["losses"] for arm in ("ours", "native")]
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)
