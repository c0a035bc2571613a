"""Bugs to plant in recurrent cells' and sequences' CPU kernels."""

from . import VALUES, Bug

BUGS = (
    Bug("sign of a gradient", "csrc/cpu/gru.cpp", "dn = g * (W(1) - z)", "dn = -g * (W(1) - z)", VALUES + "gru"),
    Bug(
        "only the first row of a batch",
        "csrc/cpu/sequence.h",
        "const int64_t rows = min_of(end, d.sizes[t]) - begin, row = d.offsets[t] + begin;\n      if (rows <= 0) continue;\n      multiply(rows, h",
        "const int64_t rows = min_of(begin + 1, d.sizes[t]) - begin, row = d.offsets[t] + begin;\n      if (rows <= 0) continue;\n      multiply(rows, h",
        VALUES + "rnn",
    ),
    Bug(
        "gates r and z swapped",
        "csrc/cpu/gru.cpp",
        "r = sigmoid_vector(load_wide(x + i, n) + load_wide(q + i, n))",
        "r = sigmoid_vector(load_wide(x + H + i, n) + load_wide(q + H + i, n))",
        VALUES + "gru",
    ),
    Bug(
        "reverse direction runs forward",
        "csrc/cpu/sequence.h",
        "reverse ? d.T - 1 - step : step",
        "step",
        VALUES + "gru",
    ),
    Bug(
        "ended sequences not restarted from hx",
        "csrc/cpu/sequence.h",
        "if (b < known)",
        "if (b < d.sizes[t] && before >= 0 && before < d.T)",
        VALUES + "gru",
    ),
    Bug(
        "the second direction's gradient of a few rows over the first one's",
        "csrc/cpu/project.h",
        "few_rows_dx<T>({rows, I, N}, g, w, gx, accumulate)",
        "few_rows_dx<T>({rows, I, N}, g, w, gx, false)",
        VALUES + "gru",
    ),
    Bug(
        "every step reads the rows of the first one's indices",
        "csrc/cpu/sequence.h",
        "InputPart{first, index + row, width}",
        "InputPart{first, index, width}",
        VALUES + "gru",
    ),
    Bug(
        "the gradient of a step's row at its number, not its index",
        "csrc/cpu/sequence.h",
        "add_as(sums + d.index[r] * width",
        "add_as(sums + r % d.table * width",
        VALUES + "rnn",
    ),
    Bug(
        "a gradient copied to where the first direction writes",
        "csrc/cpu/sequence_glue.h",
        "const Maybe<Tensor> gy = d.L > 1 || d.D == 1 ?",
        "const Maybe<Tensor> gy = true ?",
        "L1-D2",
    ),
)
