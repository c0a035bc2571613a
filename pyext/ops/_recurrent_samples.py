"""Samples, error cases and benchmark shapes of the recurrent rows, for any number of gates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from ..spec import BenchCase, ErrorCase, Sample
from ._recurrent import Recurrent


def weights_for(
    make, gates: int, features: int, hidden: int, layers: int = 1, directions: int = 1, bias: bool = True
) -> list:
    """Weights in torch.nn.RNNBase's order, scaled as its initialisation does."""
    out = []
    for layer in range(layers):
        for _ in range(directions):
            width = features if layer == 0 else directions * hidden
            shapes = [(gates * hidden, width), (gates * hidden, hidden)] + [(gates * hidden,)] * (2 if bias else 0)
            out += [make(*shape) / max(1, hidden) ** 0.5 for shape in shapes]
    return out


def maker(dtype: torch.dtype, device: torch.device, seed: int | None = None):
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    return lambda *shape: torch.randn(shape, dtype=dtype, device=device, generator=generator)


def cell_samples(row: Recurrent, dtype, device, seed: int | None = None, **keywords) -> Iterator[Sample]:
    make, g = maker(dtype, device, seed), row.gates

    def call(batch, features, hidden, bias=True):
        return (make(batch, features), make(batch, hidden), *weights_for(make, g, features, hidden, bias=bias))

    for batch, features, hidden in [(1, 4, 4), (3, 5, 7), (2, 3, 16), (15, 33, 17), (5, 10, 33), (1, 3, 700)]:
        yield Sample(f"b{batch} {features}->{hidden}", call(batch, features, hidden), keywords)
    yield Sample("no bias", call(3, 5, 7, bias=False), keywords)
    yield Sample("no rows", call(0, 5, 7), keywords)
    x, h, w_ih, w_hh, b_ih, b_hh = call(4, 6, 5)
    yield Sample(
        "transposed",
        (make(6, 4).t(), make(5, 4).t(), make(6, g * 5).t(), make(5, g * 5).t(), make(g * 10)[::2], b_hh),
        keywords,
    )
    yield Sample(
        "offset views", (make(9, 9)[2:6, 2:8], make(9, 9)[1:5, 3:8], w_ih, w_hh, make(g * 5 + 3)[2:-1], b_hh), keywords
    )
    yield Sample(
        "stride 0",
        (make(1, 6).expand(4, 6), make(1, 5).expand(4, 5), w_ih, w_hh, b_ih, make(1).expand(g * 5)),
        keywords,
    )
    special = make(4, 6)
    special[0, 0], special[1, 1], special[2, 2] = float("nan"), float("inf"), -float("inf")
    yield Sample("nan and inf", (special, h, w_ih, w_hh, b_ih, b_hh), keywords, differentiable=False)


def packed(data: torch.Tensor, lengths: list[int], sort: bool = True) -> PackedSequence:
    """(T, B, I) and lengths as a PackedSequence."""
    return pack_padded_sequence(data, torch.tensor(lengths), enforce_sorted=sort)


