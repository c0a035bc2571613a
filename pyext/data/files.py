"""Reading files, gzip or not, with errors that say what was expected and what was found."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["find", "kind", "read_bytes", "read_rows", "read_text"]


def kind(path: Path) -> str:
    """What stands at ``path``, in words."""
    return "a folder" if path.is_dir() else "a file" if path.exists() else "nothing"


def read_bytes(path: Path, what: str) -> bytes:
    """The content of ``path``, unpacked where its first bytes say gzip (not where its name does).

    Raises FileNotFoundError where there is no such file (``what``: what was expected), ValueError for a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected {what}, found {kind(path)}")
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except EOFError as error:
        raise ValueError(f"{path}: gzip stream: expected an end-of-stream mark, got a truncated file") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: gzip stream: expected intact data, got damaged data ({error})") from error


def read_text(path: Path, what: str) -> str:
    """The text of ``path``, which is UTF-8; as :func:`read_bytes`, and ValueError where it is no UTF-8."""
    try:
        return read_bytes(path, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start}: expected UTF-8 text, got {error.object[error.start]:#04x}"
        ) from error


def read_rows(path: Path, columns: int, what: str) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file without a header, each with its place ("file: line N") for errors; empty lines are left out.

    Raises ValueError for a row that has not ``columns`` fields.
    """
    lines = read_text(path, what).splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = next(csv.reader([line]))
        if len(fields) != columns:
            raise ValueError(f"{path}: line {number}: expected {columns} columns, got {len(fields)}")
        yield f"{path}: line {number}", fields


def find(root: Path, folder: str, names: tuple[str, ...]) -> list[Path]:
    """Files ``names`` (or with ``.gz``) of ``root``/``folder`` or of ``root`` itself; FileNotFoundError names what is missing."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder with {' and '.join(names)}, found {kind(root)}")
    places = [place for place in (root / folder, root) if place.is_dir()]
    found = []
    for name in names:
        candidates = (place / (name + end) for place in places for end in ("", ".gz"))
        path = next((candidate for candidate in candidates if candidate.is_file()), None)
        if path is None:
            raise FileNotFoundError(
                f"{root}: expected {name} or {name}.gz (in it or in its folder {folder}/), found neither"
            )
        found.append(path)
    return found
