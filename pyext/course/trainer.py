"""The trainer of every row: ours alone, or ours and native interleaved from the same weights on the same batches."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from torchsmith.bench.harness import threads
from torchsmith.data import Batches, Splits

from .display import Display, show_result
from .interrupt import StopRequest
from .record import make_record, write_atomically, write_json
from .row import Row, Settings

__all__ = ["Arm", "Outcome", "train"]

LOSS_EVERY = 300  # batches between two loss lines, as in the course
EVALUATION_BATCH = 1000
# An evaluated sample costs about a third of a trained one (forward alone); used for the time left only.
EVALUATION_COST = 1 / 3


@dataclass
class Arm:
    """One of the models trained beside each other, with all that is measured of it."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)  #: of each step
    seconds: list[float] = field(default_factory=list)  #: of each step
    epochs: list[dict[str, Any]] = field(default_factory=list)  #: {"epoch", "loss", "train", "test"}

    def step(self, batch: tuple[Tensor, ...], loss_function: Callable[[Tensor, Tensor], Tensor]) -> None:
        """One optimizer step; its time is all of zero_grad, forward, loss, backward and the update."""
        *inputs, target = batch
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = loss_function(self.model(*inputs), target)
        loss.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())


@dataclass(frozen=True)
class Outcome:
    """What a training left."""

    record: dict[str, Any]  #: as in record.json
    folder: Path
    model: nn.Module  #: ours, trained
    signal: int | None  #: the signal that ended it early


def train(
    row: Row,
    settings: Settings,
    *,
    splits: Splits | None = None,
    folder: str | Path | None = None,
    console: Console | None = None,
) -> Outcome:
    """Train ``row`` and leave record.json and curves.png in ``folder`` (default ``runs/<name>-<time>``).

    ``splits`` are data loaded already, else the row loads ``settings.data``. SIGINT and SIGTERM end the training after
    the step under way; the record then says ``interrupted``. Raises ImportError where matplotlib, or what the data
    needs, is missing, and FileNotFoundError or ValueError for the data: all before training.
    """
    from torchsmith.plots import training_curves  # here, so that a missing matplotlib is told before the training

    started = datetime.now()
    begin = time.perf_counter()
    with StopRequest() as stop, threads(settings.threads) if settings.threads else nullcontext():
        splits = splits or row.load(settings.data)
        arms = build_arms(row, settings)
        folder = Path(folder or Path("runs") / f"{row.name}-{started:%Y%m%d-%H%M%S}")
        folder.mkdir(parents=True, exist_ok=True)

        def save(status: str) -> dict[str, Any]:
            seconds = time.perf_counter() - begin
            moment = started.isoformat(timespec="seconds")
            record = make_record(row, settings, splits, arms, status=status, started=moment, seconds=seconds)
            write_json(folder / "record.json", record)
            return record

        console = console or Console()
        with Display(console, row, settings, splits, arms, total_work(settings, splits)) as display:
            for epoch in _epochs(row, settings, splits, arms, display, stop):
                display.epoch(epoch, arms)
                save("running")
        record = save("interrupted" if stop else "finished")
        write_atomically(folder / "curves.png", training_curves(record))
        show_result(console, record, folder)
    return Outcome(record, folder, arms[0].model, stop.signal)


def build_arms(row: Row, settings: Settings) -> list[Arm]:
    """Ours and, with ``settings.compare``, native with the same weights; seeds every generator first."""
    from torchsmith import native_nn
    from torchsmith import nn as ours

    random.seed(settings.seed)
    np.random.seed(settings.seed % 2**32)  # numpy takes 32 bits
    torch.manual_seed(settings.seed)
    models = {"ours": row.model(ours)}
    if settings.compare:
        models["native"] = row.model(native_nn)
        models["native"].load_state_dict(models["ours"].state_dict())
    return [Arm(name, model, row.optimizer(model.parameters(), settings)) for name, model in models.items()]


def _epochs(
    row: Row, settings: Settings, splits: Splits, arms: Sequence[Arm], display: Display, stop: StopRequest
) -> Iterator[int]:
    """Train; yields each epoch's number when its evaluation is in the arms. Ends early when asked to."""
    batches = Batches(splits.train, settings.batch_size, shuffle=True, seed=settings.seed, transform=splits.transform)
    for epoch in range(1, settings.epochs + 1):
        batches.set_epoch(epoch)
        seen = 0
        for number, batch in enumerate(batches, start=1):
            # Who goes first alternates: the second finds the batch in the cache.
            for arm in arms if number % 2 else reversed(arms):
                arm.step(batch, row.loss)
            seen += len(batch[-1])
            display.advance(len(batch[-1]))
            if stop:
                return
            if number % LOSS_EVERY == 0:
                means = [float(np.mean(arm.losses[-LOSS_EVERY:])) for arm in arms]
                display.losses(epoch, seen, batches.samples, means)
        scores = [[evaluate(row, arm.model, splits, part, display, stop) for part in ("train", "test")] for arm in arms]
        if stop:
            return
        for arm, (on_train, on_test) in zip(arms, scores, strict=True):
            loss = float(np.mean(arm.losses[-len(batches) :]))
            arm.epochs.append({"epoch": epoch, "loss": loss, "train": on_train, "test": on_test})
        yield epoch


@torch.no_grad()
def evaluate(
    row: Row, model: nn.Module, splits: Splits, part: str, display: Display, stop: StopRequest
) -> dict[str, float]:
    """The row's metrics over a whole split, ``train`` or ``test``; of no use when ``stop`` was set meanwhile."""
    batches = Batches(getattr(splits, part), EVALUATION_BATCH, transform=splits.transform)
    totals = dict.fromkeys(row.metrics, 0.0)
    model.eval()
    for *inputs, target in batches:
        if stop:
            break
        output = model(*inputs)
        for name, metric in row.metrics.items():
            totals[name] += float(metric(output, target).double().sum())
        display.advance(len(target) * EVALUATION_COST / len(display.arm_names))
    model.train()
    return {name: total / batches.samples for name, total in totals.items()}


def total_work(settings: Settings, splits: Splits) -> float:
    """What a run advances the progress bar by, in trained samples."""
    n_train, n_test = len(splits.train[-1]), len(splits.test[-1])
    return settings.epochs * (n_train + EVALUATION_COST * (n_train + n_test))
