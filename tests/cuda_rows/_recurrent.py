"""Shapes at which the recurrent rows' CUDA kernels take other ways than on the samples of their specs."""

from torchsmith.ops._recurrent_samples import maker, packed, weights_for
from torchsmith.spec import Sample


def samples(gates, dtype, beyond):
    """By op. ``beyond``: hidden units whose weights exceed the shared memory of one multiprocessor."""
    make = maker(dtype, "cpu")

    def cell(name, batch, features, hidden):
        return Sample(name, (make(batch, features), make(batch, hidden), *weights_for(make, gates, features, hidden)))

    def sequence(name, x, features, hidden, directions=1, layers=1):
        batch = int(x.batch_sizes[0]) if hasattr(x, "batch_sizes") else x.shape[1]
        weights = weights_for(make, gates, features, hidden, layers, directions)
        return Sample(name, (x, make(layers * directions, batch, hidden), weights), {"bidirectional": directions == 2})

    lengths = [3, 3, 2, 1, 1]  # a group of four rows and one more, that end at different steps
    return {
        "cell": [
            cell("tile", 16, 32, 32),
            cell("tile + 1", 17, 33, 33),
        ],
        "sequence": [
            sequence("largest of one multiprocessor", make(2, 1, 2), 2, 128),
            sequence("cooperative, packed, both directions", packed(make(3, 5, 3), lengths), 3, 129, 2),
            sequence("weights beyond shared memory", make(2, 1, 2), 2, beyond),
            sequence("steps in shares of the products", make(1040 // dtype.itemsize, 1, 2), 2, 3),
        ],
    }
