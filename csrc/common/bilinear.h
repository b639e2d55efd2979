// Bilinear look-up in an image at clamped coordinates, and bilinear upsampling with its adjoint.
#pragma once

#include "host_device.h"

namespace mcd {

// Clamped to [0, limit]; NaN becomes the limit. By comparisons, so that it vectorises and no NaN survives.
template <typename T> MCD_HD T clamp_coord(T u, T limit) {
  const T below = u < limit ? u : limit;
  return below > 0 ? below : T(0);
}
// Whether a gradient passes the clamp.
template <typename T> MCD_HD bool moves_freely(T u, T limit) { return u >= 0 && u < limit; }

// The four pixels around a point: index of the first, steps to its right and lower neighbour (0 at the far border).
template <typename T> struct Corners {
  int32_t index, right, down;
  T w_x, w_y;
};
template <typename T> MCD_HD Corners<T> corners(T u_x, T u_y, int height, int width) {
  const T x = clamp_coord(u_x, T(width - 1)), y = clamp_coord(u_y, T(height - 1));
  const int32_t column = int32_t(x), row = int32_t(y);
  return {row * width + column, column < width - 1 ? 1 : 0, row < height - 1 ? width : 0, x - T(column), y - T(row)};
}

template <typename T> struct Patch {
  T top_left, top_right, bottom_left, bottom_right;
};
template <typename T, typename Image> MCD_HD Patch<T> load_patch(const Image* plane, const Corners<T>& at) {
  return {load<T>(plane[at.index]), load<T>(plane[at.index + at.right]), load<T>(plane[at.index + at.down]),
          load<T>(plane[at.index + at.down + at.right])};
}
template <typename T> MCD_HD T bilinear(const Patch<T>& v, T w_x, T w_y) {
  const T top = v.top_left + w_x * (v.top_right - v.top_left);
  const T bottom = v.bottom_left + w_x * (v.bottom_right - v.bottom_left);
  return top + w_y * (bottom - top);
}
template <typename T> MCD_HD void bilinear_grad(const Patch<T>& v, T w_x, T w_y, T* by_x, T* by_y) {
  const T top = v.top_right - v.top_left, bottom = v.bottom_right - v.bottom_left;
  *by_x = top + w_y * (bottom - top);
  *by_y = (v.bottom_left - v.top_left) + w_x * (bottom - top);
}

// Upsampling aligns pixel areas: pixel i of the large image reads (i + 1/2) · ratio - 1/2 of the small one.
template <typename T> struct Between {
  int low, high;
  T weight;  // of `high`
};
template <typename T> MCD_HD Between<T> between(int i, T ratio, int size) {
  const T at = max((T(i) + T(0.5)) * ratio - T(0.5), T(0));
  const int low = min(int(at), size - 1);
  return {low, low + (low < size - 1 ? 1 : 0), at - T(low)};
}
template <typename T> MCD_HD T mix(T low, T high, T weight) { return (1 - weight) * low + weight * high; }

// Small image pixel j is read by large pixels in [first, last): a superset, whose outsiders have weight 0.
template <typename T> MCD_HD void readers(int j, T ratio, int size, int* first, int* last) {
  *first = max(int((T(j) - T(0.5)) / ratio - T(0.5)) - 1, 0);
  *last = min(int((T(j) + T(1.5)) / ratio - T(0.5)) + 2, size);
}
template <typename T> MCD_HD T weight_of(int j, const Between<T>& tap) {
  return (tap.low == j ? 1 - tap.weight : T(0)) + (tap.high == j ? tap.weight : T(0));
}

}  // namespace mcd
