"""The course's commands: the list, predictions, the report, and what they say of bad input."""

import pytest
from click.testing import CliRunner
from course_runs import _few_pictures, quiet, run, small  # noqa: F811,F401

from torchsmith.cli import main
from torchsmith.course import all_rows, get_row
from torchsmith.course.record import cell
from torchsmith.course.row import TrainingRow

# ------------------------------------------------------------------------------------------------- commands


def command(*args, env=None):
    environment = {"TORCHSMITH_DATA": None, "COLUMNS": "160", **(env or {})}
    return CliRunner().invoke(main, args, env=environment, prog_name="torchsmith")


def test_list_has_a_line_for_each_row():
    result = command("train", "--list", env={"COLUMNS": "400"})
    assert result.exit_code == 0
    for row in all_rows():
        (line,) = (line for line in result.output.splitlines() if line.startswith(f"│ {row.name} "))
        for text in (row.summary, row.data, row.goal, row.reached):
            assert text in line


def test_lessons_are_in_the_courses_order():
    lessons = [row.lesson for row in all_rows()]
    assert lessons == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]  # 7: diabetes in mini-batches
    assert "mini-batches" in get_row("diabetes").variants


@pytest.mark.parametrize("name", [row.name for row in all_rows()])
def test_help_of_every_row(name):
    result = command("train", name, "--help")
    assert result.exit_code == 0
    row = get_row(name)
    for option in row.options:
        assert f"--{option.name}" in result.output
    assert ("--optimizer" in result.output) == isinstance(row, TrainingRow)
    assert bool(row.source) == any(f"{flag} PATH" in result.output for flag in ("--data", "--text"))


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A folder with a run of names."""
    folder = tmp_path_factory.mktemp("named")
    run("names", folder / "runs" / "names-1", epochs=8, compare=False)
    return folder


def test_predict_names(named, monkeypatch):
    monkeypatch.chdir(named)
    result = command("predict", "names", "Kowalczyk", "Fujimoto", "Παπαδόπουλος", "Łódź")
    assert result.exit_code == 0, result.output
    lines = {line.split()[1]: line for line in result.output.splitlines() if "%" in line}
    assert list(lines) == ["Kowalczyk", "Fujimoto", "Παπαδόπουλος", "Łódź"]
    assert "Polish" in lines["Kowalczyk"].split("│")[2] and "Japanese" in lines["Fujimoto"].split("│")[2]
    for line in lines.values():
        shares = [float(text.split()[-2]) for text in line.split("│")[2:5]]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.1
    alone = command("predict", "names", "Kowalczyk", "--checkpoint", str(named / "runs" / "names-1"))
    assert lines["Kowalczyk"].split("│")[2].strip() in alone.output


def test_prediction_does_not_depend_on_the_order(named):
    from torchsmith.course.predict import answers

    row, place = get_row("names"), named / "runs" / "names-1"
    together = answers(row, ["Li", "Papadopoulos", "Smith"], place)
    for word, found in zip(["Li", "Papadopoulos", "Smith"], together, strict=True):
        (alone,) = answers(row, [word], place)
        assert [name for name, _ in alone] == [name for name, _ in found]
        assert [p for _, p in alone] == pytest.approx([p for _, p in found], rel=1e-4)


def test_predict_says_what_is_wrong(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command("predict", "names", "Smith")
    assert result.exit_code == 1 and "found none; train first (torchsmith train names)" in result.output
    place = str(named / "runs" / "names-1")
    result = command("predict", "names", "Smith", " ", "--checkpoint", place)
    assert result.exit_code == 1 and "name 2: expected at least 1 letter, got ' '" in result.output
    result = command("predict", "names", "--checkpoint", place)
    assert result.exit_code == 2 and "Missing argument" in result.output
    run("hello-rnn", tmp_path / "other", epochs=1)
    result = command("predict", "names", "Smith", "--checkpoint", str(tmp_path / "other"))
    assert result.exit_code == 1 and "expected a checkpoint of names, got one of hello-rnn" in result.output
    assert "No such command 'cnn'" in command("predict", "cnn", "x").output


def test_report(tmp_path):
    names = ["softmax-examples", "hello-rnn", "linear-search"]
    result = command("course", "--quick", "--report", str(tmp_path / "page"), *names)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page" / "index.html").read_text()
    for name in names:
        assert f'<h2 id="{name}">{name}</h2>' in page
        assert (tmp_path / "page" / name / "record.json").is_file()
    assert page.count("data:image/png;base64,") == 2  # softmax-examples has no curves
    assert "0.97292" in page and "0.9729" in page and "&#34;ohlol&#34;" in page
    assert not any(text in page for text in ("http://", "https://", 'src="/', "<script"))


def test_report_shows_a_failure_and_goes_on(tmp_path):
    result = command(
        "course", "--data", str(tmp_path / "gone"), "--report", str(tmp_path / "page"), "diabetes", "softmax-examples"
    )
    assert result.exit_code == 1
    page = (tmp_path / "page" / "index.html").read_text()
    assert "gone: expected a folder with diabetes.csv, found nothing" in page and "0.97292" in page
    assert "no row &#39;cnx&#39;" not in page
    wrong = command("course", "--report", str(tmp_path / "page2"), "cnx")
    assert wrong.exit_code == 1 and "no row 'cnx'" in wrong.output and not (tmp_path / "page2").exists()


def test_the_plan_of_a_report():
    from torchsmith.course.report import plan

    quick, full = plan(quick=True, data="/data"), plan(quick=False, data="/data")
    labels = [one.label for one in quick]
    assert labels == [one.label for one in full] and len(set(labels)) == len(labels)
    assert {one.row.name for one in quick} == {row.name for row in all_rows()}
    assert all(one.settings.data == one.row.embedded for one in quick)
    assert {one.row.name for one in full if one.settings.data == "/data"} == {
        row.name for row in all_rows() if row.source == "--data"
    }
    by_label = {one.label: one.settings for one in quick}
    assert by_label["diabetes.mini-batches"].workers == 2 and by_label["diabetes.mini-batches"].batch_size == 32
    assert by_label["linear.optimizers"].compare_optimizers
    assert by_label["cnn"].epochs < get_row("cnn").settings().epochs


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("linear", "--optimizer", "SDG"), ("'--optimizer'", "'SDG'", "Adagrad")),
        (("diabetes", "--activation", "swish"), ("'--activation'", "'swish'", "softplus")),
        (("diabetes", "--workers", "-1"), ("'--workers'", "-1")),
        (("resnet", "--block", "bottleneck"), ("'--block'", "'bottleneck'", "conv-shortcut", "densenet")),
        (("hello-embedding", "--cell", "lstm"), ("'--cell'", "'lstm'", "gru")),
        (("poem", "--temperature", "-0.5"), ("'--temperature'", "-0.5")),
        (("poem", "--data", "x"), ("No such option '--data'", "--text")),
        (("linear-search", "--epochs", "3"), ("No such option '--epochs'",)),
        (("cnn", "--amp", "fp16"), ("'--amp'", "'fp16'", "bf16")),
        (("cnn", "--device", "tpu"), ("device: expected cpu, cuda or cuda:N, got tpu",)),
        (("cnn", "--device", "cuda:99"), ("device: expected one that is here", "got cuda:99")),
        (
            ("linear", "--optimizer", "Adam", "--momentum", "0.5"),
            ("momentum: expected an optimizer with momentum", "Adam"),
        ),
        (("poem", "--text", "nowhere.txt"), ("nowhere.txt: expected a text file, found nothing",)),
        (("diabetes", "--data", "nowhere"), ("nowhere: expected a folder with diabetes.csv, found nothing",)),
        (("names", "--data", "nowhere"), ("nowhere: expected a folder with names_train.csv and names_test.csv",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_arguments_are_named(args, words, tmp_path):
    result = command("train", *args, "--out", str(tmp_path / "out"))
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.output
    for word in words:
        assert word in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_settings_from_python():
    with pytest.raises(ValueError, match="block: .*'bottleneck' is not one of"):
        get_row("resnet").settings(block="bottleneck")
    with pytest.raises(TypeError, match="cnn has no setting block"):
        get_row("cnn").settings(block="plain")
    with pytest.raises(ValueError, match="optimizer: expected one of SGD, .*, got sgd"):
        get_row("cnn").settings(optimizer="sgd")
    with pytest.raises(ValueError, match="workers: expected at least 0, got -1"):
        get_row("cnn").settings(workers=-1)


def test_cells():
    texts = {0.972919: "0.97292", 5: "5", "word": "word"}
    assert {value: cell(value) for value in texts} == texts
    assert cell([[1, 2], [3, 4]]) == "[1 2; 3 4]" and cell([0.5, 2.0]) == "[0.5 2]"
