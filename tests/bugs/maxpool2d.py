"""Bugs to plant in max pooling's CPU kernels."""

from . import VALUES, Bug

BUGS = (
    Bug("lost NaN", "csrc/cpu/pool_lanes.h", "(v > value) | (v != v);", "(v > value);", VALUES + "max_pool2d"),
    Bug(
        "a NaN in the lower row of 2x2 windows",
        "csrc/cpu/pool_pairs.h",
        " | unordered<T>(cell[2], cell[3])",
        "",
        VALUES + "max_pool2d",
    ),
    Bug(
        "a window cell's place is one column off",
        "csrc/cpu/pool.h",
        "k / d.KW * d.W + k % d.KW;",
        "k / d.KW * d.W + k % d.KW + (k == 1);",
        VALUES + "max_pool2d",
    ),
    Bug(
        "a NaN of a row above is forgotten",
        "csrc/cpu/pool.h",
        "numbers = copy(x + next * pitch) && numbers;",
        "numbers = copy(x + next * pitch);",
        VALUES + "max_pool2d",
    ),
    Bug(
        "the second of two rows gets the first one's",
        "csrc/cpu/pool_pairs.h",
        "store_n<T>(y + OW, upper_half<T>(best.value), n);",
        "store_n<T>(y + OW, best.value, n);",
        VALUES + "max_pool2d",
    ),
    Bug(
        "the last of two equal cells wins",
        "csrc/cpu/pool_lanes.h",
        "(v > value) | (v != v);",
        "(v >= value) | (v != v);",
        VALUES + "max_pool2d",
    ),
    Bug(
        "a maximum along a row starts in the padding",
        "csrc/cpu/pool.h",
        "(ow + i) * d.SW < d.PW; ++i)",
        "false; ++i)",
        VALUES + "max_pool2d",
    ),
    Bug(
        "columns that meet other window cells taken together",
        "csrc/cpu/pool_last.h",
        "return last < d.W && image.columns.alike(iw, last);",
        "return last < d.W;",
        VALUES + "max_pool2d",
    ),
    Bug(
        "last of equal cells wins in 2x2 windows",
        "csrc/cpu/pool_lanes.h",
        "kNumbers ? v > value : (v > value) | (v != v);",
        "kNumbers ? v >= value : (v >= value) | (v != v);",
        VALUES + "pool",
    ),
    Bug(
        "ceil keeps a window in the padding",
        "csrc/contract/maxpool2d.h",
        "(out - 1) * s >= in + p) --out",
        "(out - 1) * s > in + p + s) --out",
        VALUES + "max_pool2d",
    ),
    Bug(
        "positions left in a shuffle's order",
        "csrc/cpu/pool.h",
        "in_order(best.at)",
        "best.at",
        VALUES + "max_pool2d",
    ),
    Bug(
        "the last position of an odd row lost",
        "csrc/cpu/pool_lanes.h",
        "if (n & 1) std::memcpy(p, &bytes, 1);",
        "",
        VALUES + "max_pool2d",
    ),
)
