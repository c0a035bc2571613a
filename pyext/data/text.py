"""A text as sequences of characters, each with the characters that follow."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from .files import read_text
from .splits import Splits

__all__ = ["encode_text", "load_text"]

EMBEDDED = Path(__file__).with_name("sonnets.txt")
LENGTH = 64  # characters in a sequence: about a line and a half of verse
STRIDE = 16  # between the starts of two training sequences: each character is met at four places
TEST_SHARE = 0.1  # of the text, at its end


def encode_text(text: str, vocabulary: str) -> Tensor:
    """Places of ``text``'s characters in ``vocabulary``, int64 [T]; ValueError for one that is not there."""
    index = {character: number for number, character in enumerate(vocabulary)}
    missing = sorted(set(text) - set(vocabulary))
    if missing:
        raise ValueError(f"text: expected characters of {vocabulary!r}, got {''.join(missing)!r}")
    return torch.tensor([index[character] for character in text], dtype=torch.int64)


def load_text(source: str | os.PathLike[str] | None = None) -> Splits:
    """The UTF-8 file ``source``, or eight of Shakespeare's sonnets (None or ``sonnets``).

    Parts: characters int64 [N, 64] and the ones that follow them int64 [N, 64], as places in ``facts["vocabulary"]``;
    the last tenth of the text is for testing. Raises FileNotFoundError for a missing file, ValueError for one that is
    no UTF-8 or too short.
    """
    path = EMBEDDED if source is None or source == "sonnets" else Path(source)
    text = read_text(path, "a text file")
    least = round((LENGTH + 1) / TEST_SHARE)
    if len(text) < least:
        raise ValueError(f"{path}: expected at least {least} characters, got {len(text)}")
    vocabulary = "".join(sorted(set(text)))
    codes = encode_text(text, vocabulary)
    cut = len(codes) - max(LENGTH + 1, round(len(codes) * TEST_SHARE))
    name = "sonnets" if path == EMBEDDED else path.name
    where = "torchsmith" if path == EMBEDDED else str(path)
    train, test = _windows(codes[:cut], STRIDE), _windows(codes[cut:], LENGTH)
    return Splits(name, where, train, test, facts={"vocabulary": vocabulary})


def _windows(codes: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    windows = codes.unfold(0, LENGTH + 1, stride)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
