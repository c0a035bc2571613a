"""The report: every row on a page that needs nothing else, losses in plain sight, and what moved between two runs.

No time is judged here: records are made up.
"""

from __future__ import annotations

import json
import os
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import processes
import pytest
from click.testing import CliRunner

from torchsmith import bench_cli
from torchsmith.bench import against, report
from torchsmith.spec import all_specs

ENVIRONMENT = {
    "processor": "P", "cores": 2, "isa": "avx512", "native_isa": "AVX512", "torch": "2", "torchsmith": "1",
    "python": "3", "compiler": "gcc",
}  # fmt: skip


def row(**changes):
    base = {
        "kind": "op", "op": "linear", "label": "2x3 <b>", "mode": "forward", "dtype": "float32", "threads": 1,
        "isa": "avx512", "baseline": "eager", "shapes": "course", "backend": "cpp",
        "ours_us": 10.0, "native_us": 25.0, "ratio": 2.5, "ratio_low": 2.45, "ratio_high": 2.55,
        "flops": 1000, "bytes": 100, "gflops": 12.34, "native_gflops": 5.0, "gbytes_s": 9.0, "native_gbytes_s": 3.0,
    }  # fmt: skip
    return {**base, **changes}


def details(**changes):
    facts = {"saved_bytes": 100, "peak_bytes": 3 << 20, "error": 1e-7, "same_runs": True, "same_threads": False}
    return {**facts, **{f"native_{k}": v for k, v in facts.items()}, **changes}


def record(*rows, **changes):
    ceiling = {"threads": 1, "isa": "avx512", "gflops": 100.0, "gbytes_s": 20.0, "cache_gbytes_s": 90.0}
    base = {
        "format": report.FORMAT, "when": "2025-01-02T03:04", "environment": dict(ENVIRONMENT), "rows": list(rows),
        "ceilings": [ceiling], "skipped": [{"what": "gru x", "why": "torch.compile fails on this"}],
    }  # fmt: skip
    return {**base, **changes}


MANY = (
    row(**details()),
    row(label="slow one", ratio=0.8, ratio_low=0.75, ratio_high=0.85, threads=2, **details(saved_bytes=200)),
    row(label="noisy", ratio=0.99, ratio_low=0.9, ratio_high=1.1),
    row(label="left", ratio=0.97, ratio_low=0.96, ratio_high=0.98, backend="torch", shapes="extra"),
    row(baseline="compile", ratio=1.5, ratio_low=1.4, ratio_high=1.6),
    row(baseline="mkl-avx512", ratio=0.9, ratio_low=0.88, ratio_high=0.93),
    row(isa="avx2", ratio=1.2, ratio_low=1.1, ratio_high=1.3),
    row(kind="model", op="MnistCNN", label="28x28 b64", mode="training step", ratio=4.0, ratio_low=3.9, ratio_high=4.1),
    {k: v for k, v in row(op="max_pool2d", label="k2 4x4").items() if k not in ("flops", "gflops", "native_gflops")},
)


