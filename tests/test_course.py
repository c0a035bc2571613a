"""The rows of the course: what each reaches, that its arms agree, and what is left of a run."""

import csv
import io
import itertools
import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from course_runs import _few_pictures, quiet, run, small  # noqa: F811,F401
from rich.console import Console
from torch.nn import functional as F

from torchsmith import native_nn
from torchsmith import nn as ours
from torchsmith.course import all_rows, get_row
from torchsmith.course.row import ExampleRow, TrainingRow
from torchsmith.course.settings import OPTIMIZERS
from torchsmith.data import CIFAR_FILES, load_digits, load_names
from torchsmith.models import CharGRU, DiabetesMLP, HelloEmbedding, MnistInception
from torchsmith.models.small import ACTIVATIONS

pytestmark = pytest.mark.minutes(1)

EXAMPLES = [row.name for row in all_rows() if isinstance(row, ExampleRow)]
TRAININGS = [row.name for row in all_rows() if isinstance(row, TrainingRow)]
# What keeps a run of each row to about a second; the others take their defaults.
BRIEF = {
    "linear": {"epochs": 400},
    "diabetes": {"epochs": 200},
    "mlp": {"epochs": 2},
    "cnn": {"epochs": 2},
    "inception": {"epochs": 1},
    "resnet": {"epochs": 1},
    "names": {"epochs": 1},
    "poem": {"epochs": 1},
}


@pytest.fixture(scope="module")
def brief_runs(tmp_path_factory):
    """Each training row once, briefly, both arms: name -> outcome."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = run(name, tmp_path_factory.mktemp(name), small(name), **BRIEF.get(name, {}))
        return made[name]

    return get


# ------------------------------------------------------------------------------------------------- worked examples


def close(value, course):
    """Whether ``value`` rounds to the course's figure, of as many digits as that is printed with."""
    if isinstance(course, list):
        return len(value) == len(course) and all(map(close, value, course))
    if isinstance(course, float):
        return abs(value - course) <= 0.6 * 10 ** -len(str(course).partition(".")[2])
    return value == course


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_the_courses_figures(name, tmp_path):
    outcome = run(name, tmp_path)
    row, arms = get_row(name), outcome.record["arms"]
    assert row.course
    for quantity, figure in row.course.items():
        for arm in ("ours", "native"):
            assert close(arms[arm]["quantities"][quantity], figure), (arm, quantity)
    assert (tmp_path / "record.json").is_file()
    assert [line[0] for line in outcome.record["table"]["rows"]] == list(arms["ours"]["quantities"])


@pytest.mark.parametrize(("value", "course"), [(8.2, 8.0), (0.9735, 0.9729), ([1, 3], [1, 2]), ([1], [1, 1]), (2, 0)])
def test_close_tells_apart(value, course):
    assert not close(value, course)


def test_the_courses_numbers_are_the_issues():
    """Written down here once more: a wrong figure in a row would agree with itself."""
    figures = {name: get_row(name).course for name in EXAMPLES}
    assert [figures["linear-search"][f"MSE at w = {w}"] for w in range(5)] == [18.7, 4.7, 0, 4.7, 18.7]
    assert figures["softmax-examples"]["CE by hand"] == 0.9729
    assert (figures["softmax-examples"]["batch 1"], figures["softmax-examples"]["batch 2"]) == (0.4966, 1.2389)
    conv = figures["conv-examples"]
    assert conv["conv"] == [[211, 295, 262], [259, 282, 214], [251, 253, 169]]
    assert conv["padding 1"][1:4] == [
        [114, *conv["conv"][0], 149],
        [192, *conv["conv"][1], 122],
        [194, *conv["conv"][2], 86],
    ]
    assert (conv["padding 1"][0], conv["padding 1"][4]) == ([91, 168, 224, 215, 127], [96, 112, 110, 68, 31])
    assert (conv["stride 2"], conv["max pool 2"]) == ([[211, 262], [251, 169]], [[4, 8], [9, 8]])
    assert get_row("logistic").course == {"BCE": [1.609, 0.223, 0.357, 1.204], "mean BCE": 0.8483}


def test_examples_use_our_ops(monkeypatch):
    """The arm called ours fails where our op does; the other does not."""
    import torchsmith

    def broken(*args, **kwargs):
        raise ArithmeticError("ours was called")

    for op in ("linear", "conv2d", "max_pool2d"):
        monkeypatch.setattr(torchsmith, op, broken)
    for name in EXAMPLES:
        row = get_row(name)
        row.work(F, row.settings())
        with pytest.raises(ArithmeticError, match="ours was called"):
            row.work(torchsmith, row.settings())


