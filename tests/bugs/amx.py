"""Bugs of products on the matrix unit; left out where the machine has none."""

from . import TILES, Bug

BUGS = (
    Bug(
        "the second tile of rows from the first one's place",
        "csrc/cpu/amx.h",
        "_tile_loadd(5, a + places.a_next, a_row);",
        "_tile_loadd(5, a, a_row);",
        TILES + "linear",
    ),
    Bug(
        "the second tile of columns over the first one's sums",
        "csrc/cpu/amx.h",
        "_tile_stored(3, sums + rows * kPanel + kTile, kRow);",
        "_tile_stored(3, sums + rows * kPanel, kRow);",
        TILES + "linear",
    ),
    Bug(
        "a panel not filled up with zeros",
        "csrc/cpu/gemm_tile.h",
        "k < panel_steps<T>(depth) * kColumns<T>; k +=",
        "k < lanes_of<T>(depth) * kColumns<T>; k +=",
        TILES + "linear",
    ),
    Bug(
        "rows in place beyond the matrix",
        "csrc/cpu/gemm.h",
        "left.row_stride / 2 : kTile, next = here ? kTile",
        "left.row_stride / 2 : kTile, next = here ? kTile + 1",
        TILES + "linear",
    ),
    Bug(
        "each share of a batch decides on its own tiles",
        "csrc/cpu/gemm.h",
        "const Tiling tiling = right.tiling.unit ? right.tiling : ",
        "const Tiling tiling = right.tiling.unit && M >= 5 ? right.tiling : ",
        "test_threads_share_few_rows",
    ),
    Bug(
        "channels that two tiles share added twice",
        "csrc/cpu/conv_amx.h",
        "r = (k + half) * rows - first[half]; r < rows",
        "r = 0; r < rows",
        TILES + "conv2d",
    ),
    Bug(
        "the second tile of channels where the last begins",
        "csrc/cpu/conv_amx.h",
        "min_of((k + 1) * rows, channels - rows)};",
        "channels - rows};",
        TILES + "conv2d",
    ),
    Bug(
        "every pair of images with the first one's cells",
        "csrc/cpu/conv_amx.h",
        "a += t.g_image, b += image;",
        "a += t.g_image;",
        TILES + "conv2d",
    ),
    Bug(
        "blocks of lines all from the first",
        "csrc/cpu/conv_amx.h",
        "e.offset(0, kh, 0) + b * unit.lanes * e.plane()",
        "e.offset(0, kh, 0)",
        TILES + "conv2d",
    ),
    Bug(
        "a stride's parts of the window over each other",
        "csrc/cpu/conv_phases.h",
        "to += d.G * size(d, rows, columns);",
        "to += size(d, rows, columns) / 2;",
        TILES + "conv2d",
    ),
)
