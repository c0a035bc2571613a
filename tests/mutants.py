"""Plants bugs, one at a time, and shows that the tests catch each: ``make mutants`` (about half an hour on 2 cores).

A bug is a replacement in one source file of a copy of this repository, rebuilt where it is C++, tested with the contract
tests that a change of that kind concerns; in CUDA sources, with the tests that execute the row's kernels on the host; in Triton's,
with the row's under its interpreter. A bug that no test catches ends the run with exit status 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torchsmith import _native

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Bug:
    name: str
    file: str
    right: str
    wrong: str
    tests: str  # pytest -k expression; of a Triton kernel the row

    @property
    def cuda(self) -> bool:
        return self.file.startswith("csrc/cuda")

    @property
    def triton(self) -> bool:
        return self.file.startswith("kernels")


VALUES = "test_values_and_gradients and float32 and base and "
VECTORS = "test_values_and_gradients and float32 and avx2 and "
PAIRS = "test_values_and_gradients and bfloat16 and avx512_bf16 and "
BUGS = (
    Bug("sign of a gradient", "csrc/cpu/gru.cpp", "dn = g * (W(1) - z)", "dn = -g * (W(1) - z)", VALUES + "gru"),
    Bug(
        "dilation of rows lost",
        "csrc/cpu/conv_cells.h",
        "(kh * DH % SH * phase_rows() + kh * DH / SH)",
        "(kh % SH * phase_rows() + kh / SH)",
        VALUES + "conv2d",
    ),
    Bug(
        "dilation of rows and columns swapped",
        "csrc/cpu/conv_cells.h",
        "shift(kw * e.DW - e.left)",
        "shift(kw * e.DH - e.left)",
        VALUES + "conv2d",
    ),
    Bug(
        "even and odd columns exchanged",
        "csrc/cpu/conv_depthwise.h",
        "phase[0].first == 0 ? 1 : 0;",
        "phase[0].first == 0 ? 0 : 1;",
        VALUES + "conv2d",
    ),
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
        "only the first row of a batch",
        "csrc/cpu/sequence.h",
        "const int64_t rows = min_of(end, d.sizes[t]) - begin, row = d.offsets[t] + begin;\n      if (rows <= 0) continue;\n      gemm_packed",
        "const int64_t rows = min_of(begin + 1, d.sizes[t]) - begin, row = d.offsets[t] + begin;\n      if (rows <= 0) continue;\n      gemm_packed",
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
        "bias of the first vector for the second",
        "csrc/cpu/gemm.h",
        "load_wide(column_bias + v * L, lanes(v))",
        "load_wide(column_bias, lanes(v))",
        VALUES + "linear",
    ),
    Bug(
        "bias of y^T along the wrong side",
        "csrc/cpu/linear.cpp",
        "{.row_bias = p.bias, .relu = relu}",
        "{.column_bias = p.bias, .relu = relu}",
        VALUES + "linear",
    ),
    Bug(
        "a row of x too few in the weight gradient of few rows",
        "csrc/cpu/linear.cpp",
        "for (int m = 1; m < M; ++m) sum += gn[m]",
        "for (int m = 2; m < M; ++m) sum += gn[m]",
        VALUES + "linear",
    ),
    Bug(
        "last of equal cells wins in 2x2 windows",
        "csrc/cpu/pool_lanes.h",
        "kNumbers ? v > value : (v > value) | (v != v);",
        "kNumbers ? v >= value : (v >= value) | (v != v);",
        VALUES + "pool",
    ),
    Bug(
        "the last K block overwrites",
        "csrc/cpu/gemm.h",
        "e.accumulate || !block.first",
        "e.accumulate",
        VALUES + "linear",
    ),
    Bug(
        "a row of W for its neighbour",
        "csrc/cpu/gemm.h",
        "direct ? row[i][k]",
        "direct ? row[i / 2][k]",
        VALUES + "linear",
    ),
    Bug(
        "W read as it lies, from its first column in each block",
        "csrc/cpu/gemm.h",
        "left.a + i0 * left.pitch + block.k0",
        "left.a + i0 * left.pitch",
        VALUES + "linear",
    ),
    Bug(
        "sums of earlier blocks of a window forgotten",
        "csrc/cpu/conv_image.h",
        "if (!first) for_sums(",
        "if (false) for_sums(",
        VALUES + "conv2d",
    ),
    Bug(
        "one row's kept sums over another's",
        "csrc/cpu/conv_image.h",
        "kept + (i - i_begin) * vectors * L, k == 0",
        "kept, k == 0",
        VALUES + "conv2d",
    ),
    Bug(
        "padding beside an image read as cells",
        "csrc/cpu/conv_cells.h",
        "lanes == whole ? load",
        "lanes != 0 ? load",
        VECTORS + "conv2d",
    ),
    Bug(
        "a window cell's padding for its neighbour's",
        "csrc/cpu/conv_cells.h",
        "meets[tap[k0 + k]]",
        "meets[tap[k]]",
        VECTORS + "conv2d",
    ),
    Bug(
        "copied cells of the second block from the first",
        "csrc/cpu/conv_image.h",
        "right.panel(panel(j), k0, block.depth",
        "right.panel(panel(j), first, block.depth",
        VALUES + "conv2d",
    ),
    Bug(
        "weights in place from their first column in each block",
        "csrc/cpu/conv_image.h",
        "direct + i * depth + k0",
        "direct + i * depth",
        VALUES + "conv2d",
    ),
    Bug(
        "a window not flipped in width for the data gradient",
        "csrc/cpu/conv_phases.h",
        "++jw, from -= columns.step, cell += R)",
        "++jw, cell += R)",
        VALUES + "conv2d",
    ),
    Bug(
        "the chunk's second image from the first",
        "csrc/cpu/conv_weights.h",
        "t.g + (n + m) * t.g_image + k * t.cells + j",
        "t.g + n * t.g_image + k * t.cells + j",
        VALUES + "conv2d",
    ),
    Bug(
        "the second vector of channels over the first",
        "csrc/cpu/conv_weights.h",
        "dw + (v * L + k) * dw_pitch + r",
        "dw + k * dw_pitch + r",
        VALUES + "conv2d",
    ),
    Bug(
        "rows beyond the first share of A lost",
        "csrc/cpu/gemm.h",
        "i0 < i_end; i0 += tall",
        "i0 < i_begin + tall && i0 < i_end; i0 += tall",
        VALUES + "linear",
    ),
    Bug(
        "gradient rows beyond the first half of L1 left out",
        "csrc/cpu/conv_weights.h",
        "for (int64_t r0 = 0; r0 < channels; r0 += at_once)",
        "for (int64_t r0 = 0; r0 < min_of(channels, at_once); r0 += at_once)",
        VALUES + "conv2d",
    ),
    Bug(
        "ceil keeps a window in the padding",
        "csrc/contract/maxpool2d.h",
        "(out - 1) * s >= in + p) --out",
        "(out - 1) * s > in + p + s) --out",
        VALUES + "max_pool2d",
    ),
    Bug(
        "bias gradient missing",
        "csrc/cpu/conv2d.cpp",
        "sums[k] += sum_lanes<W>((s0 + s1) + (s2 + s3));",
        "",
        VALUES + "conv2d",
    ),
    Bug(
        "relu passes a gradient at 0",
        "csrc/cpu/simd.h",
        "return y <= Vec<T>{} ? Vec<T>{} : g;",
        "return y < Vec<T>{} ? Vec<T>{} : g;",
        VALUES + "linear_relu",
    ),
    Bug(
        "relu stops a gradient at NaN",
        "csrc/cpu/simd.h",
        "return y <= Vec<T>{} ? Vec<T>{} : g;",
        "return y > Vec<T>{} ? g : Vec<T>{};",
        VALUES + "linear_relu",
    ),
    Bug(
        "phases of a strided gradient in the wrong order",
        "csrc/cpu/conv_phases.h",
        "const int64_t rest = (a + P) % S;",
        "const int64_t rest = (a + S - P % S) % S;",
        VALUES + "conv2d and stride",
    ),
    Bug(
        "depthwise outputs of one input share weights",
        "csrc/cpu/conv_depthwise.h",
        "w[(m * d.KH + kh) * d.KW + kw]",
        "w[kh * d.KW + kw]",
        VALUES + "conv2d and depthwise",
    ),
    Bug(
        "depthwise edge columns forgotten in the weight gradient",
        "csrc/cpu/conv_depthwise_last.h",
        "if (ow == inner.begin) ow = inner.end;",
        "if (ow == inner.begin) break;",
        VALUES + "conv2d and channels_last",
    ),
    Bug(
        "one window row too few at the lower edge",
        "csrc/cpu/conv_image.h",
        "min_of(KH, low / DH + 1)",
        "min_of(KH, low / DH)",
        VALUES + "conv2d",
    ),
    Bug(
        "window not flipped",
        "csrc/cpu/conv_phases.h",
        "from[jw * columns.step]",
        "from[(columns.taps - 1 - jw) * columns.step]",
        VALUES + "conv2d",
    ),
    Bug(
        "stride of rows and columns swapped",
        "csrc/cpu/conv_cells.h",
        "row + i * e.SW + column.shift, e.SW, n",
        "row + i * e.SH + column.shift, e.SH, n",
        VALUES + "conv2d",
    ),
    Bug(
        "pooled gradient of the first vector of channels only",
        "csrc/cpu/conv_sparse.h",
        "c < width; c += kLanes<T>",
        "c < kLanes<T>; c += kLanes<T>",
        VALUES + "conv2d",
    ),
    Bug(
        "gradient listed where the ReLU is off",
        "csrc/cpu/conv_sparse.h",
        "to += !(*y <= T(0)) & (*g != T(0));",
        "to += *g != T(0);",
        VALUES + "conv2d_relu_maxpool2d",
    ),
    Bug(
        "positions left in a shuffle's order",
        "csrc/cpu/pool.h",
        "in_order(best.at)",
        "best.at",
        VECTORS + "max_pool2d",
    ),
    Bug(
        "the last position of an odd row lost",
        "csrc/cpu/pool_lanes.h",
        "if (n & 1) std::memcpy(p, &bytes, 1);",
        "",
        VECTORS + "max_pool2d",
    ),
    Bug(
        "0 * NaN skipped in a pooled gradient",
        "csrc/cpu/conv_sparse.h",
        "!way.all_finite(p.x, d.N * d.C * d.H * d.W) ||",
        "",
        VALUES + "conv2d",
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
        "threads share a sum",
        "csrc/cpu/conv2d.cpp",
        "data, dw_of(share), db_of(share))",
        "data, dw_of(0), db_of(0))",
        "test_threads_on_real_sizes and conv2d or " + VALUES + "conv2d",
    ),
    Bug(
        "odd element of a sum in pairs lost",
        "csrc/cpu/bf16.h",
        "return (elements + kPair<T> - 1) / kPair<T>;",
        "return elements / kPair<T>;",
        PAIRS + "linear",
    ),
    Bug(
        "upper half of a vector of pairs lost",
        "csrc/cpu/bf16.h",
        "high = n > L ? load_some<float>(p + L, n - L) : Vec<float>{};",
        "high{};",
        PAIRS + "gru",
    ),
    Bug(
        "odd channel paired with the next group's",
        "csrc/cpu/conv_lanes.h",
        "q + 1 < count ? low + cells : nullptr",
        "low + cells",
        PAIRS + "conv2d",
    ),
    Bug(
        "masks of dropout not scaled",
        "pyext/ops/_recurrent.py",
        ".bernoulli_(1 - p).div_(1 - p)",
        ".bernoulli_(1 - p)",
        VALUES + "gru and dropout",
    ),
    Bug(
        "odd padding at the top left",
        "pyext/ops/conv2d.py",
        "return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2",
        "return total[0] - total[0] // 2, total[1] - total[1] // 2, total[0] // 2, total[1] // 2",
        VALUES + "conv2d and same",
    ),
    Bug(
        "saved relu output forgotten in the second derivative",
        "pyext/ops/linear.py",
        "return F.relu(y) if relu else y",
        "return y",
        "linear_relu and float64",
    ),
    Bug(
        "fake kernel ignores channels_last",
        "pyext/ops/maxpool2d.py",
        "if last else y",
        "if False else y",
        "test_opcheck and max_pool2d",
    ),
    Bug(
        "a gradient copied to where the first direction writes",
        "csrc/cpu/sequence_glue.h",
        "const Maybe gy = d.L > 1 || d.D == 1 ?",
        "const Maybe gy = true ?",
        "L1-D2",
    ),
    Bug(
        "a call's key without strides",
        "csrc/call_key.cpp",
        "else mix(own(PyObject_CallMethodNoArgs(t, names().stride)))",
        "else mix(5)",
        "keys_are_the_same",
    ),
    Bug(
        "a call's key without the dtype",
        "csrc/call_key.cpp",
        "mix(own(PyObject_GetAttr(t, names().dtype)))",
        "mix(6)",
        "keys_are_the_same",
    ),
    Bug(
        "a call's key without the threads",
        "csrc/call_key.cpp",
        "key.mix(ts_threads())",
        "key.mix(1)",
        "threads_are_part",
    ),
    Bug("autocast forgotten", "csrc/short_call.cpp", "asks(given(kAutocast), true) || ", "", "way_of_a_call"),
    Bug(
        "forward mode forgotten",
        "csrc/short_call.cpp",
        " ||\n      forward_mode(given(kForwardAd))",
        "",
        "way_of_a_call",
    ),
    Bug("export forgotten", "csrc/short_call.cpp", "compiling(given(kCompiler)) || ", "", "way_of_a_call"),
    Bug(
        "only the first tensor asked for its gradient",
        "csrc/short_call.cpp",
        "if (grad && holds(",
        "if (i == 0 && grad && holds(",
        "way_of_a_call",
    ),
    Bug(
        "a cell's short call lacks an argument",
        "pyext/ops/_cell.py",
        "*tensors, relu, False)\n            if",
        "*tensors, relu)\n            if",
        "short_way and gru_cell",
    ),
    Bug(
        "a second row of x left out of dw",
        "csrc/cpu/linear.cpp",
        "for (int m = 1; m < M; ++m) sum += gn[m] * load_wide(x + m * width + k, lanes);",
        "for (int m = 2; m < M; ++m) sum += gn[m] * load_wide(x + m * width + k, lanes);",
        VALUES + "linear",
    ),
    Bug(
        "mask of the wrong row",
        "csrc/cpu/linear.cpp",
        "*const y = p.y + begin * p.d.N;",
        "*const y = p.y;",
        "masked_by_two_threads",
    ),
    Bug(
        "stride 0 accepted",
        "pyext/ops/maxpool2d.py",
        "if min(stride) <= 0:",
        "if min(stride) < 0:",
        "test_errors and max_pool2d",
    ),
    Bug(
        "CUDA: missing barrier",
        "csrc/cuda/gemm.cuh",
        "    __syncthreads();  // this step's tile",
        "    // this step's tile",
        "linear",
    ),
    Bug(
        "CUDA: tile edge off by one",
        "csrc/cuda/gemm.cuh",
        "if (m >= shape.M || n >= shape.N) return;",
        "if (m > shape.M || n >= shape.N) return;",
        "linear",
    ),
    Bug(
        "CUDA: wrong row of a fragment",
        "csrc/cuda/gemm_product.cuh",
        "PlaneA::at(row + lane % 16, k + lane / 16 * 8)",
        "PlaneA::at(row + lane % 8, k + lane / 16 * 8)",
        "linear",
    ),
    Bug(
        "CUDA: words of a TF32 fragment exchanged",
        "csrc/cuda/gemm_product.cuh",
        "PlaneA::at(row + lane / 4 + i % 2 * 8, k + lane % 4 + i / 2 * 4)",
        "PlaneA::at(row + lane / 4 + i / 2 * 8, k + lane % 4 + i % 2 * 4)",
        "linear",
    ),
    Bug(
        "CUDA: unmasked tail",
        "csrc/cuda/gemm_sources.cuh",
        "along < kPerChunk<T> ? static_cast<int>(along) : kPerChunk<T>",
        "kPerChunk<T>",
        "linear",
    ),
    Bug(
        "CUDA: stale accumulator",
        "csrc/cuda/gemm_product.cuh",
        "float sum[kRows][kColumns][4] = {};",
        "float sum[kRows][kColumns][4];",
        "linear",
    ),
    Bug(
        "CUDA: a copy not waited for",
        "csrc/cuda/gemm.cuh",
        "cp_async_wait<kStages - 2>",
        "cp_async_wait<kStages - 1>",
        "linear",
    ),
    Bug("CUDA: load into the tile in use", "csrc/cuda/gemm.cuh", "step + kStages - 1;", "step + kStages;", "linear"),
    Bug(
        "CUDA: shared memory a stage short",
        "csrc/cuda/gemm.cuh",
        "* kStage * Tile::kStages;",
        "* kStage * (Tile::kStages - 1);",
        "linear",
    ),
    Bug(
        "CUDA: last share lost",
        "csrc/cuda/gemm.cuh",
        "for (int s = 0; s < shares; ++s) {",
        "for (int s = 0; s < shares - 1; ++s) {",
        "linear",
    ),
    Bug(
        "CUDA: shares of the bias gradient over each other",
        "csrc/cuda/gemm.cuh",
        "shape.partial_sums[blockIdx.y * shape.M + m0",
        "shape.partial_sums[m0",
        "linear",
    ),
    Bug(
        "CUDA: relu stops a gradient at NaN",
        "csrc/cuda/platform.cuh",
        "return !(widen(y) <= SumOf<T>(0));",
        "return widen(y) > SumOf<T>(0);",
        "linear",
    ),
    Bug(
        "CUDA: a step of the sum over a warp missing",
        "csrc/cuda/linear.cuh",
        "with > 0; with /= 2",
        "with > 1; with /= 2",
        "linear",
    ),
    Bug("CUDA: lost NaN", "csrc/cuda/maxpool2d.cuh", "return v > best || v != v;", "return v > best;", "maxpool2d"),
    Bug(
        "CUDA: the last of two equal cells wins",
        "csrc/cuda/maxpool2d.cuh",
        "return v > best || v != v;",
        "return v >= best || v != v;",
        "maxpool2d",
    ),
    Bug(
        "CUDA: last window over a cell forgotten",
        "csrc/cuda/maxpool2d.cuh",
        "; oh <= last;",
        "; oh < last;",
        "maxpool2d",
    ),
    Bug(
        "CUDA: windows past the last",
        "csrc/cuda/maxpool2d.cuh",
        "return o < windows ? o : windows - 1;",
        "return o;",
        "maxpool2d",
    ),
    Bug(
        "CUDA: guard of the last block off by one",
        "csrc/cuda/maxpool2d.cuh",
        "if (i >= groups) return;",
        "if (i > groups) return;",
        "maxpool2d",
    ),
    Bug(
        "CUDA: chunks of channels from the wrong one",
        "csrc/cuda/maxpool2d.cuh",
        "p.xs.at(at.n, at.c * V, h, w)",
        "p.xs.at(at.n, at.c, h, w)",
        "maxpool2d",
    ),
    Bug(
        "CUDA conv2d: offset of the window lost",
        "csrc/cuda/conv_gemm.cuh",
        "inside(cell * step + t * tap + start)",
        "inside(cell * step + t * tap)",
        "conv2d",
    ),
    Bug(
        "CUDA conv2d: unmasked end of a chunk",
        "csrc/cuda/conv_gemm.cuh",
        "if (row < 0 || i < begin || i >= end) continue;",
        "if (row < 0 || i < begin) continue;",
        "conv2d",
    ),
    Bug(
        "CUDA conv2d: chunk stays in its row",
        "csrc/cuda/conv_gemm.cuh",
        "if (++h == s.H.d) h = 0, ++n;",
        "if (h == s.H.d) h = 0, ++n;",
        "conv2d",
    ),
    Bug(
        "CUDA conv2d: image in use before it is loaded",
        "csrc/cuda/conv_pool.cuh",
        "  __syncthreads();\n  const int64_t items",
        "  const int64_t items",
        "conv2d",
    ),
    Bug(
        "CUDA conv2d: a tree of sums without waiting",
        "csrc/cuda/conv_grouped.cuh",
        "    __syncthreads();\n    if (threadIdx.x < part)",
        "    if (threadIdx.x < part)",
        "conv2d",
    ),
    Bug(
        "CUDA conv2d: columns of an odd tile written past the end",
        "csrc/cuda/conv_gemm.cuh",
        "    if (column + 1 == columns) return;\n",
        "",
        "conv2d",
    ),
    Bug(
        "CUDA conv2d: stale cell of a sliding window",
        "csrc/cuda/conv_pool.cuh",
        "a = cells[1], b = cells[3];",
        "a = cells[1];",
        "conv2d",
    ),
    Bug(
        "CUDA conv2d: gradient of a pool where ReLU stopped it",
        "csrc/cuda/conv_pool.cuh",
        "if (p.y && !relu_passes(p.y[p.ys.at(at.n, at.c, oh, ow)])) continue;",
        "if (p.y && false) continue;",
        "conv2d",
    ),
    Bug(
        "CUDA: the next step overwrites gradients still read",
        "csrc/cuda/steps.cuh",
        "if constexpr (!kTogether) __syncthreads();  // the tile is read",
        "// the tile is read",
        "rnn",
    ),
    Bug(
        "CUDA: blocks do not wait for the others' state",
        "csrc/cuda/steps.cuh",
        "if constexpr (kTogether) grid_sync();",
        "if constexpr (kTogether) __syncthreads();",
        "rnn",
    ),
    Bug(
        "CUDA: a new state over the one still read",
        "csrc/cuda/steps.cuh",
        "state(now ^ 1, b, j) = h;",
        "state(now, b, j) = h;",
        "rnn",
    ),
    Bug(
        "CUDA: a row past the batch",
        "csrc/cuda/steps.cuh",
        "if (b >= end) break;",
        "if (b > end) break;",
        "rnn",
    ),
    Bug(
        "CUDA: a row past a cell's batch", "csrc/cuda/cell.cuh", "if (b >= p.B) return;", "if (b > p.B) return;", "rnn"
    ),
    Bug(
        "CUDA: a sequence runs a step too long",
        "csrc/cuda/steps.cuh",
        "if (b < count) {\n            const int64_t row",
        "if (b <= count) {\n            const int64_t row",
        "rnn",
    ),
    Bug(
        "CUDA: first rows of the steps off by one",
        "csrc/cuda/steps.cuh",
        "offsets[t + 1] - offsets[t] : B;",
        "offsets[t + 1] - offsets[t] - (t == 1) : B;",
        "rnn",
    ),
    Bug(
        "CUDA: reverse direction runs forward",
        "csrc/cuda/steps.cuh",
        "d == 1 ? s.T - 1 - step : step, first",
        "step, first",
        "rnn",
    ),
    Bug(
        "CUDA: sequences that begin late not restarted from hx",
        "csrc/cuda/steps.cuh",
        "b < earlier_count ? p.y.get",
        "known ? p.y.get",
        "rnn",
    ),
    Bug(
        "CUDA: weights past the shared memory asked for",
        "csrc/cuda/steps.cuh",
        "(p.resident ? of_unit * p.slice : 0)",
        "(p.resident ? of_unit * (p.slice - 1) : 0)",
        "rnn",
    ),
    Bug(
        "CUDA: the second direction's input gradient alone",
        "csrc/cuda/sequence.cuh",
        "Joined<T> out{gx, I, nullptr, k == 1,",
        "Joined<T> out{gx, I, nullptr, false,",
        "rnn",
    ),
    Bug(
        "CUDA: dropout on the sum of both directions twice",
        "csrc/cuda/sequence.cuh",
        "k + 1 == d.D ? mask : nullptr",
        "mask",
        "rnn",
    ),
    Bug(
        "CUDA: gates r and z swapped",
        "csrc/cuda/gru.cuh",
        "r = sigmoid(x[0] + q[0]), z = sigmoid(x[1] + q[1])",
        "r = sigmoid(x[1] + q[1]), z = sigmoid(x[0] + q[0])",
        "gru",
    ),
    Bug(
        "CUDA: reset gate on the state's gradient forgotten",
        "csrc/cuda/gru.cuh",
        "dx[2] = dn, dq[2] = dn * r;",
        "dx[2] = dq[2] = dn;",
        "gru",
    ),
    Bug(
        "Triton: NaN stopped by ReLU",
        "kernels/_gemm.py",
        "tl.where(y <= 0, 0.0, a)",
        "tl.where(y > 0, a, 0.0)",
        "linear",
    ),
    Bug("Triton: last part of a sum lost", "kernels/_gemm.py", "range(0, K, BK)", "range(0, K - BK + 1, BK)", "linear"),
    Bug("Triton: the last of two equal cells wins", "kernels/maxpool2d.py", "(v > best)", "(v >= best)", "maxpool2d"),
    Bug("Triton: a window off the stride", "kernels/maxpool2d.py", "(top % SH == 0) & ", "", "maxpool2d"),
    Bug(
        "Triton: columns of padding lost", "kernels/conv2d.py", "ow * SW - PL, there, k", "ow * SW, there, k", "conv2d"
    ),
    Bug(
        "Triton: a share starts late", "kernels/conv2d.py", "number * share + k0", "number * (share + 1) + k0", "conv2d"
    ),
    Bug("Triton: reverse runs forward", "kernels/_steps.py", "t = T - 1 - i if REVERSE else i", "t = i", "rnn"),
    Bug(
        "Triton: ended sequences go on",
        "kernels/_steps.py",
        "tl.where(valid, new, h)",
        "tl.where(there, new, h)",
        "gru",
    ),
    Bug(
        "Triton: reset and update gate swapped",
        "kernels/_steps.py",
        "r, z = tl.sigmoid(xr), tl.sigmoid(xz)",
        "z, r = tl.sigmoid(xr), tl.sigmoid(xz)",
        "gru",
    ),
    Bug(
        "Triton: another gate's weights stay on chip",
        "kernels/_steps.py",
        "wz, wn = _block(w_ptr + H * wj, wj, wk, H, BH)",
        "wz, wn = _block(w_ptr, wj, wk, H, BH)",
        "gru",
    ),
)


def copy_tree(to: Path) -> None:
    ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".pytest_cache", "*.egg-info")
    shutil.copytree(ROOT, to, ignore=ignored)


def caught(bug: Bug, tree: Path, environment: dict[str, str]) -> bool:
    source = tree / bug.file
    text = source.read_text()
    if bug.right not in text:
        raise SystemExit(f"{bug.name}: {bug.file} no longer holds {bug.right!r}")
    source.write_text(text.replace(bug.right, bug.wrong))
    try:
        if bug.triton:
            return caught_interpreted(bug, tree, environment)
        if bug.file.startswith("csrc") and not bug.cuda:
            build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            subprocess.run(build, cwd=tree, env=environment, check=True, capture_output=True)
        files = ["contract", "cpu_ways", "call_key"] if not bug.cuda else ["cuda_kernels"]
        files = [f"tests/test_{name}.py" for name in files]
        tests = f"on_the_host and ({bug.tests})" if bug.cuda else bug.tests
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", tests]
        run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if (
            "does not compile for the host" in run.stdout
        ):  # a bug the compiler refuses or warns of shows nothing of the tests
            raise SystemExit(f"{bug.name}: does not compile without a warning:\n{run.stdout[-2000:]}")
        if run.returncode < 0:  # a crash is a failing test too
            return True
        if run.returncode > 1:
            raise SystemExit(f"{bug.name}: the tests did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
        return run.returncode == 1
    finally:
        source.write_text(text)


def caught_interpreted(bug: Bug, tree: Path, environment: dict[str, str]) -> bool:
    out = str(tree.parent / "launches.json")
    row = {"TRITON_INTERPRET": "1", "TORCHSMITH_TEST_ROW": bug.tests, "TORCHSMITH_TEST_OUT": out}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/triton_checks.py"]
    run = subprocess.run(command, cwd=tree, env=environment | row, capture_output=True, text=True)
    if run.returncode > 1 or (run.returncode == 1 and "::test_values[" not in run.stdout):
        raise SystemExit(f"{bug.name}: the tests did not run:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return run.returncode == 1


def main() -> int:
    wanted = sys.argv[1:]  # parts of names; all without
    bugs = [bug for bug in BUGS if not wanted or any(part in bug.name for part in wanted)]
    if "avx512_bf16" not in _native.isa_available():
        for bug in [bug for bug in bugs if bug.tests.startswith(PAIRS)]:
            print(f"left out  {bug.name}: this machine has no AVX512-BF16")
            bugs.remove(bug)
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        copy_tree(tree)
        package = Path(folder, "path")
        package.mkdir()
        (package / "torchsmith").symlink_to(tree / "pyext")
        (tree / "pyext" / "kernels").symlink_to(tree / "kernels")
        # The bugs in CUDA sources are shown on the host: no time for nvcc.
        environment = {**os.environ, "PYTHONPATH": str(package), "TORCHSMITH_CUDA": "0"}
        for file in ("csrc/cuda/gemm.cuh", "csrc/cpu/gemm.h"):
            kind = [b for b in bugs if b.cuda == file.startswith("csrc/cuda") and not b.triton]
            whole = Bug("none", file, "#pragma once", "#pragma once", " or ".join(f"({b.tests})" for b in kind))
            if kind and caught(whole, tree, environment):
                raise SystemExit("the tests fail without any planted bug: nothing can be shown")
        for bug in bugs:
            ok = caught(bug, tree, environment)
            print(f"{'caught' if ok else 'MISSED'}  {bug.name}  ({bug.file})", flush=True)
            missed += [] if ok else [bug.name]
    print(f"{len(bugs) - len(missed)} of {len(bugs)} planted bugs caught")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
