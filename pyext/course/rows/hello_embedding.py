"""An embedding, two recurrent layers and a linear one learn "hello" -> "ohlol"."""

import click

from torchsmith.course.hello import HELLO, defaults
from torchsmith.course.row import TrainingRow
from torchsmith.course.settings import Option
from torchsmith.models import HelloEmbedding

ROW = TrainingRow(
    name="hello-embedding",
    lesson=16,
    summary="Embedding(4, 10), 2-layer RNN(8), linear 8->4",
    goal='"ohlol", loss after 15 epochs <= 0.05',
    reached='"ohlol", loss 0.009',
    model=lambda layers, settings, facts: HelloEmbedding(cell=settings["cell"], layers=layers),
    defaults=defaults(lr=0.05),
    options=[Option("cell", click.Choice(["rnn", "gru"]), "rnn", "Kind of the recurrent layers: rnn or gru.", "NAME")],
    course={"final loss": "<= 0.05", "predicted": "ohlol"},
    variants={"gru": {"cell": "gru"}},
    **HELLO,
)