def test_curves_of_examples(tmp_path):
    run("linear-search", tmp_path)
    lines = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert [float(line["w"]) for line in lines] == [round(0.1 * i, 1) for i in range(41)]
    for line in lines:
        expected = np.mean([(x * (float(line["w"]) - 2)) ** 2 for x in (1, 2, 3)])
        assert float(line["MSE ours"]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert line["MSE native"] == line["MSE ours"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_descents_differ_in_their_batches(tmp_path):
    curves = {}
    outcome = run("gradient-descent", tmp_path, epochs=3, lr=0.02)
    for line in csv.DictReader((tmp_path / "curves.csv").open()):
        for name in ("batch", "stochastic", "mini-batch"):
            curves.setdefault(name, []).append(float(line[f"{name} ours"]))
    assert all(len(set(costs)) == 3 and costs == sorted(costs, reverse=True) for costs in curves.values())
    assert len({costs[-1] for costs in curves.values()}) == 3
    w = 1.0
    for _ in range(3):
        w -= 0.02 * np.mean([2 * x * (x * w - 2 * x) for x in (1, 2, 3)])
    assert outcome.record["arms"]["ours"]["quantities"]["w, batch"] == pytest.approx(w, rel=1e-5)


# ------------------------------------------------------------------------------------------------- trainings


@pytest.mark.parametrize("name", TRAININGS)
def test_arms_agree(name, brief_runs):
    record = brief_runs(name).record
    assert record["status"] == "finished"
    losses = [record["arms"][arm]["losses"] for arm in ("ours", "native")]
    assert len(losses[0]) == len(losses[1]) >= 4
    np.testing.assert_allclose(losses[0][:50], losses[1][:50], rtol=2e-4, atol=1e-5)
    assert losses[0][-1] != losses[0][0]  # it trains
    for part in ("train", "test"):
        for metric, value in record["summary"]["arms"]["ours"][part].items():
            assert value == pytest.approx(record["summary"]["arms"]["native"][part][metric], rel=0.02, abs=0.02)


@pytest.mark.parametrize("name", TRAININGS)
def test_ours_runs_on_our_layers(name):
    row = get_row(name)
    settings, facts = row.settings(), row.load(row.embedded).facts
    kinds = [{type(m).__module__ for m in row.model(layers, settings, facts).modules()} for layers in (ours, native_nn)]
    assert "torchsmith.nn" in kinds[0] and "torchsmith.nn" not in kinds[1]


@pytest.mark.parametrize("name", TRAININGS)
def test_files_of_a_training(name, brief_runs):
    outcome = brief_runs(name)
    assert sorted(p.name for p in outcome.folder.iterdir()) == [
        "checkpoint.pt",
        "curves.csv",
        "curves.png",
        "record.json",
        "steps.csv",
    ]
    arms = outcome.record["arms"]
    lines = list(csv.DictReader((outcome.folder / "curves.csv").open()))
    assert [line["arm"] for line in lines] == [arm for arm in arms for _ in arms[arm]["epochs"]]
    assert float(lines[-1]["loss"]) == arms["native"]["epochs"][-1]["loss"]
    steps = list(csv.DictReader((outcome.folder / "steps.csv").open()))
    assert [float(step["ours loss"]) for step in steps] == arms["ours"]["losses"]


def test_linear_finds_the_line(tmp_path):
    results = run("linear", tmp_path, compare=False).record["summary"]["arms"]["ours"]["results"]
    assert results["w"] == pytest.approx(2, abs=0.01)
    assert results["b"] == pytest.approx(0, abs=0.02)
    assert results["y(4)"] == pytest.approx(8, abs=0.01)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name, tmp_path):
    outcome = run("linear", tmp_path, optimizer=name, epochs=30)
    losses = outcome.record["arms"]["ours"]["losses"]
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(outcome.record["arms"]["native"]["losses"], rel=1e-3, abs=1e-5)


def test_lbfgs_asks_for_the_loss_several_times(tmp_path):
    """One step of it is worth many of SGD's: after 3 the line is there."""
    losses = run("linear", tmp_path, optimizer="LBFGS", lr=1.0, epochs=3).record["arms"]["ours"]["losses"]
    assert losses[-1] < 1e-6 * losses[0]


def test_compare_optimizers(tmp_path):
    outcome = run("linear", tmp_path, compare_optimizers=True, epochs=20)
    arms = outcome.record["arms"]
    assert tuple(arms) == OPTIMIZERS
    assert len({arm["losses"][0] for arm in arms.values()}) == 1  # equal weights at the start
    assert len({arm["losses"][-1] for arm in arms.values()}) >= 7  # ASGD may tie with SGD
    assert [line[0] for line in outcome.record["table"]["rows"]] == [*OPTIMIZERS, "course"]
    sgd = run("linear", tmp_path, epochs=20, compare=False).record["arms"]["ours"]["losses"]
    assert arms["SGD"]["losses"] == sgd


def test_logistic_learns_the_threshold(brief_runs):
    record = brief_runs("logistic").record
    results = record["summary"]["arms"]["ours"]["results"]
    assert results["P(pass | 1 h)"] < 0.5 < results["P(pass | 4 h)"]
    assert record["summary"]["arms"]["ours"]["train"]["accuracy"] == 1
    table = {line[0]: line[1:] for line in record["table"]["rows"]}
    assert table["BCE"][0] == "[1.6094 0.22314 0.35667 1.204]" and table["mean BCE"][:2] == ["0.84831", "0.84831"]


def test_logistic_draws_its_probabilities():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    model = get_row("logistic").model(ours, None, {})
    get_row("logistic").panel(axes, {"ours": model})
    curve, threshold = axes.lines
    assert curve.get_xdata()[0] == 0 and curve.get_xdata()[-1] == 10
    assert curve.get_ydata()[-1] == pytest.approx(model(torch.tensor([[10.0]])).item(), rel=1e-5)
    assert list(threshold.get_ydata()) == [0.5, 0.5]


def test_diabetes_is_better_than_guessing(tmp_path):
    outcome = run("diabetes", tmp_path, compare=False)
    figures = outcome.record["summary"]["arms"]["ours"]
    assert figures["train"]["accuracy"] >= 0.72  # half of them are sick
    assert figures["steps"] == 1000


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    """Against plain torch; the fused form of ReLU among them."""
    model, x = DiabetesMLP(activation), torch.randn(5, 8)
    f = ACTIVATIONS[activation]()
    y = f(F.linear(x, model.l1.weight, model.l1.bias))
    y = f(F.linear(y, model.l2.weight, model.l2.bias))
    torch.testing.assert_close(model(x), torch.sigmoid(F.linear(y, model.l3.weight, model.l3.bias)))


def test_minibatches_come_from_the_loader(tmp_path):
    """The same with worker processes as without; the global generator is left alone."""
    losses = []
    for workers in (0, 2):
        outcome = run("diabetes", tmp_path, epochs=2, batch_size=32, workers=workers, compare=False)
        losses.append(outcome.record["arms"]["ours"]["losses"])
    assert len(losses[0]) == 2 * 14
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["hello-rnncell", "hello-rnn", "hello-embedding"])
def test_hello_becomes_ohlol(name, brief_runs):
    record = brief_runs(name).record
    for arm in ("ours", "native"):
        assert [len(epoch["results"]["predicted"]) for epoch in record["arms"][arm]["epochs"]] == [5] * 15
        assert record["summary"]["arms"][arm]["results"]["predicted"] == "ohlol"
        assert record["summary"]["arms"][arm]["train"]["characters"] == 1
    if name == "hello-embedding":
        assert record["summary"]["arms"]["ours"]["final_loss"] <= 0.05


