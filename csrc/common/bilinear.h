// Bilinear look-up in an image at clamped coordinates, and bilinear upsampling with its adjoint.
#pragma once

#include "lanes.h"

namespace mcd::MCD_TARGET {

// Clamped to [0, limit]; NaN becomes the limit.
template <typename V> MCD_HD V clamp_coord(V u, Scalar<V> limit) {
#ifdef __CUDA_ARCH__
  return fmax(fmin(u, limit), V(0));  // two instructions: of NaN and a number both take the number
#else
  return max(select<V>(u < limit, u, splat<V>(limit)), V{});
#endif
}
// Whether a gradient passes the clamp.
template <typename V> MCD_HD Mask<V> moves_freely(V u, Scalar<V> limit) { return (u >= 0) & (u < limit); }

// A point among pixels: the one to its upper left, and the weights of the right and lower neighbours.
template <typename V> struct Corner {
  Int<V> column, row;
  V w_x, w_y;
};
template <typename V> MCD_HD Corner<V> corner(V u_x, V u_y, int height, int width) {
  const V x = clamp_coord(u_x, Scalar<V>(width - 1)), y = clamp_coord(u_y, Scalar<V>(height - 1));
  const Int<V> column = convert<Int<V>>(x), row = convert<Int<V>>(y);
  return {column, row, x - convert<V>(column), y - convert<V>(row)};
}

// Where the pixels around a point lie in a plane, the same in every channel. Pairs of neighbours never reach beyond the
// row: in its last column the pair before it is read.
template <typename V> struct Footprint {
  Indices<V> top, bottom;
  Mask<V> last_column;
  bool has_pairs;
};
template <typename V> MCD_HD Footprint<V> footprint(const Corner<V>& at, int height, int width) {
  const Int<V> left = max<Int<V>>(min<Int<V>>(at.column, splat<Int<V>>(width - 2)), Int<V>{});
  const Int<V> below = min<Int<V>>(at.row + 1, splat<Int<V>>(height - 1));
  return {Indices<V>(at.row * width + left), Indices<V>(below * width + left), as_mask<V>(at.column > left), width > 1};
}

// The four pixels around a point; beyond the far borders stands the border.
template <typename V> struct Patch {
  Pair<V> top, bottom;
};
template <typename V, typename Image> MCD_HD Patch<V> load_patch(const Image* plane, const Footprint<V>& at) {
  if (!at.has_pairs) {
    const V top = gather<V>(plane, at.top), bottom = gather<V>(plane, at.bottom);
    return {{top, top}, {bottom, bottom}};
  }
  Patch<V> patch{gather_pair<V>(plane, at.top), gather_pair<V>(plane, at.bottom)};
  patch.top.left = select<V>(at.last_column, patch.top.right, patch.top.left);
  patch.bottom.left = select<V>(at.last_column, patch.bottom.right, patch.bottom.left);
  return patch;
}
// Asks for what lies a row below a look-up: a pack of the next row of pixels is likely to look there.
template <typename V, typename Image> MCD_HD void prefetch_below(const Image* plane, const Footprint<V>& at, int width) {
#ifndef __CUDACC__
  __builtin_prefetch(plane + at.bottom.at[kLanes<V> - 1] + width, 0, 3);
#endif
}
template <typename V> MCD_HD V bilinear(const Patch<V>& v, V w_x, V w_y) {
  const V top = v.top.left + w_x * (v.top.right - v.top.left);
  const V bottom = v.bottom.left + w_x * (v.bottom.right - v.bottom.left);
  return top + w_y * (bottom - top);
}
template <typename V> MCD_HD void bilinear_grad(const Patch<V>& v, V w_x, V w_y, V* by_x, V* by_y) {
  const V top = v.top.right - v.top.left, bottom = v.bottom.right - v.bottom.left;
  *by_x = top + w_y * (bottom - top);
  *by_y = (v.bottom.left - v.top.left) + w_x * (bottom - top);
}

// Upsampling aligns pixel areas: pixel i of the large image reads (i + 1/2) · ratio - 1/2 of the small one.
template <typename V> struct Between {
  Int<V> low, high;
  V weight;  // of `high`
};
template <typename V> MCD_HD Between<V> between(V i, Scalar<V> ratio, int size) {
  const V at = max((i + Scalar<V>(0.5)) * ratio - Scalar<V>(0.5), V{});
  const Int<V> last = splat<Int<V>>(size - 1), low = min<Int<V>>(convert<Int<V>>(at), last);
  return {low, min<Int<V>>(low + 1, last), at - convert<V>(low)};
}
template <typename V> MCD_HD V mix(V low, V high, V weight) { return (1 - weight) * low + weight * high; }

// Small image pixel j is read by large pixels in [first, last): a superset, whose outsiders have weight 0.
template <typename T> MCD_HD void readers(int j, T ratio, int size, int* first, int* last) {
  *first = max(int((T(j) - T(0.5)) / ratio - T(0.5)) - 1, 0);
  *last = min(int((T(j) + T(1.5)) / ratio - T(0.5)) + 2, size);
}
template <typename T> MCD_HD T weight_of(int j, const Between<T>& tap) {
  return (tap.low == j ? 1 - tap.weight : T(0)) + (tap.high == j ? tap.weight : T(0));
}
// The adjoint of upsampling at one pixel of the small image: what reads it in the large one, `image`. NaN reaches only
// those that it has a weight for.
template <typename T>
MCD_HD T gather_readers(
    const T* image, int row, int column, int height, int width, int small_height, int small_width) {
  const T ratio_y = T(small_height) / height, ratio_x = T(small_width) / width;
  int top, bottom, left, right;
  readers(row, ratio_y, height, &top, &bottom);
  readers(column, ratio_x, width, &left, &right);
  T total = 0;
  for (int y = top; y < bottom; ++y) {
    const T weight_y = weight_of(row, between(T(y), ratio_y, small_height));
    T line = 0;
    for (int x = left; x < right; ++x) {
      const T weight = weight_of(column, between(T(x), ratio_x, small_width));
      line += weight != 0 ? weight * image[int64_t(y) * width + x] : T(0);
    }
    total += weight_y != 0 ? weight_y * line : T(0);
  }
  return total;
}

}  // namespace mcd::MCD_TARGET
