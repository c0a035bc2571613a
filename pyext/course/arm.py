"""The models trained beside each other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .row import TrainingRow
from .settings import OPTIMIZERS, Refused, Settings, make_optimizer
from .world import World

__all__ = ["Arm", "build_arms"]


@dataclass
class Arm:
    """One of the models trained beside each other, with all that is measured of it."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)  #: of each step, over the samples of all processes
    seconds: list[float] = field(default_factory=list)  #: of each step
    epochs: list[dict[str, Any]] = field(default_factory=list)  #: {"epoch", "loss", "train", "test", "results"}
    replica: nn.Module | None = None  #: what is called in a step: the model, averaging gradients over processes
    amp: str | None = None

    def step(
        self, batch: tuple[Tensor, ...], loss_function: Callable[[Tensor, Tensor], Tensor], weight: float = 1.0
    ) -> None:
        """One optimizer step; its time is all of zero_grad, forward, loss, backward and the update.

        ``weight`` multiplies the loss: where processes have shares of different sizes, the mean of their gradients
        must still be the gradient of the mean over all samples.
        """
        *inputs, target = batch
        device = target.device.type

        def closure() -> Tensor:  # LBFGS asks for the loss several times a step
            self.optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16) if self.amp else nullcontext():
                output = (self.replica or self.model)(*inputs)
            loss = loss_function(output.float() if self.amp else output, target)
            if weight != 1:
                loss = loss * weight
            loss.backward()
            return loss

        start = time.perf_counter()
        loss = self.optimizer.step(closure)
        if device == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())


def build_arms(
    row: TrainingRow, settings: Settings, facts: Mapping[str, Any] | None = None, world: World | None = None
) -> list[Arm]:
    """The arms of a training, with equal weights; seeds every generator first.

    Ours and, with ``settings.compare``, native; or, with ``settings.compare_optimizers``, ours once an optimizer.
    """
    from torchsmith import native_nn
    from torchsmith import nn as ours

    world = world or World(torch.device(settings.device))
    random.seed(settings.seed)
    np.random.seed(settings.seed % 2**32)  # numpy takes 32 bits
    torch.manual_seed(settings.seed)
    plan = {"ours": (ours, settings.optimizer)}
    if settings.compare_optimizers:
        plan = {name: (ours, name) for name in OPTIMIZERS}
    elif settings.compare:
        plan["native"] = (native_nn, settings.optimizer)
    arms: list[Arm] = []
    for name, (layers, optimizer) in plan.items():
        if optimizer == "LBFGS" and world.size > 1:
            raise Refused(
                f"optimizer: expected one that asks for the gradient once a step for {world.size} processes, got LBFGS"
            )
        model = row.model(layers, settings, facts or {})
        if arms:
            model.load_state_dict(arms[0].model.state_dict())
        model.to(world.device)
        arms.append(Arm(name, model, make_optimizer(optimizer, model.parameters(), settings), amp=settings.amp))
    if world.size > 1:
        arms = [replace(arm, replica=world.wrap(arm.model)) for arm in arms]
    return arms
