"""Cross entropy worked out: by hand, by CrossEntropyLoss, and on two batches, good and bad."""

import torch
from torch.nn import functional as F

from torchsmith.course.row import ExampleRow, Worked

LOGITS, LABEL = torch.tensor([0.2, 0.1, -0.1]), 0
TARGETS = torch.tensor([2, 0, 1])
GOOD = torch.tensor([[0.1, 0.2, 0.9], [1.1, 0.1, 0.2], [0.2, 2.1, 0.1]])
BAD = torch.tensor([[0.8, 0.2, 0.3], [0.2, 0.3, 0.5], [0.2, 0.2, 0.5]])
IDENTITY = torch.eye(3)


def work(functions, settings):
    # The logits come out of a linear layer, as a model's do; of the identity, so that they stay what they are.
    one, good, bad = (functions.linear(logits, IDENTITY) for logits in (LOGITS.unsqueeze(0), GOOD, BAD))
    probabilities = one[0].exp() / one[0].exp().sum()
    return Worked(
        {
            "softmax by hand": probabilities.tolist(),
            "CE by hand": float(-probabilities[LABEL].log()),
            "CrossEntropyLoss": float(F.cross_entropy(one, torch.tensor([LABEL]))),
            "batch 1": float(F.cross_entropy(good, TARGETS)),
            "batch 2": float(F.cross_entropy(bad, TARGETS)),
        }
    )


ROW = ExampleRow(
    name="softmax-examples",
    lesson=8,
    summary="cross entropy by hand and by CrossEntropyLoss; two batches of three",
    data="the course's numbers",
    goal="0.9729; 0.4966 and 1.2389",
    reached="0.9730; 0.4966 and 1.2389",
    embedded="the course's numbers",
    work=work,
    course={"CE by hand": 0.9729, "CrossEntropyLoss": 0.9729, "batch 1": 0.4966, "batch 2": 1.2389},
)
