// C[M, N] (+)= A[M, K] B[K, N] with a fused epilogue (bias of a row or a column, ReLU), for any size.
//
// The scheme is GotoBLAS's: B is packed into panels of kColumns columns, A into panels of at most kRows rows, and a register
// tile of rows x columns accumulates over a block of K. One panel of B stays in the L1 cache while a block of A passes over
// it from L2. The packing reads through a "source", a small struct that knows how to produce a panel.
// No sum is split between threads and the tiling depends on the sizes alone: results are bitwise the same for any number.
//
// T is the type of the product: its panels hold Lane<T> (bf16.h), `depth` counts elements and `steps` lanes along K. Sources
// and C may be of T or of Wide<T>.
#pragma once

#include "amx.h"
#include "gemm_sources.h"

namespace ts::TS_ISA {

// A panel of B of this depth (256 x 32 floats) is 32 KB: half stays in a 32 KB L1 while the tiles of A pass over it.
constexpr int64_t kSteps = 256;
// Sums of bf16 that go on over a second block need float32 memory in between, so its blocks are longer.
template <class T>
constexpr int64_t kDepth = kPair<T> == 1 ? kSteps : 2048;
// Rows of A packed at a time, at most: 192 x 256 floats are 192 KB, three quarters of the smallest L2 there is. More rows
// than these read each panel of B again.
constexpr int64_t kTall = 192;
// Columns packed at a time where several blocks of A pass over them: 256 x 2048 floats are 2 MB, which the last-level cache
// holds for all cores.
constexpr int64_t kWide = 2048;
// Panels packed together where each is used once, row by row of B: as many as a share of L2 holds. A panel alone would visit
// each row's page, and so would the next one; from more pages than the first level of the TLB knows that costs a quarter.
constexpr int64_t kPanels = 8, kPanelBytes = 128 << 10, kPages = 64;

// The depth of each block of K: equal shares rather than full blocks and a short rest. Of pairs in whole tiles.
template <class T>
TS_INLINE int64_t block_depth(int64_t K) {
  constexpr int64_t kWhole = 2 * kStepsTogether<T>;
  const int64_t blocks = ceil_div(K, kDepth<T>);
  return blocks <= 1 ? K : ceil_div(ceil_div(K, blocks), kWhole) * kWhole;
}

// Rows of each panel of A: equal shares rather than full panels and a small rest.
TS_INLINE int panel_rows(int64_t M, int most = kRows) {
  return M == 0 ? 1 : static_cast<int>(ceil_div(M, ceil_div(M, most)));
}

// How the rows of a product are shared out: the panels of A, and what multiplies them.
struct Tiling {
  int rows;
  bool unit;  // the matrix unit (amx.h), else vectors
};
template <class T>
TS_INLINE Tiling tiling_of(int64_t M, bool direct) {
  if (kUnit<T> && isa_active() == Isa::avx512_amx && M >= kLeastRows) return {kPanel, true};
  return {panel_rows(M, direct ? kDirectRows : kRows), false};
}

// B of all K rows, packed once for many products (recurrent weights over the steps of a sequence).
// Layout: for each block of block_depth rows, for each panel of kColumns columns, steps x kColumns.
template <class T>
struct RightPacked {
  Lane<T>* data;
  int64_t K, N;
  Tiling tiling;  // decided once: the products' numbers of rows depend on how threads share them, and results may not
  static int64_t size(int64_t K, int64_t N) { return panel_steps<T>(K) * ceil_div(N, kColumns<T>) * kColumns<T>; }
  template <class Source>
  static RightPacked pack(Lane<T>* buffer, int64_t most_rows, int64_t K, int64_t N, const Source& source) {
    const int64_t panels = ceil_div(N, kColumns<T>), block = block_depth<T>(K);
    for (int64_t k0 = 0; k0 < K; k0 += block) {
      const int64_t depth = min_of(block, K - k0);
      for (int64_t p = 0; p < panels; ++p) {
        Lane<T>* const panel = buffer + (k0 / kPair<T> * panels + p * panel_steps<T>(depth)) * kColumns<T>;
        source.panel(panel, k0, depth, p * kColumns<T>, static_cast<int>(min_of<int64_t>(kColumns<T>, N - p * kColumns<T>)));
        fill_up<T>(panel, depth);
      }
    }
    return {buffer, K, N, tiling_of<T>(most_rows, false)};
  }
};

template <class T>
TS_INLINE int64_t panels_together(int64_t steps) {
  return max_of<int64_t>(1, min_of<int64_t>(kPanels, kPanelBytes / static_cast<int64_t>(sizeof(Lane<T>)) / (steps * kColumns<T>)));
}

// Whether the first tile may pack a panel as it reads it, in slots that its multiply-adds leave free: 64 rows of A, which use a
// panel five times, then take 0.86 of the time. Pairs are made of two rows of a matrix.
template <class T>
constexpr bool kPacksInTile = kPair<T> == 1;

#if defined(TS_AMX)
// gemm_block on the matrix unit.
template <class C, class Left, class Panel>
void amx_block(const Left& left, int64_t i_begin, int64_t i_end, const Block<bf16>& block, const Panel& panel, int64_t j0, int64_t j_end,
               C* c, int64_t ldc, const Epilogue<bf16>& e) {
  const int64_t steps = panel_steps<bf16>(block.depth), shares = ceil_div(i_end - i_begin, kTall);
  const int64_t tall = ceil_div(ceil_div(i_end - i_begin, kPanel), shares) * kPanel;
  const auto at_once = [](int64_t at, int64_t end) { return static_cast<int>(min_of<int64_t>(kPanel, end - at)); };
  const bool lines = j_end - j0 <= kColumnsInPlace && left.lie_in_lines(block.depth);
  const auto in_place = [&](int64_t i) { return lines && i + kPanel <= i_end; };
  alignas(64) float sums[kPanel * kPanel];
  begin_tiles();
  for (int64_t i0 = i_begin; i0 < i_end; i0 += tall) {
    const int64_t i1 = min_of(i_end, i0 + tall);
    int32_t* const a = scratch<int32_t>(Slot::pack_a, tall * steps);
    for (int64_t i = i0; i < i1; i += kPanel)
      if (!in_place(i)) left.lines(a + (i - i0) * steps, i, at_once(i, i1), block.k0, block.depth);
    for (int64_t j = j0; j < j_end; j += kPanel) {
      const int32_t* const b = panel(j).packed;
      for (int64_t i = i0; i < i1; i += kPanel) {
        const int m = at_once(i, i1), n = at_once(j, j_end);
        const bool here = in_place(i);
        const int32_t* const rows = here ? left.line(i, block.k0) : a + (i - i0) * steps;
        const int64_t pitch = here ? left.row_stride / 2 : kTile, next = here ? kTile : kTile * kPanel;  // from row to row, from tile to tile
        multiply_tiles(m > kTile, n > kTile, steps / kTile, {pitch, kTile * pitch, kPanel}, kTile,
                       [=](int64_t k, const int32_t*& at, const int32_t*& bt) { at = rows + k * next, bt = b + k * kTile * kPanel; }, sums);
        write_sums(sums, m, n, c + i * ldc + j, ldc, block.last && e.row_bias ? e.row_bias + i : nullptr,
                   block.last && e.column_bias ? e.column_bias + j : nullptr, e.accumulate || !block.first, block.last && e.relu);
      }
    }
  }
  end_tiles();
}
#endif

// The tiles of one block of K: rows [i_begin, i_end) in panels of `rows`, columns [j0, j_end). panel(j) is the panel of B from
// column j on; it is asked for once for each kTall rows.
template <class T, class C, class Left, class Panel>
void gemm_block(const Left& left, int64_t i_begin, int64_t i_end, const Tiling& tiling, const Block<T>& block, const Panel& panel,
                int64_t j0, int64_t j_end, C* c, int64_t ldc, const Epilogue<T>& e) {
  if constexpr (kUnit<T>)
    if (tiling.unit) return amx_block(left, i_begin, i_end, block, panel, j0, j_end, c, ldc, e);
  constexpr int W = kColumns<T>;
  const int rows = tiling.rows;
  const int64_t steps = lanes_of<T>(block.depth), most = kTall / rows * rows, shares = ceil_div(i_end - i_begin, most);
  const int64_t tall = ceil_div(ceil_div(i_end - i_begin, rows), shares) * rows;  // equal shares here too
  for (int64_t i0 = i_begin; i0 < i_end; i0 += tall) {
    const int64_t i1 = min_of(i_end, i0 + tall);
    const Lane<T>* a;
    int64_t pitch = steps;  // from row to row: of panels, that of a panel shared among its rows
    if constexpr (Left::kDirect) {
      a = left.a + i0 * left.pitch + block.k0;
      pitch = left.pitch;
    } else {
      Lane<T>* const packed = scratch<Lane<T>>(Slot::pack_a, (i1 - i0) * steps);
      for (int64_t i = i0; i < i1; i += rows)
        left.panel(packed + (i - i0) * steps, i, static_cast<int>(min_of<int64_t>(rows, i1 - i)), block.k0, block.depth);
      a = packed;
    }
    for (int64_t j = j0; j < j_end; j += W) {
      const PanelOf<T> b = panel(j);
      const int columns = static_cast<int>(min_of<int64_t>(W, j_end - j)), vectors = columns > W / 2 ? 2 : 1;
      for (int64_t i = i0; i < i1; i += rows) {
        const int at_once = static_cast<int>(min_of<int64_t>(rows, i1 - i));
        Tile<T, C> run = tile_for<T, C, Left::kDirect>(at_once, vectors);
        if constexpr (kPacksInTile<T> && !Left::kDirect)
          if (b.rows && i == i_begin) run = packing_tile_for<T, C>(at_once);
        run(steps, a + (i - i0) * pitch, pitch, b, c + i * ldc + j, ldc, columns,
            block.last && e.row_bias ? e.row_bias + i : nullptr, block.last && e.column_bias ? e.column_bias + j : nullptr,
            e.accumulate || !block.first, block.last && e.relu);
      }
    }
  }
}

// f(block) for each block of K.
template <class T, class F>
TS_INLINE void for_blocks(int64_t K, const F& f) {
  const int64_t depth = block_depth<T>(K);
  for (int64_t k0 = 0; k0 < K; k0 += depth) f(Block<T>{k0, min_of(depth, K - k0), k0 == 0, k0 + depth >= K});
}

// What to do when K = 0: the epilogue alone.
template <class T, class C>
void gemm_empty(int64_t M, int64_t N, C* c, int64_t ldc, const Epilogue<T>& e) {
  for (int64_t i = 0; i < M; ++i)
    for (int64_t j = 0; j < N; ++j) {
      Wide<T> y = e.accumulate ? widened(c + i * ldc + j) : Wide<T>(0);
      if (e.column_bias) y += widened(e.column_bias + j);
      if (e.row_bias) y += widened(e.row_bias + i);
      put(c + i * ldc + j, e.relu && y < Wide<T>(0) ? Wide<T>(0) : y);
    }
}

// Rows [i_begin, i_end) and columns [j_begin, j_end) of C, on one thread.
template <class T, class C, class Left, class Right>
void gemm_part(int64_t K, const Left& left, const Right& right, int64_t i_begin, int64_t i_end, const Tiling& tiling, int64_t j_begin,
               int64_t j_end, C* c, int64_t ldc, const Epilogue<T>& e) {
  constexpr int W = kColumns<T>;
  const auto pack = [&](Lane<T>* to, const Block<T>& block, int64_t j) {
    right.panel(to, block.k0, block.depth, j, static_cast<int>(min_of<int64_t>(W, j_end - j)));
    fill_up<T>(to, block.depth);
  };
  const int64_t most_steps = panel_steps<T>(block_depth<T>(K));
  if (i_end - i_begin <= kTall / tiling.rows * tiling.rows) {  // each panel of B is used once: packed just before, it does not leave the cache
    const int64_t together = right.by_rows() && most_steps > kPages ? panels_together<T>(most_steps) * W : W;
    Lane<T>* const packed = scratch<Lane<T>>(Slot::pack_b, most_steps * together);
    for_blocks<T>(K, [&](const Block<T>& block) {
      const int64_t steps = panel_steps<T>(block.depth);
      int64_t begin = j_begin, end = j_begin;
      const auto panel = [&](int64_t j) -> PanelOf<T> {
        if constexpr (kPacksInTile<T> && !Left::kDirect)
          if (right.by_rows() && j + W <= j_end) return {packed, right.row(block.k0, j), right.row_stride};
        if (j < begin || j >= end) {
          begin = j, end = min_of(j_end, j + together);
          const int64_t share = together == W ? block.depth : kAhead;
          for (int64_t k = 0; k < block.depth; k += share)
            for (int64_t at = begin; at < end; at += W)
              right.panel(packed + (at - begin) * steps + k / kPair<T> * W, block.k0 + k, min_of(share, block.depth - k), at,
                          static_cast<int>(min_of<int64_t>(W, end - at)));
          for (int64_t at = begin; at < end; at += W) fill_up<T>(packed + (at - begin) * steps, block.depth);
        }
        return {packed + (j - begin) * steps};
      };
      gemm_block<T>(left, i_begin, i_end, tiling, block, panel, j_begin, j_end, c, ldc, e);
    });
    return;
  }
  for (int64_t j0 = j_begin; j0 < j_end; j0 += kWide) {
    const int64_t j1 = min_of(j_end, j0 + kWide);
    Lane<T>* const packed = scratch<Lane<T>>(Slot::pack_b, most_steps * ceil_div(j1 - j0, W) * W);
    for_blocks<T>(K, [&](const Block<T>& block) {
      const auto panel = [&](int64_t j) { return PanelOf<T>{packed + (j - j0) * panel_steps<T>(block.depth)}; };
      for (int64_t j = j0; j < j1; j += W) pack(panel(j).packed, block, j);
      gemm_block<T>(left, i_begin, i_end, tiling, block, panel, j0, j1, c, ldc, e);
    });
  }
}

template <class T, class C, class Left, class Right>
void gemm(int64_t M, int64_t N, int64_t K, const Left& left, const Right& right, C* c, int64_t ldc,
          const Epilogue<T>& e) {
  if (M == 0 || N == 0) return;
  if constexpr (sizeof(C) < sizeof(Wide<T>))
    if (K > kDepth<T>) {  // more than one block: partial sums wait in full width
      Wide<T>* sums = scratch<Wide<T>>(Slot::sums, M * N);
      Epilogue<T> alone = e;
      alone.accumulate = false;
      gemm<T>(M, N, K, left, right, sums, N, alone);
      for (int64_t i = 0; i < M; ++i) add_as(c + i * ldc, sums + i * N, N, e.accumulate);
      return;
    }
  if (K == 0) return gemm_empty<T>(M, N, c, ldc, e);
  constexpr int W = kColumns<T>;
  const Tiling tiling = tiling_of<T>(M, Left::kDirect);
  const int64_t rows = tiling.rows, row_panels = ceil_div(M, rows), panels = ceil_div(N, W);
  // One parallel region, split along the longer side: each thread packs its own share of that factor and all of the
  // other, smaller one. That costs less than the barriers of packing together.
  if (row_panels > panels)
    parallel(row_panels, kParallelWork / (rows * N * K) + 1, [&](int64_t begin, int64_t end) {
      gemm_part<T>(K, left, right, begin * rows, min_of(M, end * rows), tiling, 0, N, c, ldc, e);
    });
  else
    parallel(panels, kParallelWork / (M * W * K) + 1, [&](int64_t begin, int64_t end) {
      gemm_part<T>(K, left, right, 0, M, tiling, begin * W, min_of(N, end * W), c, ldc, e);
    });
}

// The same with B packed beforehand; serial: the caller splits the rows. C is Wide<T>.
template <class T, class Left>
void gemm_packed(int64_t M, const Left& left, const RightPacked<T>& right, Wide<T>* c, int64_t ldc, const Epilogue<T>& e) {
  if (M == 0 || right.N == 0) return;
  if (right.K == 0) return gemm_empty<T>(M, right.N, c, ldc, e);
  const int64_t width = ceil_div(right.N, kColumns<T>) * kColumns<T>;
  for_blocks<T>(right.K, [&](const Block<T>& block) {
    Lane<T>* packed = right.data + block.k0 / kPair<T> * width;
    const auto panel = [&](int64_t j) { return PanelOf<T>{packed + j * panel_steps<T>(block.depth)}; };
    const Tiling tiling = right.tiling.unit ? right.tiling : Tiling{panel_rows(M, Left::kDirect ? kDirectRows : kRows), false};
    gemm_block<T>(left, 0, M, tiling, block, panel, 0, right.N, c, ldc, e);
  });
}

}  // namespace ts::TS_ISA
