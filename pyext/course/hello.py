"""What the rows that learn "hello" -> "ohlol" have in common."""

import torch
from torch.nn import functional as F

from torchsmith.data import Splits, encode_text

from .row import Metric

__all__ = ["HELLO", "defaults", "loss"]

VOCABULARY = "ehlo"


def load(source: str) -> Splits:
    """One sequence: "hello" and, as the target, "ohlol"."""
    words = (encode_text(word, VOCABULARY).unsqueeze(0) for word in ("hello", "ohlol"))
    return Splits("hello", "torchsmith", tuple(words), facts={"vocabulary": VOCABULARY})


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits [N, T, C], mean over all characters."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def score(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(-1) == target).double().mean(1)


@torch.no_grad()
def results(model: torch.nn.Module, splits: Splits) -> dict[str, str]:
    device = next(model.parameters()).device
    chosen = model(splits.train[0].to(device)).argmax(-1)[0].tolist()
    return {"predicted": "".join(VOCABULARY[index] for index in chosen)}


HELLO = {
    "data": 'the word "hello"',
    "embedded": "hello",
    "load": load,
    "loss": loss,
    "metrics": {"characters": Metric(score)},
    "results": results,
}


def defaults(lr: float, seed: int = 0) -> dict:
    """Adam for 15 epochs, as the course has it."""
    return {"epochs": 15, "batch_size": None, "lr": lr, "momentum": 0.0, "optimizer": "Adam", "seed": seed}