def test_hello_prints_a_line_an_epoch(tmp_path):
    text = io.StringIO()
    row = get_row("hello-rnncell")
    row.run(row.settings(compare=False), folder=tmp_path, console=Console(file=text, width=120))
    lines = [line for line in text.getvalue().splitlines() if line.startswith("Epoch")]
    assert len(lines) == 15 and all("predicted" in line for line in lines) and "ohlol" in lines[-1]


def test_hello_embedding_with_gru(tmp_path):
    outcome = run("hello-embedding", tmp_path, cell="gru")
    assert type(outcome.model.rnn) is ours.GRU
    assert outcome.record["summary"]["arms"]["ours"]["results"]["predicted"] == "ohlol"
    assert type(HelloEmbedding().rnn) is ours.RNN


def test_names_learn(tmp_path):
    outcome = run("names", tmp_path, epochs=10, compare=False)
    accuracies = [epoch["test"]["accuracy"] for epoch in outcome.record["arms"]["ours"]["epochs"]]
    assert accuracies[-1] > 0.72 > accuracies[0]  # nine languages: a guess is right in 0.11


def test_poem_falls_in_perplexity_and_writes(tmp_path):
    outcome = run("poem", tmp_path, epochs=3, compare=False)
    epochs = outcome.record["arms"]["ours"]["epochs"]
    values = [epoch["test"]["perplexity"] for epoch in epochs]
    assert 30 > values[0] > values[1] > values[2] > 1
    assert epochs[2]["train"]["perplexity"] == pytest.approx(math.exp(epochs[2]["loss"]), rel=0.15)
    passage = outcome.record["passage"]
    assert len(passage) == 400 and len(set(passage)) > 10
    assert passage in outcome.record["passage"] and "the" in passage


