"""The trainer of every row: arms side by side from the same weights on the same batches."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from torchsmith.bench.harness import threads
from torchsmith.data import Batches, Splits
from torchsmith.dispatch import backend

from .arm import Arm, build_arms
from .checkpoint import CHECKPOINT, Place, read_checkpoint, restore, write_checkpoint
from .display import Display, show_result
from .interrupt import StopRequest
from .outcome import Outcome
from .record import make_record, write_atomically, write_curves, write_json
from .row import TrainingRow
from .settings import Settings
from .world import World

__all__ = ["Arm", "Outcome", "build_arms", "train"]

LOSS_EVERY = 300  # batches between two loss lines, as in the course
EVALUATION_BATCH = 1000
# An evaluated sample costs about a third of a trained one (forward alone); used for the time left only.
EVALUATION_COST = 1 / 3
# Least seconds between two saves: a row of thousands of tiny epochs would do nothing but save.
SAVE_EVERY = 5.0


@dataclass
class Training:
    """What the functions of one training share."""

    row: TrainingRow
    settings: Settings
    splits: Splits
    arms: Sequence[Arm]
    world: World
    stop: StopRequest
    place: Place

    def stopping(self) -> bool:
        """Whether any process was asked to stop: all must leave the same step out."""
        return any(self.world.sum([float(bool(self.stop))]))

    def on_device(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return batch if self.world.device.type == "cpu" else tuple(part.to(self.world.device) for part in batch)


def train(
    row: TrainingRow,
    settings: Settings,
    *,
    splits: Splits | None = None,
    folder: str | Path | None = None,
    console: Console | None = None,
    resume: str | Path | None = None,
) -> Outcome:
    """Train ``row``; leaves record.json, curves.csv, steps.csv, curves.png and checkpoint.pt in ``folder``.

    Args:
        row, settings: what to train, and how.
        splits: data loaded already; else the row loads ``settings.data``.
        folder: where to write; default ``runs/<name>-<time>``, or where ``resume`` lies.
        resume: a checkpoint, or the folder of a run: go on from there, bit for bit as if it had never stopped.

    SIGINT and SIGTERM end the training after the step under way; the record then says ``interrupted``. Under
    ``torchrun`` the processes train together; the first of them shows and writes. Raises ImportError where matplotlib,
    or what the data needs, is missing, and FileNotFoundError or ValueError for data or checkpoint: all before training.
    """
    from torchsmith.plots import training_curves  # here, so that a missing matplotlib is told before the training

    started = datetime.now()
    with (
        World.join(settings.device) as world,
        StopRequest() as stop,
        threads(settings.threads) if settings.threads else nullcontext(),
        backend("cpp"),  # "ours" is what our kernels compute: native, where it is faster, is the other arm
    ):
        splits = splits or row.load(settings.data)
        arms = build_arms(row, settings, splits.facts, world)
        place = restore(read_checkpoint(resume), splits, arms, resume) if resume else Place()
        run = Training(row, settings, splits, arms, world, stop, place)
        folder = Path(folder or _folder_of(resume) or Path("runs") / f"{row.name}-{started:%Y%m%d-%H%M%S}")
        if world.leads:
            folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter() - place.seconds

        def save(status: str) -> dict[str, Any]:
            place.seconds = time.perf_counter() - begin
            moment = started.isoformat(timespec="seconds")
            record = make_record(row, settings, splits, arms, status=status, started=moment, seconds=place.seconds)
            if row.passage and status != "running":
                record["passage"] = row.passage(arms[0].model, settings, splits.facts)
            if world.leads:
                write_checkpoint(folder / CHECKPOINT, row, settings, splits, arms, place)
                write_json(folder / "record.json", record)
            return record

        console = (console or Console()) if world.leads else Console(quiet=True)
        saved = time.perf_counter()
        with Display(console, row, settings, splits, arms, total_work(run), done_work(run)) as display:
            for epoch in _epochs(run, display):
                display.epoch(epoch, arms)
                if time.perf_counter() - saved > SAVE_EVERY:
                    save("running")
                    saved = time.perf_counter()
        record = save("finished" if place.epoch > settings.epochs else "interrupted")
        if world.leads:
            write_curves(folder, record)
            models = {arm.name: arm.model for arm in arms}
            panel = (lambda axes: row.panel(axes, models)) if row.panel else None
            write_atomically(folder / "curves.png", training_curves(record, panel))
        show_result(console, record, folder)
    return Outcome(record, folder, arms[0].model, stop.signal)


def _folder_of(checkpoint: str | Path | None) -> Path | None:
    if checkpoint is None:
        return None
    return Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent


def _batches(run: Training, tensors: tuple[Tensor, ...]) -> Batches:
    return Batches(
        tensors,
        run.settings.batch_size,
        shuffle=True,
        seed=run.settings.seed,
        collate=run.splits.collate,
        workers=run.settings.workers,
        rank=run.world.rank,
        ranks=run.world.size,
    )


def _epochs(run: Training, display: Display) -> Iterator[int]:
    """Train; yields each epoch's number when its evaluation is in the arms. Ends early when asked to."""
    batches, arms, place, ranks = _batches(run, run.splits.train), run.arms, run.place, run.world.size
    for epoch in range(place.epoch, run.settings.epochs + 1):
        batches.set_epoch(epoch, skip=place.batches)
        for number, batch in enumerate(batches, start=place.batches):
            mine, total = batches.sizes(number)
            _step(run, batch, weight=1.0 if ranks == 1 else mine * ranks / total, ours_first=number % 2 == 0)
            place.batches = number + 1
            display.advance(total)
            if run.stopping():
                return
            if place.batches % LOSS_EVERY == 0:
                means = [float(np.mean(arm.losses[-LOSS_EVERY:])) for arm in arms]
                display.losses(epoch, number * batches.step + total, batches.samples, means)
        scores = [{part: evaluate(run, arm, part, display) for part in run.splits.parts()} for arm in arms]
        if run.stopping():
            return
        for arm, score in zip(arms, scores, strict=True):
            results = dict(run.row.results(arm.model, run.splits)) if run.row.results else {}
            loss = float(np.mean(arm.losses[-len(batches) :]))
            arm.epochs.append({"epoch": epoch, "loss": loss, **score, "results": results})
        place.epoch, place.batches = epoch + 1, 0
        yield epoch