def sequence_samples(row: Recurrent, dtype, device, seed: int | None = None, **keywords) -> Iterator[Sample]:
    make, g = maker(dtype, device, seed), row.gates

    def sample(name, x, features, hidden, layers=1, directions=1, hx=True, bias=True, **more):
        batch = int(x.batch_sizes[0]) if isinstance(x, PackedSequence) else x.shape[0 if more.get("batch_first") else 1]
        h = make(layers * directions, batch, hidden) if hx else None
        more = {**keywords, **more, **({"bidirectional": True} if directions == 2 else {})}
        return Sample(name, (x, h, weights_for(make, g, features, hidden, layers, directions, bias)), more)

    yield sample("one layer", make(5, 3, 4), 4, 6)
    yield sample("one step", make(1, 2, 4), 4, 5)
    yield sample("batch 1", make(4, 1, 3), 3, 4)
    yield sample("two layers, both directions", make(4, 3, 5), 5, 7, 2, 2)
    yield sample("few rows, both directions", make(2, 2, 5), 5, 7, 2, 2)
    yield sample("few rows, packed", packed(make(2, 3, 4), [2, 1, 1]), 4, 6, 1, 2)
    yield sample("no initial state", make(4, 3, 5), 5, 6, 2, 1, hx=False)
    yield sample("no bias", make(4, 3, 5), 5, 6, 2, 2, bias=False)
    yield sample("batch first", make(3, 4, 5), 5, 6, 1, 2, batch_first=True)
    yield sample("wide", make(3, 17, 20), 20, 35)
    yield sample("packed", packed(make(6, 4, 3), [6, 5, 2, 2]), 3, 5)
    yield sample("packed, two layers, both directions", packed(make(5, 3, 4), [5, 3, 1]), 4, 6, 2, 2)
    yield sample("packed, unsorted", packed(make(5, 3, 4), [2, 5, 3], sort=False), 4, 6, 1, 2)
    if torch.device(device).type == "cpu":  # cuDNN draws other masks than anyone
        yield sample("dropout", make(4, 3, 5), 5, 6, 3, 1, dropout=0.4, training=True)
        yield sample("dropout, packed", packed(make(5, 3, 4), [5, 3, 1]), 4, 6, 2, 2, dropout=0.3, training=True)
    yield sample("dropout 1", make(4, 3, 5), 5, 6, 2, 1, dropout=1.0, training=True)
    yield sample("dropout, not training", make(4, 3, 5), 5, 6, 2, 1, dropout=0.4)
    yield sample("empty batch", make(4, 0, 5), 5, 6)
    yield sample("offset view", make(7, 5, 9)[1:6, 2:, 3:8], 5, 6)
    yield sample("stride 0", make(1, 1, 5).expand(4, 3, 5), 5, 6)
    w = weights_for(make, g, 4, 5)
    yield Sample("unbatched", (make(6, 4), make(1, 5), w), keywords)

    # Rows of an embedding by their index; each table has one that no step reads.
    def table(rows, width=4):
        return {"embedding": make(rows + 1, width)}

    def indices(rows, *shape):
        return (torch.arange(torch.Size(shape).numel(), device=device) * 5 % rows).view(shape)

    yield sample("embedding", indices(7, 4, 3), 4, 6, **table(7))
    yield sample("embedding, wide", indices(3, 2, 17), 20, 35, **table(3, 20))
    yield sample("embedding, two layers, both directions", indices(5, 3, 2), 4, 6, 2, 2, bias=False, **table(5))
    yield sample("embedding, batch first, int32", indices(5, 3, 4).int(), 4, 6, 1, 2, batch_first=True, **table(5))
    yield sample("embedding larger than input", indices(6, 2, 3), 4, 5, **table(9))
    yield sample("embedding, packed", packed(indices(4, 6, 4), [6, 5, 2, 2]), 4, 5, 2, 2, **table(4))
    yield sample("embedding, packed, unsorted", packed(indices(4, 5, 3), [2, 5, 3], sort=False), 4, 6, **table(4))
    yield sample("embedding, stride 0", indices(2, 1, 1).expand(4, 3), 4, 5, embedding=make(1, 4).expand(3, 4))
    yield Sample("embedding, unbatched", (indices(4, 6), make(1, 5), w), {**keywords, **table(4)})
    special = make(4, 3, 4)
    special[1, 0, 0], special[2, 1, 1] = float("nan"), float("inf")
    yield Sample("nan and inf", (special, make(1, 3, 5), w), keywords, differentiable=False)


def _zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def cell_errors(row: Recurrent) -> tuple[ErrorCase, ...]:
    g = row.gates

    def case(name, pattern, x=(2, 3), h=(2, 5), w_ih=(5 * g, 3), w_hh=(5 * g, 5), b=5 * g, dtype=torch.float32):
        def make():
            return Sample(
                "", (_zeros(*x, dtype=dtype), _zeros(*h), _zeros(*w_ih), _zeros(*w_hh), _zeros(b), _zeros(5 * g))
            )

        return ErrorCase(name, make, RuntimeError, pattern)

    return (
        case("features", "input has inconsistent input_size: got 4 expected 3", x=(2, 4)),
        case("hidden", "hidden0 has inconsistent hidden_size: got 4, expected 5", h=(2, 4)),
        case("batch", "Input batch size 2 doesn't match hidden0 batch size 3", h=(3, 5)),
        case("w_ih", r"weight_ih first dim must be \d \* hidden_size = \d+, but got", w_ih=(5 * g + 1, 3)),
        case("bias", "must match the existing size|first dim", b=5 * g - 1),
        case("dtype", "must have the same dtype", dtype=torch.float64),
    )


