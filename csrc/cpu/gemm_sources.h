// Where a product's factors come from: small structs that know how to pack a panel of a matrix, or that leave it as it lies.
//
// Panels hold Lane<T> (bf16.h), `depth` counts elements along K. A source may be of the product's type T or of Wide<T>.
#pragma once

#include "amx.h"
#include "gemm_tile.h"

namespace ts::TS_ISA {

// A matrix a[i * row_stride + k * column_stride] as the left factor. A panel is panel[k * rows + i].
template <class T>
struct LeftStrided {
  static constexpr bool kDirect = false;
  const T* a;
  int64_t row_stride, column_stride;
  void panel(T* buffer, int64_t i0, int rows, int64_t k0, int64_t depth) const {
    const T* src = a + i0 * row_stride + k0 * column_stride;
    // Whole vectors are stored: the next step overwrites what lies beyond its rows.
    if (column_stride == 1) {
      transpose_whole<T>(buffer, rows, src, row_stride, depth);
    } else if (row_stride == 1) {
      // And loaded where they end within the next step's rows, which are part of the matrix.
      const int64_t whole = rows <= kLanes<T> && column_stride + rows >= kLanes<T> ? depth - 1 : 0;
      for (int64_t k = 0; k < whole; ++k) store<T>(buffer + k * rows, load<T>(src + k * column_stride));
      for (int64_t k = whole; k < depth; ++k)
        for (int i = 0; i < rows; i += kLanes<T>)
          store<T>(buffer + k * rows + i, load_n<T>(src + k * column_stride + i, min_of(rows - i, kLanes<T>)));
    } else {
      for (int64_t k = 0; k < depth; ++k)
        for (int i = 0; i < rows; ++i) buffer[k * rows + i] = src[k * column_stride + i * row_stride];
    }
  }
  void panel(int32_t* buffer, int64_t i0, int rows, int64_t k0, int64_t depth) const {
    const T* src = a + i0 * row_stride + k0 * column_stride;
    if (column_stride == 1) {
      transpose_pairs(buffer, rows, src, row_stride, rows, depth);
    } else {  // row_stride == 1
      for (int64_t k = 0; k < depth; k += 2, src += 2 * column_stride)
        for (int i = 0; i < rows; i += kLanes<int32_t>)
          store<int32_t>(buffer + k / 2 * rows + i, zip_pairs(src + i, k + 1 < depth ? src + column_stride + i : nullptr,
                                                              min_of(rows - i, kLanes<int32_t>)));
    }
  }
  // Whether the unit can read whole rows of steps as they lie.
  bool lie_in_lines(int64_t depth) const { return sizeof(T) == sizeof(bf16) && column_stride == 1 && row_stride % 2 == 0 && depth % (2 * kTile) == 0; }
  const int32_t* line(int64_t i, int64_t k) const { return reinterpret_cast<const int32_t*>(a + i * row_stride + k); }
  // A panel for the matrix unit (amx.h), filled up with zeros along K.
  void lines(int32_t* buffer, int64_t i0, int rows, int64_t k0, int64_t depth) const {
    const T* src = a + i0 * row_stride + k0 * column_stride;
    for (int64_t k = 0; k < depth; k += 2 * kTile, buffer += kTile * kPanel) {
      const int here = static_cast<int>(min_of<int64_t>(2 * kTile, depth - k));
      if (column_stride == 1) {
        for (int i = 0; i < rows; ++i) store<int32_t>(buffer + i * kTile, load_pairs(src + i * row_stride + k, here));
        continue;
      }  // row_stride == 1
      if (here < 2 * kTile) std::memset(buffer, 0, sizeof(int32_t) * kTile * kPanel);
      transpose_rows<int32_t>(buffer, kTile, lanes_of<bf16>(here), rows, [&](int64_t pair, int64_t i, int n) {
        const T* low = src + (k + 2 * pair) * column_stride + i;
        return zip_pairs(low, 2 * pair + 1 < here ? low + column_stride : nullptr, n);
      });
    }
  }
};

// A matrix a[i * pitch + k] as the left factor, read as it lies: each of a tile's rows through a pointer of its own. Without
// packing 16 columns of C take 0.7 of the time, 64 columns 0.9.
template <class T>
struct LeftDirect {
  static constexpr bool kDirect = true;
  const T* a;
  int64_t pitch;
};
constexpr int64_t kDirectColumns = 64;  // columns of C up to which packing the left factor does not pay

// A matrix b[k * row_stride + j * column_stride] as the right factor. A panel is panel[k * kColumns + j], zero beyond columns.
template <class T>
struct RightStrided {
  const T* b;
  int64_t row_stride, column_stride;
  bool by_rows() const { return column_stride == 1; }
  const T* row(int64_t k, int64_t j) const { return b + k * row_stride + j; }
  void panel(T* buffer, int64_t k0, int64_t depth, int64_t j0, int columns) const {
    constexpr int W = kColumns<T>;
    const T* src = b + k0 * row_stride + j0 * column_stride;
    if (column_stride == 1) {
      const int low = min_of(columns, W / 2);
      for (int64_t k = 0; k < depth; ++k) {
        const T* row = src + k * row_stride;
        __builtin_prefetch(row + kAhead * row_stride);  // rows may be pages apart, where no hardware foresees the next
        store<T>(buffer + k * W, load_some<T>(row, low));
        store<T>(buffer + k * W + W / 2, load_some<T>(row + W / 2, columns - low));
      }
    } else {
      if (columns < W) std::memset(buffer, 0, sizeof(T) * W * depth);
      if (row_stride == 1) transpose_copy<T>(buffer, W, src, column_stride, columns, depth);
      else
        for (int64_t k = 0; k < depth; ++k)
          for (int j = 0; j < columns; ++j) buffer[k * W + j] = src[k * row_stride + j * column_stride];
    }
  }
  void panel(int32_t* buffer, int64_t k0, int64_t depth, int64_t j0, int columns) const {
    constexpr int W = kColumns<bf16>, L = W / 2;
    const T* src = b + k0 * row_stride + j0 * column_stride;
    if (column_stride == 1) {
      const int low = min_of(columns, L), high = columns - low;
      for (int64_t k = 0; k < depth; k += 2, src += 2 * row_stride, buffer += W) {
        const T* next = k + 1 < depth ? src + row_stride : nullptr;
        store<int32_t>(buffer, zip_pairs(src, next, low));
        store<int32_t>(buffer + L, zip_pairs(src + L, next ? next + L : nullptr, high));
      }
    } else {  // row_stride == 1
      if (columns < W) std::memset(buffer, 0, sizeof(int32_t) * W * lanes_of<bf16>(depth));
      transpose_pairs(buffer, W, src, column_stride, columns, depth);
    }
  }
};

}  // namespace ts::TS_ISA