def test_poem_of_another_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abcd" * 300)
    outcome = run("poem", tmp_path / "out", data=str(path), epochs=12, temperature=0, compare=False)
    assert outcome.record["summary"]["arms"]["ours"]["test"]["perplexity"] < 1.1
    assert outcome.record["passage"] == "bcda" * 100


def test_sampling():
    model = CharGRU(5)
    start = torch.tensor([1, 2])

    def draw(temperature, seed=0):
        return model.sample(start, 40, temperature, torch.Generator().manual_seed(seed)).tolist()

    assert draw(1.0) == draw(1.0) != draw(1.0, seed=1)
    assert draw(0, seed=1) == draw(0) == draw(1e-6)
    logits = model(start.unsqueeze(0))[0, -1]
    assert draw(0)[0] == int(logits.argmax())
    assert len(set(draw(100.0))) == 5  # nearly uniform
    assert model.sample(start, 0).tolist() == []
    with pytest.raises(ValueError, match=r"start: expected at least 1 character, \[T\], got \[0\]"):
        model.sample(start[:0], 3)
    with pytest.raises(ValueError, match="temperature: expected at least 0, got -1"):
        model.sample(start, 3, -1)


@pytest.mark.parametrize("block", ["constant-scaling", "conv-shortcut", "densenet"])
def test_blocks_train(block, tmp_path):
    splits = load_digits()
    splits = replace(splits, train=tuple(t[:192] for t in splits.train), test=tuple(t[:50] for t in splits.test))
    record = run("resnet", tmp_path, splits, block=block, epochs=1).record
    assert record["summary"]["comparison"]["max_loss_difference"] < 1e-4
    assert record["settings"]["choices"] == {"block": block}
    assert record["parameters"] == {"constant-scaling": 41514, "conv-shortcut": 42842, "densenet": 39078}[block]


def test_inception_trains_on_cifar_files(tmp_path):
    for name in (name for names in CIFAR_FILES.values() for name in names):
        records = np.random.default_rng(0).integers(0, 256, (6, 3073), dtype=np.uint8)
        records[:, 0] = range(6)
        (tmp_path / name).write_bytes(records.tobytes())
    record = run("inception", tmp_path / "out", data=str(tmp_path), epochs=2, batch_size=10).record
    assert record["data"] == {"name": "CIFAR-10", "source": str(tmp_path), "train": 30, "test": 6}
    losses = [record["arms"][arm]["losses"] for arm in ("ours", "native")]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_inception_of_photographs():
    assert MnistInception(3, 32)(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert MnistInception().fc.in_features == 1408
    with pytest.raises(ValueError, match="side: expected at least 16, got 15"):
        MnistInception(1, 15)


# ------------------------------------------------------------------------------------------------- the real data


@pytest.mark.skipif(not os.environ.get("TORCHSMITH_DATA"), reason="TORCHSMITH_DATA does not name a data folder")
def test_real_names_and_diabetes(tmp_path):
    source = os.environ["TORCHSMITH_DATA"]
    splits = load_names(source)
    assert splits.sizes() == {"train": 13374, "test": 6700} and len(splits.facts["classes"]) == 18
    assert all(n == len(t) for part in splits.parts().values() for t, n in zip(part, itertools.repeat(len(part[0]))))
    record = run("names", tmp_path, splits, data=source, epochs=1, compare=False).record
    assert record["summary"]["arms"]["ours"]["test"]["accuracy"] > 0.55
    record = run("diabetes", tmp_path, data=source).record
    assert record["data"]["train"] == 759
    assert record["summary"]["arms"]["ours"]["train"]["accuracy"] > 0.74