def sequence_errors(row: Recurrent) -> tuple[ErrorCase, ...]:
    def case(
        name, pattern, x=(4, 2, 3), h=(1, 2, 5), dtype=torch.float32, drop=0, table=None, error=RuntimeError, at=0
    ):
        def make():
            weights = weights_for(_zeros, row.gates, 3, 5)
            keywords = {} if table is None else {"embedding": _zeros(*table)}
            return Sample("", (_zeros(*x, dtype=dtype) + at, _zeros(*h), weights[: len(weights) - drop]), keywords)

        return ErrorCase(name, make, error, pattern)

    def rows(name, pattern, x=(4, 2), table=(7, 3), dtype=torch.int64, **more):
        return case(name, pattern, x, dtype=dtype, table=table, **more)

    return (
        case("features", r"input.size\(-1\) must be equal to input_size. Expected 3, got 4", x=(4, 2, 4)),
        case("hidden", r"Expected hidden size \(1, 2, 5\), got \[1, 2, 6\]", h=(1, 2, 6)),
        case("layers", r"Expected hidden size \(1, 2, 5\), got \[2, 2, 5\]", h=(2, 2, 5)),
        case("no steps", "Expected sequence length to be larger than 0 in RNN", x=(0, 2, 3)),
        case("dimensions", "input must have 3 dimensions, got 4", x=(1, 4, 2, 3)),
        case("dtype", "must have the same dtype", dtype=torch.float64),
        case("a weight missing", "weights: expected 4 tensors", drop=1),
        rows("embedding: features", r"input.size\(-1\) must be equal to input_size. Expected 3, got 4", table=(7, 4)),
        rows(
            "embedding: dimensions",
            r"embedding: expected 2 dimensions \(rows, features\), got \[7, 3, 1\]",
            table=(7, 3, 1),
        ),
        rows(
            "embedding: input's dtype",
            "input: expected one of the dtypes Long, Int with an embedding, got torch.float32",
            dtype=torch.float32,
        ),
        rows("embedding: input's dimensions", "input must have 3 dimensions, got 4", x=(1, 4, 2)),
        rows("embedding: a row too far", "out of range", at=7, error=IndexError),
        rows("embedding: a row before the first", "out of range", at=-1, error=IndexError),
        rows("a large embedding: a row too far", "out of range", table=(9, 3), at=9, error=IndexError),
    )


def cell_case(row: Recurrent, batch: int, features: int, hidden: int) -> BenchCase:
    def make(dtype, device):
        new = maker(dtype, device, 0)
        return Sample("", (new(batch, features), new(batch, hidden), *weights_for(new, row.gates, features, hidden)))

    return BenchCase(f"{features}->{hidden} b{batch}", make)


def sequence_case(
    row: Recurrent, steps: int, batch: int, features: int, hidden: int, layers=1, directions=1, lengths=False
) -> BenchCase:
    def make(dtype, device):
        new = maker(dtype, device, 0)
        x = new(steps, batch, features)
        if lengths:  # family names: between a third of the longest and the longest
            spread = torch.linspace(steps, steps // 3, batch).round().long()
            x = pack_padded_sequence(x, spread)
        h = new(layers * directions, batch, hidden)
        weights = weights_for(new, row.gates, features, hidden, layers, directions)
        if h.is_cuda:  # as a module lays them out: cuDNN would copy them together at every call
            module = getattr(torch.nn, row.name.upper())(features, hidden, layers, bidirectional=directions == 2)
            flat = [p.detach() for p in module.to(h)._flat_weights]
            weights = [to.copy_(w) for to, w in zip(flat, weights, strict=True)]
        return Sample("", (x, h, weights), {"bidirectional": directions == 2, "training": True})

    kind = f" L{layers}" + (" bidirectional" if directions == 2 else "") + (" packed" if lengths else "")
    return BenchCase(f"{features}->{hidden} T{steps} b{batch}{kind}", make)


def cell_flops(row: Recurrent):
    return lambda sample: 2 * sample.args[0].shape[0] * (sample.args[2].numel() + sample.args[3].numel())


def sequence_flops(row: Recurrent):
    def flops(sample: Sample) -> int:
        x = sample.args[0]
        data = x.data if isinstance(x, PackedSequence) else x
        rows = data.numel() if "embedding" in sample.kwargs else data.shape[:-1].numel()
        return 2 * rows * sum(w.numel() for w in sample.args[2] if w.dim() == 2)

    return flops