def _step(run: Training, batch: tuple[Tensor, ...], weight: float, ours_first: bool) -> None:
    batch = run.on_device(batch)
    # Who goes first alternates: the second finds the batch in the cache.
    for arm in run.arms if ours_first else reversed(run.arms):
        arm.step(batch, run.row.loss, weight)
    if run.world.size > 1:
        losses = run.world.sum([arm.losses[-1] for arm in run.arms])
        for arm, loss in zip(run.arms, losses, strict=True):
            arm.losses[-1] = loss / run.world.size


@torch.no_grad()
def evaluate(run: Training, arm: Arm, part: str, display: Display) -> dict[str, float]:
    """The row's metrics over a whole split, ``train`` or ``test``; of no use when a stop was asked for meanwhile."""
    metrics, world = run.row.metrics, run.world
    if not metrics:
        return {}
    whole = getattr(run.splits, part)
    share = tuple(tensor[world.rank :: world.size] for tensor in whole)
    totals = dict.fromkeys(metrics, 0.0)
    arm.model.eval()
    for batch in Batches(share, EVALUATION_BATCH, collate=run.splits.collate):
        if run.stop:
            break
        *inputs, target = run.on_device(batch)
        with torch.autocast(target.device.type, torch.bfloat16) if run.settings.amp else nullcontext():
            output = arm.model(*inputs)
        for name, metric in metrics.items():
            totals[name] += float(metric.score(output, target).double().sum())
        display.advance(world.size * len(target) * EVALUATION_COST / len(run.arms))
    arm.model.train()
    sums = world.sum(list(totals.values()))
    return {
        name: _finish(metric.finish, total / len(whole[-1]))
        for (name, metric), total in zip(metrics.items(), sums, strict=True)
    }


def _finish(finish: Any, mean: float) -> float:
    try:
        return float(finish(mean))
    except OverflowError:  # a diverged loss: its exponential is beyond a float
        return math.inf


def total_work(run: Training) -> float:
    """What a run advances the progress bar by, in trained samples."""
    sizes = run.splits.sizes()
    evaluated = sum(sizes.values()) if run.row.metrics else 0
    return run.settings.epochs * (sizes["train"] + EVALUATION_COST * evaluated)


def done_work(run: Training) -> float:
    """What of it a resumed run has behind it."""
    step = _batches(run, run.splits.train).step
    epochs = total_work(run) * (run.place.epoch - 1) / run.settings.epochs
    return epochs + run.place.batches * step
