"""Family names and the countries (or languages) they come from, as rows of character codes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .files import find, read_rows
from .splits import Splits

__all__ = ["CHARACTERS", "encode_names", "load_names"]

CHARACTERS = 128  #: codes there are: ASCII's
EMBEDDED = Path(__file__).with_name("family_names.csv")
TEST_EVERY = 5  # of the embedded names of a language, one in five is for testing
# Letters that Unicode does not take apart into an ASCII letter and a mark.
SPELLED = str.maketrans(
    {"\u00df": "ss", "\u00e6": "ae", "\u00c6": "Ae", "\u0153": "oe", "\u0152": "Oe", "\u00f8": "o", "\u00d8": "O"}
    | {"\u0142": "l", "\u0141": "L", "\u0111": "d", "\u0110": "D", "\u00f0": "d", "\u00fe": "th", "\u00de": "Th"}
    | {"\u0131": "i", "\u2019": "'", "\u2018": "'"}
)


def ascii_name(name: str) -> str:
    """``name`` in ASCII: marks are dropped (é: e), ligatures spelled (ß: ss), and what is left of other scripts is "?"."""
    taken_apart = unicodedata.normalize("NFKD", name.strip().translate(SPELLED))
    plain = "".join(letter for letter in taken_apart if not unicodedata.combining(letter))
    return plain.encode("ascii", "replace").decode()


def encode_names(names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Names to codes int64 [N, T] (0 behind a name's end) and lengths int64 [N], in the order given.

    Raises ValueError naming the first name that is empty, or where there are none.
    """
    if not names:
        raise ValueError("names: expected at least 1 name, got none")
    rows = [ascii_name(name).encode() for name in names]
    for number, (name, row) in enumerate(zip(names, rows, strict=True), start=1):
        if not row:
            raise ValueError(f"name {number}: expected at least 1 letter, got {name!r}")
    lengths = torch.tensor([len(row) for row in rows])
    codes = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for codes_of, row in zip(codes, rows, strict=True):
        codes_of[: len(row)] = torch.tensor(list(row))
    return codes, lengths


def collate(codes: Tensor, lengths: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A batch as NameGRU takes it: the longest name first, no column behind its end."""
    lengths, order = lengths.sort(descending=True, stable=True)
    return codes[order, : int(lengths[0])], lengths, target[order]


def load_names(source: str | os.PathLike[str] | None = None) -> Splits:
    """The course's files from the folder ``source``, or the list that comes with torchsmith (None or ``family-names``).

    The files, ``names_train.csv`` and ``names_test.csv`` (or ``.gz``), have rows "name","country" and no header.

    Parts: codes int64 [N, T], lengths int64 [N], index of the country int64 [N]; ``facts["classes"]`` names the
    countries. Raises FileNotFoundError or ValueError naming file, line, expectation and finding.
    """
    if source is None or source == "family-names":
        rows = _read(EMBEDDED)
        seen: dict[str, int] = {}
        parts: tuple[list, list] = ([], [])
        for row in rows:
            seen[row[2]] = seen.get(row[2], 0) + 1
            parts[seen[row[2]] % TEST_EVERY == 0].append(row)
        train, test = parts
        name, where = "family-names", "torchsmith"
    else:
        paths = find(Path(source), "names", ("names_train.csv", "names_test.csv"))
        train, test = map(_read, paths)
        name, where = "names", str(paths[0].parent)
    classes = sorted({country for _, _, country in train})
    index = {country: number for number, country in enumerate(classes)}
    for place, _, country in test:
        if country not in index:
            raise ValueError(
                f"{place}: country: expected one of the training names ({', '.join(classes)}), got {country}"
            )

    def tensors(rows: list[tuple[str, str, str]]) -> tuple[Tensor, ...]:
        return (*encode_names([name for _, name, _ in rows]), torch.tensor([index[row[2]] for row in rows]))

    return Splits(name, where, tensors(train), tensors(test), collate, {"classes": classes})


def _read(path: Path) -> list[tuple[str, str, str]]:
    rows = []
    for place, (name, country) in read_rows(path, 2, "a CSV file"):
        if not ascii_name(name):
            raise ValueError(f"{place}: name: expected at least 1 letter, got {name!r}")
        if not country.strip():
            raise ValueError(f"{place}: country: expected at least 1 letter, got {country!r}")
        rows.append((place, name, country.strip()))
    if not rows:
        raise ValueError(f"{path}: expected at least 1 row, got none")
    return rows