class Page(HTMLParser):
    """Table rows by the heading above them, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.heading, self.rows, self.attributes = "", [], []
        self.cell = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *a) for a in attrs]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "h2":
            self.heading = ""
        if tag == "tr":
            self.rows.append((self.heading, dict(attrs).get("class"), []))
        if tag in ("td", "th"):
            self.rows[-1][2].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags are closed in order"

    def handle_data(self, text):
        if "h2" in self.open:
            self.heading += text
        elif self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][2][-1] += text


@pytest.fixture(scope="module")
def text():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from torchsmith.bench import page

    return page.html(record(*MANY, against="linear slower by 1.10x"))


@pytest.fixture(scope="module")
def page(text):
    parsed = Page(text)
    assert parsed.open == []
    return parsed


def cells(page, heading):
    return [row for found, _, row in page.rows if found == heading]


def test_the_page_holds_every_row(page):
    measured = [tuple(c[:5]) for c in cells(page, "Every measurement")]
    for r in MANY:
        wanted = (r["op"], r["label"], report.duration(r["native_us"]), report.duration(r["ours_us"]), report.spread(r))
        assert measured.count(wanted) == 1, wanted


def test_the_page_needs_nothing_else(page, text):
    for _tag, name, value in page.attributes:
        if name in ("src", "href", "data", "action", "srcset", "style"):
            assert value.startswith(("data:image/", "#")), (name, value[:80])
    assert not {"script", "link", "iframe", "object"} & {tag for tag, *_ in page.attributes}
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text


def test_pictures_are_whole_and_fetch_nothing(page):
    import base64
    from xml.etree import ElementTree

    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(pictures) >= 5, "one for each mode, number of threads and instruction set, and the roofline"
    for value in pictures:
        kind, _, data = value.partition(",")
        assert kind == "data:image/svg+xml;base64"
        svg = base64.b64decode(data).decode()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert all(ref.startswith("#") for ref in re.findall(r'href="([^"]*)"', svg))
        assert all(ref.startswith("#") for ref in re.findall(r"url\(([^)]*)\)", svg))


def test_losses_are_listed_worst_first(page):
    rows = [(mark, c) for found, mark, c in page.rows if found == report.SLOWER][1:]
    assert [(c[1], c[5], c[10]) for _, c in rows] == [
        ("slow one", "eager", ""),
        ("2x3 <b>", "mkl-avx512", ""),
        ("left", "eager", "left to native"),
        ("noisy", "eager", "within noise"),
    ]
    assert all(mark == "loss" for mark, _ in rows)
    markdown = report.markdown(record(*MANY))
    listed = markdown.partition(f"## {report.SLOWER}")[2].partition("## Ops")[0]
    assert [name in listed for name in ("slow one", "noisy", "left", "mkl-avx512", "MnistCNN")] == [True] * 4 + [False]


def test_a_loss_is_marked_where_it_stands(page):
    marks = {c[1]: mark for found, mark, c in page.rows if found == "Every measurement" and c[1] != "2x3 <b>"}
    assert marks["slow one"] == marks["left"] == "loss"
    assert marks["28x28 b64"] is None


def test_baselines_stand_side_by_side(page):
    head, line = cells(page, "Side by side")
    assert head[5:] == [
        "native", "torch.compile", "native with MKL allowed AVX-512", "native, avx2 on both sides",
    ]  # fmt: skip
    assert line == ["linear", "2x3 <b>", "forward", "float32", "1", "2.50", "1.50", "0.90", "1.20"]


def test_shares_of_the_ceilings(page):
    rows = {c[1]: c for c in cells(page, "Every measurement") if c[0] == "max_pool2d"}
    assert rows["k2 4x4"][5:9] == ["", "", "9.0", "45 %"]
    (first, *_) = [c for c in cells(page, "Every measurement") if c[1] == "2x3 <b>"]
    assert first[5:9] == ["12.3", "12 %", "9.0", "45 %"]


def test_memory_error_and_determinism(page):
    marks = {c[1]: (mark, c) for found, mark, c in page.rows if found == "Memory, error, determinism"}
    assert marks["2x3 <b>"][1][4:] == [
        "100 B", "100 B", "3.0 MiB", "3.0 MiB", "1.0e-07", "1.0e-07", "runs", "runs",
    ]  # fmt: skip
    assert marks["2x3 <b>"][0] is None
    assert marks["slow one"][0] == "loss", "saves more than native"


def test_what_could_not_be_measured_is_said(text):
    assert "torch.compile fails on this" in text
    assert "linear slower by 1.10x" in text
    assert escape("2x3 <b>") in text
    assert "2x3 <b>" not in text


def test_a_record_of_an_earlier_version_is_shown_too():
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from torchsmith.bench import page

    old = {k: row()[k] for k in report.FIELDS}
    data = {"format": 1, "when": "2025-01-02T03:04", "environment": dict(ENVIRONMENT), "rows": [old]}
    assert "linear" in page.html(data)
    assert "linear" in report.markdown(data)
    empty = page.html({**data, "rows": []})
    assert "Nothing that was measured is slower" in empty


# ---------------------------------------------------------------------------------------------- two runs


def test_a_planted_slowdown_is_found_and_noise_is_not():
    labels = [f"{n}" for n in range(20)]
    old = record(*(row(label=x) for x in labels))
    noisy = [row(label=x, ratio=2.5 * (1 + 0.02 * (-1) ** i)) for i, x in enumerate(labels)]
    assert against.compare(record(*noisy), old).moved == []
    noisy[7] |= {"ratio": 2.2, "ratio_low": 2.15, "ratio_high": 2.25, "ours_us": 11.4}
    noisy[9] |= {"ratio": 3.0, "ratio_low": 2.95, "ratio_high": 3.05}
    found = against.compare(record(*noisy), old)
    assert [(m.row["label"], m.change < 1) for m in found.moved] == [("7", True), ("9", False)]
    assert found.still == 18
    text = found.text()
    assert "Slower than before" in text
    assert "linear 7 (forward, float32, 1 thread): slower by 1.14x, ratio 2.50 -> 2.20" in text


def test_what_scatters_widely_must_move_more():
    def wide(ratio):
        return row(ratio=ratio, ratio_low=ratio * 0.85, ratio_high=ratio * 1.15)

    assert against.compare(record(wide(2.0)), record(wide(2.3))).moved == []
    assert len(against.compare(record(wide(2.0)), record(wide(3.0))).moved) == 1


@pytest.mark.parametrize("dtype, compared", [("float32", 1), ("bfloat16", 0)])
def test_sets_that_differ_in_bfloat16_alone_are_compared_in_the_rest(dtype, compared):
    old, new = (record(row(dtype=dtype, isa=isa)) for isa in ("avx512_bf16", "avx512_amx"))
    assert against.compare(new, old).still == compared


def test_the_same_drift_of_both_sides_is_no_move():
    slow_machine = row(ours_us=15.0, native_us=37.5)
    assert against.compare(record(slow_machine), record(row())).moved == []


def test_rows_and_machines_that_differ_are_named():
    other = record(row(label="old only"), environment={**ENVIRONMENT, "torch": "1.9"})
    text = against.compare(record(row(), row(baseline="compile")), other).text()
    assert "Only in the new run: 2" in text
    assert "Only in the old run: 1 (linear old only" in text
    assert "Not the same torch: 1.9 then, 2 now" in text
    assert "0 compared, nothing moved" in text


# ---------------------------------------------------------------------------------------------- the command


def invoke(*args):
    return CliRunner().invoke(bench_cli.bench, [str(a) for a in args])


def saved(path, *rows):
    path.write_text(json.dumps(record(*rows)), encoding="utf-8")
    return path


def test_two_saved_runs_are_compared_without_measuring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_cli, "_run", lambda *a: pytest.fail("measured"))
    old, new = saved(tmp_path / "old.json", row()), saved(tmp_path / "new.json", row(ratio=2.0))
    result = invoke("--from", new, "--against", old)
    assert result.exit_code == 0, result.output
    assert "slower by 1.25x" in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.json", "old.json"]


def test_a_saved_run_becomes_a_report(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = invoke("--from", saved(tmp_path / "new.json", *MANY), "--report", tmp_path / "r")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == ["bench.html", "bench.json", "bench.md"]
    assert report.load(tmp_path / "r" / "bench.json")["rows"] == list(MANY)


def broken(**changes):
    return json.dumps(record({**row(), **changes}))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "not a torchsmith benchmark record"),
        (b'{"format": 99, "rows": []}', "not a torchsmith benchmark record"),
        (b'{"format": 1, "rows": []}', "when and where"),
        (b'{"benchmarks": [], "machine_info": {}}', "pytest-benchmark's own record"),
        (json.dumps(record("x")).encode(), "row 0 is no object"),
        (broken(ratio="fast").encode(), "row 0: field 'ratio' is 'fast'"),
        (broken(ratio=0).encode(), "row 0: field 'ratio' is 0"),
        (broken(ours_us=float("nan")).encode(), "row 0: field 'ours_us' is nan"),
        (broken(threads=True).encode(), "row 0: field 'threads' is True"),
        (json.dumps(record({"op": "linear"})).encode(), "row 0: field 'kind' is missing"),
    ],
)
@pytest.mark.parametrize("option", ["--against", "--from"])
def test_a_file_that_is_no_record_is_refused_before_measuring(tmp_path, monkeypatch, content, why, option):
    monkeypatch.setattr(bench_cli, "_run", lambda *a: pytest.fail("measured"))
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    result = invoke(option, path)
    assert result.exit_code == 1
    assert option in result.output
    assert "bad.json" in result.output
    assert why in result.output


@pytest.mark.parametrize("option", ["--against", "--from"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, option):
    for path, why in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory")):
        result = invoke(option, path)
        assert result.exit_code == 1
        assert f"{option} {path}: {why}" in result.output.replace("\n", "")


def test_pytest_writes_the_report_too(tmp_path):
    for name in ("pytest_benchmark", "matplotlib"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    folder = Path(report.__file__).parent
    line = ["-m", "pytest", str(folder), "-c", os.devnull, "--rootdir", str(folder), "--quick"]
    line += ["--op=max_pool2d", "--mode=forward", f"--report={tmp_path / 'r'}", "-q", "-p", "no:cacheprovider"]
    done = processes.run(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    made = report.load(tmp_path / "r" / "bench.json")
    assert len(made["rows"]) == sum(len(s.bench) for s in all_specs() if s.name == "max_pool2d")
    for r in made["rows"]:
        assert r["bytes"] > 0
        assert "gflops" not in r
        assert {"saved_bytes", "native_peak_bytes", "error", "same_threads"} <= set(r)
    assert made["ceilings"][0]["gflops"] > 0
    names = {"bench.html", "bench.json", "bench.md", "pytest-benchmark.json"}
    assert {p.name for p in (tmp_path / "r").iterdir()} == names
