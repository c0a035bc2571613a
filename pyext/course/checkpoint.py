"""A training at one moment, in a file: enough to go on as if it had never stopped, or to ask the model something."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchsmith.data import Splits

from .arm import Arm
from .record import write_atomically
from .row import TrainingRow
from .settings import Refused, Settings

__all__ = ["CHECKPOINT", "Place", "check_row", "read_checkpoint", "resume_settings", "restore", "write_checkpoint"]

CHECKPOINT = "checkpoint.pt"
FORMAT = 1
FREE = ("epochs", "threads", "workers")  # may differ where a training goes on; the rest decides its numbers


@dataclass
class Place:
    """How far a training is."""

    epoch: int = 1  #: the one under way
    batches: int = 0  #: of it that are trained
    seconds: float = 0.0  #: all parts of the training together


def write_checkpoint(
    path: Path, row: TrainingRow, settings: Settings, splits: Splits, arms: Sequence[Arm], place: Place
) -> None:
    """Write all that :func:`restore` needs, atomically."""
    state = {
        "format": FORMAT,
        "row": row.name,
        "settings": {**asdict(settings), "choices": dict(settings.choices)},
        "data": {"name": splits.name, **splits.sizes()},
        "facts": dict(splits.facts),
        "place": asdict(place),
        "random": _generators(),
        "arms": {
            arm.name: {
                "model": arm.model.state_dict(),
                "optimizer": arm.optimizer.state_dict(),
                "losses": torch.tensor(arm.losses, dtype=torch.float64),
                "seconds": torch.tensor(arm.seconds, dtype=torch.float64),
                "epochs": arm.epochs,
            }
            for arm in arms
        },
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint, from its file or from the folder of a run; no code in it is ever executed.

    Raises FileNotFoundError, or ValueError for a file that is no checkpoint of torchsmith's.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found nothing")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: expected a checkpoint, got a file that torch cannot read as one") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a torchsmith checkpoint of format {FORMAT}, got something else")
    return state


def check_row(state: dict[str, Any], row: TrainingRow, path: str | Path) -> None:
    """Raise ValueError where the checkpoint is of another row."""
    if state["row"] != row.name:
        raise ValueError(f"{path}: expected a checkpoint of {row.name}, got one of {state['row']}")


def resume_settings(row: TrainingRow, state: dict[str, Any], given: dict[str, Any], path: str | Path) -> Settings:
    """The settings of the checkpoint, with what may change taken from ``given``.

    Raises ValueError where ``given`` asks for something that would make it another training.
    """
    check_row(state, row, path)
    kept = {**state["settings"], **state["settings"]["choices"]}
    for name, value in given.items():
        if value is None or name in FREE:
            continue
        if value != kept[name]:
            raise ValueError(
                f"{name}: expected {kept[name]}, as in {path} (only {', '.join(FREE)} may change), got {value}"
            )
    changes = {name: given[name] for name in FREE if given.get(name) is not None}
    return Settings(**{**state["settings"], **changes})


def restore(state: dict[str, Any], splits: Splits, arms: Sequence[Arm], path: str | Path) -> Place:
    """Put the arms and the generators into the checkpoint's state; returns how far it was.

    Raises Refused (a ValueError) where the data, the arms or a model's weights are not those of the checkpoint.
    """
    found = {"name": splits.name, **splits.sizes()}
    if state["data"] != found:
        raise Refused(f"{path}: data: expected {state['data']}, as it was trained on, got {found}")
    if list(state["arms"]) != [arm.name for arm in arms]:
        raise Refused(f"{path}: arms: expected {list(state['arms'])}, got {[arm.name for arm in arms]}")
    for arm in arms:
        kept = state["arms"][arm.name]
        try:
            arm.model.load_state_dict(kept["model"])
            arm.optimizer.load_state_dict(kept["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise Refused(f"{path}: expected weights of {type(arm.model).__name__}, got others: {error}") from error
        arm.losses, arm.seconds = kept["losses"].tolist(), kept["seconds"].tolist()
        arm.epochs = kept["epochs"]
    _set_generators(state["random"])
    return Place(**state["place"])


def _generators() -> dict[str, Any]:
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _set_generators(kept: dict[str, Any]) -> None:
    random.setstate(kept["python"])
    name, keys, *rest = kept["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(kept["torch"])
    if kept["cuda"]:
        torch.cuda.set_rng_state_all(kept["cuda"])
