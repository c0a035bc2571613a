"""A character-level language model of any text, and what it writes."""

import math

import click
import torch

from torchsmith.course.hello import loss
from torchsmith.course.row import Metric, TrainingRow
from torchsmith.course.settings import Option
from torchsmith.data import encode_text, load_text
from torchsmith.models import CharGRU

PASSAGE = 400  # characters


def surprise(output, target):
    """Mean of -ln p of a sequence's characters, [N]; its exponential is the perplexity."""
    logarithms = output.float().log_softmax(-1).gather(-1, target.unsqueeze(-1))
    return -logarithms.squeeze(-1).mean(1)


def passage(model, settings, facts):
    """What the model writes, by itself from the start of a line."""
    vocabulary, device = facts["vocabulary"], next(model.parameters()).device
    start = "\n" if "\n" in vocabulary else vocabulary[0]
    generator = torch.Generator().manual_seed(settings.seed)
    indices = encode_text(start, vocabulary).to(device)
    found = model.sample(indices, PASSAGE, settings["temperature"], generator)
    return "".join(vocabulary[index] for index in found.tolist())


ROW = TrainingRow(
    name="poem",
    lesson=18,
    summary="character-level language model: embedding, GRU(128), linear",
    data="any text file (--text) or eight sonnets of Shakespeare's",
    goal="falling perplexity and a generated passage",
    reached="test perplexity from 14.0 to 7.9 in 6 epochs (sonnets)",
    embedded="sonnets",
    source="--text",
    source_help="A UTF-8 text file, or the sonnets that come with torchsmith.",
    load=load_text,
    model=lambda layers, settings, facts: CharGRU(len(facts["vocabulary"]), layers=layers),
    loss=loss,
    metrics={"perplexity": Metric(surprise, finish=math.exp, percent=False)},
    passage=passage,
    defaults={"epochs": 10, "batch_size": 32, "lr": 0.005, "momentum": 0.0, "optimizer": "Adam", "seed": 0},
    options=[
        Option(
            "temperature",
            click.FloatRange(0),
            0.7,
            "Of the passage: 0 takes the likeliest character, 1 draws as the model has learnt.",
            "X",
        )
    ],
    quick={"epochs": 6},
)
