"""The measured table as a file: joined, kept whole by kills and other processes, ignored where it does not fit; the command."""

import json
import os
import signal

import processes
import pytest
import torch
from click.testing import CliRunner
from tables import entry, table

from torchsmith import tuned
from torchsmith.cli import main
from torchsmith.tuned import Entry, Table

pytestmark = pytest.mark.usefixtures("cache")

# ------------------------------------------------------------------------------------------------ the file


ONE = entry("linear", (torch.empty(3, 5), torch.empty(4, 5), None), 12.0, 9.0, threads=1)
OTHER = entry("linear", (torch.empty(7, 5), torch.empty(4, 5), None), 8.0, 9.0, threads=1)


def test_saved_tables_are_joined(cache):
    table(ONE).save()
    table(OTHER).save()
    assert Table.load().entries == table(ONE, OTHER).entries
    faster = Entry(**{**ONE.__dict__, "us": {"ours": 5.0, "torch": 9.0}})
    table(faster).save()
    assert Table.load().entries == table(faster, OTHER).entries
    assert {p.name for p in cache.iterdir()} <= {"tuned.json", "tuned.json.lock"}


@pytest.mark.parametrize("name", ["torch", "torchsmith", "processor", "isa"])
def test_a_table_of_another_installation_is_ignored_and_replaced(name, cache):
    path = table(ONE).save()
    data = json.loads(path.read_text())
    data["made_for"][name] = "another"
    path.write_text(json.dumps(data))
    assert Table.load().entries == {}
    table(OTHER).save()
    assert Table.load().entries == table(OTHER).entries


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "made_for": 3, "entries": 4}']
)
def test_a_broken_file_is_no_table(text, cache):
    (cache / "tuned.json").write_text(text)
    assert Table.load().entries == {}


def test_entries_of_the_wrong_form_are_no_table(cache):
    path = table(ONE).save()
    data = json.loads(path.read_text())
    data["entries"][0]["speed"] = 3
    path.write_text(json.dumps(data))
    assert Table.load().entries == {}


def test_a_failed_save_leaves_the_old_file(cache, monkeypatch):
    path = table(ONE).save()
    before = path.read_bytes()
    monkeypatch.setattr(tuned.json, "dump", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        table(OTHER).save()
    assert path.read_bytes() == before
    assert not list(cache.glob("*.tmp"))


def run(code, cache):
    return processes.start("-c", code, env={**os.environ, "TORCHSMITH_CACHE": str(cache)})


def test_a_new_process_obeys_the_table(cache):
    table(ONE).save()
    code = (
        "import torch, torchsmith; torch.set_num_threads(1); "
        "torchsmith.linear(torch.randn(3, 5), torch.randn(4, 5)); print(torchsmith.explain().implementation)"
    )
    assert run(code, cache).communicate()[0].strip() == "torch"


def test_two_processes_at_once_lose_nothing(cache):
    code = """
import sys, torch
from torchsmith.tuned import Entry, Table
for i in range(20):
    e = Entry("linear", (("tensor", ({start} + i, 2), "float32", "contiguous"),), 1, False, {{"ours": 1.0, "torch": 2.0}})
    Table({{e.key: e}}).save()
"""
    both = [run(code.format(start=start), cache) for start in (0, 1000)]
    assert [p.wait(120) for p in both] == [0, 0]
    sizes = {e.arguments[0][1][0] for e in Table.load().entries.values()}
    assert sizes == {*range(20), *range(1000, 1020)}


def test_a_killed_tune_leaves_the_old_table(cache):
    path = table(ONE).save()
    before = path.read_bytes()
    # Killed at the worst moment: all is measured and written, but not moved to its place yet.
    code = """
import os, signal
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
from torchsmith.bench import harness
from torchsmith.bench.harness import Times
from torchsmith.cli import main
main(["tune", "--op", "rnn_cell", "--quick", "--threads", "1"])
"""
    assert run(code, cache).wait(120) == -signal.SIGKILL
    assert path.read_bytes() == before
    assert Table.load().entries == table(ONE).entries
    table(OTHER).save()  # and the lock died with its process
    assert Table.load().entries == table(ONE, OTHER).entries


# ------------------------------------------------------------------------------------------------ the command


def invoke(*args):
    return CliRunner().invoke(main, ["tune", *args], prog_name="torchsmith")


def test_the_command_measures_keeps_and_shows(cache):
    assert "no table for this installation" in invoke("--show").output
    result = invoke("--op", "rnn_cell", "--quick", "--threads", "1")
    assert result.exit_code == 0, result.output
    entries = Table.load().entries.values()
    assert {(e.op, e.threads, e.grad) for e in entries} == {("rnn_cell", 1, False), ("rnn_cell", 1, True)}
    shown = invoke("--show").output.splitlines()
    assert shown[0].split()[:3] == ["op", "arguments", "mode"]
    assert len(shown) == 1 + len(entries)
    for line in shown[1:]:
        ratio, winner = float(line.split()[-2]), line.split()[-1]
        assert winner == ("ours" if ratio >= tuned.MARGIN else "native") or abs(ratio / tuned.MARGIN - 1) < 0.01


def test_wrong_options_are_named():
    result = invoke("--op", "conv3d")
    assert result.exit_code == 2 and "'conv3d' is not one of" in result.output and "max_pool2d" in result.output
    assert invoke("--threads", "0").exit_code == 2


def test_a_stopped_tune_keeps_what_was_measured(cache):
    """SIGTERM, which a time limit sends, as Ctrl-C: at the second call here."""
    code = """
import signal
from torchsmith import tuning
from torchsmith.cli import main
measure, calls = tuning.measure, []
def stopped(call, quick=False):
    calls.append(call)
    if len(calls) == 2:
        signal.raise_signal(signal.SIGTERM)
    return measure(call, quick)
tuning.measure = stopped
main(["tune", "--op", "rnn_cell", "--quick", "--threads", "1"])
"""
    process = run(code, cache)
    assert process.communicate(120)[0] and process.returncode == 130
    assert len(Table.load().entries) == 1
