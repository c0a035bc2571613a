"""The page of three implementations is what the sources say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_current_and_whole():
    done = subprocess.run([sys.executable, "docs/side_by_side.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "docs" / "gru.md").read_text(encoding="utf-8")
    for title in ("The formula", "The sequence", "C++ (CPU)", "CUDA C++", "Triton"):
        assert f"## {title}\n" in text
    assert text.count("Memory:") == 3  # each implementation says what it does about it


def test_a_page_that_is_not_is_named(tmp_path):
    for part in ("docs", "kernels", "csrc"):
        (tmp_path / part).symlink_to(ROOT / part)
    (tmp_path / "docs").unlink()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "side_by_side.py").write_text((ROOT / "docs" / "side_by_side.py").read_text())
    (tmp_path / "docs" / "gru.md").write_text("old")
    command = [sys.executable, "docs/side_by_side.py", "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "docs/gru.md is not current: run `make readme`" in done.stderr
