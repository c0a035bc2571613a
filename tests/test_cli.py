"""The command line: help, listings, and what it says to wrong input. Trainings are in test_train.py."""

import json
import subprocess
import sys

import processes
import pytest
from click.testing import CliRunner

from torchsmith.cli import main
from torchsmith.course import get_row, row_names


def run(*args, env=None):
    return CliRunner().invoke(main, args, env={"TORCHSMITH_DATA": None, **(env or {})}, prog_name="torchsmith")


def assert_refused(result, *words, code=2):
    """A clean exit with a message, not a traceback."""
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    for word in words:
        assert word in result.output


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("train",),
        ("train", "cnn"),
        ("info",),
        ("predict",),
        ("predict", "names"),
        ("course",),
        ("doctor",),
        ("selftest",),
    ],
    ids=" ".join,
)
def test_help(args):
    result = run(*args, "--help")
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: {' '.join(('torchsmith', *args))} ")
    assert run(*args, "-h").output == result.output


def test_main_help_names_every_command():
    output = run("--help").output
    assert all(
        name in output for name in ("bench", "course", "doctor", "explain", "info", "predict", "selftest", "train")
    )


def test_train_help_states_the_defaults():
    output = " ".join(run("train", "cnn", "--help").output.split())
    for text in ("10; 30 on digits", "64", "0.01", "0.5", "torch's"):
        assert f"[default: {text}]" in output
    assert "TORCHSMITH_DATA" in output
    for option in ("data", "epochs", "batch-size", "lr", "momentum", "seed", "threads", "compare", "no-compare", "out"):
        assert f"--{option}" in output


def test_help_imports_nothing_heavy():
    """Importing the CLI costs no more than importing the package, and never what only a training needs."""
    code = (
        "import sys, torchsmith; before = set(sys.modules); import torchsmith.cli; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new & {'torch', 'numpy', 'matplotlib', 'sklearn', 'scipy', 'rich'}))"
    )
    result = processes.run("-c", code, check=True)
    assert result.stdout.strip() == "[]"


def test_python_dash_m():
    result = subprocess.run([sys.executable, "-m", "torchsmith", "--help"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Usage: torchsmith ")


def test_version():
    from torchsmith import _native

    assert run("--version").output == f"torchsmith {_native.build_info()['version']}\n"


def test_list_shows_every_row():
    result = run("train", "--list")
    assert result.exit_code == 0
    assert "cnn" in row_names()
    for name in row_names():
        assert name in result.output
    assert "98.3 %" in " ".join(result.output.split())


@pytest.mark.parametrize("name", row_names())
def test_rows_are_complete(name):
    row = get_row(name)
    assert row.name == name
    assert row.summary and row.data and row.goal and len(row.reached) > 1
    assert row.settings(data="somewhere").epochs >= 1
    assert row.settings().data == row.embedded
    for changes in filter(None, (row.quick, *row.variants.values())):
        assert row.settings(**changes) != row.settings()


def test_unknown_row_from_python():
    with pytest.raises(ValueError, match="no row 'cnx'; there are: .*cnn"):
        get_row("cnx")


def test_wrong_command():
    assert_refused(
        run("trian"), "No such command 'trian'", "bench, course, doctor, explain, info, predict, selftest, train"
    )


def test_wrong_row():
    assert_refused(run("train", "cnx"), "No such command 'cnx'", "Allowed: ", "cnn")


def test_wrong_option_names_those_there_are():
    assert_refused(run("train", "cnn", "--epoch", "3"), "No such option '--epoch'", "--epochs", "--batch-size", "--out")
    assert_refused(run("info", "--yaml"), "No such option '--yaml'", "--json")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--epochs", "0"), ("'--epochs'", "at least 1")),
        (("--epochs", "many"), ("'--epochs'", "'many'", "at least 1")),
        (("--batch-size", "-64"), ("'--batch-size'", "at least 1")),
        (("--lr", "0"), ("'--lr'", "greater than 0")),
        (("--lr", "nan"), ("lr: expected a number greater than 0, got nan",)),
        (("--lr", "inf"), ("lr: expected a number greater than 0, got inf",)),
        (("--momentum", "1"), ("'--momentum'", "0 to less than 1")),
        (("--seed", "-1"), ("'--seed'", "from 0")),
        (("--threads", "0"), ("'--threads'", "1 to 1024")),
        (("--epochs",), ("'--epochs' requires an argument",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_values(tmp_path, args, words):
    result = run("train", "cnn", "--out", str(tmp_path / "out"), *args)
    assert_refused(result, *words, code=1 if "expected" in words[0] else 2)
    assert not (tmp_path / "out").exists()


def test_data_errors_are_messages(tmp_path):
    out = tmp_path / "out"
    missing = str(tmp_path / "gone")
    for result in (
        run("train", "cnn", "--data", missing, "--out", str(out)),
        run("train", "cnn", "--out", str(out), env={"TORCHSMITH_DATA": missing}),
    ):
        assert_refused(result, f"Error: {missing}: expected a folder with the MNIST files, found nothing", code=1)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes(16))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes(8))
    result = run("train", "cnn", "--data", str(tmp_path), "--out", str(out))
    assert_refused(result, "train-images-idx3-ubyte: magic number: expected 0x00000803", code=1)
    assert not out.exists()


def test_out_must_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    assert_refused(run("train", "cnn", "--out", str(tmp_path / "file")), "--out", "is a file")
    below = run("train", "cnn", "--out", str(tmp_path / "file" / "below"))
    assert_refused(below, "Error: ", str(tmp_path / "file"), code=1)


def test_missing_scikit_learn_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    result = run("train", "cnn", "--out", str(tmp_path / "out"))
    assert_refused(result, "scikit-learn", "pip install 'torchsmith[course]'", code=1)


def test_missing_matplotlib_is_told_before_the_training(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "torchsmith.plots", raising=False)
    result = run("train", "cnn", "--out", str(tmp_path / "out"))
    assert_refused(result, "matplotlib", "pip install 'torchsmith[course]'", code=1)
    assert not (tmp_path / "out").exists()


def test_info_json_is_what_the_native_module_says():
    import torch

    from torchsmith import _native

    result = run("info", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.output)
    assert facts["build"] == _native.build_info()
    assert facts["registry"] == _native.registry()
    assert facts["machine"]["torch"] == torch.__version__
    assert facts["machine"]["isa"] == _native.isa_active()
    assert facts["machine"]["isa"] in facts["machine"]["isa_available"]


def test_info_tables():
    from torchsmith import _native

    result = run("info", env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert _native.build_info()["version"] in result.output
    assert _native.isa_active() in result.output
    for kernel in _native.registry():
        assert kernel["op"] in result.output
