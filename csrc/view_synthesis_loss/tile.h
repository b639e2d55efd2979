// View-synthesis loss on CPU: one tile, at every scale. Sources are looked up row by row, as the photometric error needs
// them; gradients follow a few rows behind.
#pragma once

#include <cstring>

#include "../photometric_error/tile.h"
#include "view_synthesis_loss.h"

namespace mcd::MCD_TARGET {

// Images whose three channels lie side by side, padded to four, with the last row and column repeated once: the four
// pixels of a bilinear look-up are then four loads, of all channels at once.
template <typename T> struct PackedImages {
  T* data;  // [images, H + 1, W + 1, 4]
  int height, width;

  MCD_HD int64_t row_size() const { return 4 * (int64_t(width) + 1); }
  MCD_HD int64_t image_size() const { return (height + 1) * row_size(); }
};

// The part of a smaller depth that a tile reads, and gives a gradient to.
struct SmallRegion {
  int top, height, left, width;

  template <typename T> static MCD_HD SmallRegion of(const Tile& tile, const DepthScale<T>& scale) {
    const T ratio_y = T(scale.height) / tile.height, ratio_x = T(scale.width) / tile.width;
    const auto first_row = between<T>(T(tile.top), ratio_y, scale.height);
    const auto last_row = between<T>(T(tile.bottom - 1), ratio_y, scale.height);
    const auto first_column = between<T>(T(tile.left), ratio_x, scale.width);
    const auto last_column = between<T>(T(tile.right - 1), ratio_x, scale.width);
    return {first_row.low, last_row.high - first_row.low + 1, first_column.low, last_column.high - first_column.low + 1};
  }
};

template <typename T> struct LossTile {
  using Errors = PhotometricTile<T>;
  using V = Pack<T>;
  static constexpr int kRing = Errors::kRing, kStep = kLanes<V>;

  const ViewSynthesisParams<T>& p;
  const Tile& tile;
  int64_t b;
  Errors errors;
  const T* reference;  // [3, H, W]
  const T* sources;    // [S, H + 1, W + 1, 4] packed
  PackedImages<T> packed;
  int64_t stride;
  int first_column, count, begin, end;  // columns, and those of them that are the tile's own
  T *identity, *depths, *slopes, *looks, *grad_x, *grad_y, *grad_depth, *grad_q, *looked_up, *small, *camera_sums;
  T* tap_weight;
  int32_t *index, *tap_low, *tap_high;

  static MCD_HD int small_rows(const ViewSynthesisParams<T>& p, const Tile& tile) {
    int rows = 0;
    for (int s = 0; s < p.scale_count; ++s) rows = max(rows, SmallRegion::of(tile, p.scales[s]).height);
    return rows;
  }
  static MCD_HD int rows_needed(const ViewSynthesisParams<T>& p, const Tile& tile) {
    return Errors::rows_needed(p.sources) + tile.rows() + kRing + p.sources * (kRing * 9 + kCameraSums) + 5 + 12 +
           small_rows(p, tile) + 1;
  }

  MCD_HD LossTile(
      const ViewSynthesisParams<T>& p, const Tile& tile, int64_t b, const T* reference, const T* sources,
      const PackedImages<T>& packed, Scratch<T>& scratch, Scratch<int32_t>& integers)
      : p(p), tile(tile), b(b), errors(tile, p.weights, p.sources, scratch), reference(reference), sources(sources),
        packed(packed), stride(scratch.stride()), first_column(tile.first_column()), count(scratch.count()),
        begin(tile.left - first_column), end(tile.right - first_column) {
    identity = scratch.take(tile.rows());
    depths = scratch.take(kRing);
    slopes = scratch.take(p.sources * kRing * 6);
    looks = scratch.take(p.sources * kRing * 3);
    grad_x = scratch.take(1), grad_y = scratch.take(1), grad_depth = scratch.take(1), grad_q = scratch.take(2);
    looked_up = scratch.take(12);
    small = scratch.take(small_rows(p, tile));
    camera_sums = scratch.take(p.sources * kCameraSums);
    tap_weight = scratch.take(1);
    index = integers.take(1), tap_low = integers.take(1), tap_high = integers.take(1);
  }

  MCD_HD T* identity_row(int y) const { return identity + (y - tile.first_row()) * stride; }
  MCD_HD T* depth_row(int y) const { return depths + y % kRing * stride; }
  // Derivative of channel c of a warped source by its position's x (k = 0) or y (k = 1).
  MCD_HD T* slope_row(int i, int y, int c, int k) const {
    return slopes + ((i * kRing + y % kRing) * 6 + 2 * c + k) * stride;
  }
  // u_x, u_y, scale (k = 0, 1, 2) of the projection.
  MCD_HD T* look_row(int i, int y, int k) const { return looks + ((i * kRing + y % kRing) * 3 + k) * stride; }
  // Sum k of source i, lane by lane.
  MCD_HD T* camera_sum(int i, int k) const { return camera_sums + (i * kCameraSums + k) * stride; }
  MCD_HD V columns_from(int j) const { return T(first_column + j) + iota<V>(); }

  MCD_HD void load_reference(int y) const {
    for (int c = 0; c < 3; ++c)
      std::memcpy(
          errors.reference_row(y, c), reference + (int64_t(c) * p.height + y) * p.width + first_column,
          tile.columns() * sizeof(T));
  }

  MCD_HD void find_identity() const {
    const auto copy = [&](int y) {
      load_reference(y);
      for (int i = 0; i < p.sources; ++i) {
        const T* in = sources + i * packed.image_size() + y * packed.row_size() + 4 * first_column;
        unpack(in, tile.columns(), errors.image_row(i, y, 0), stride);
      }
    };
    const auto keep = [&](int q) {
      errors.find_least(q, 0, p.sources, true);
      std::memcpy(identity_row(q), errors.least, count * sizeof(T));
    };
    errors.template walk<false>(copy, keep, [](int) {});
  }

  // Channels side by side -> a row for each channel, `row_step` apart.
  static MCD_HD void unpack(const T* in, int columns, T* row, int64_t row_step) {
    T *first = row, *second = row + row_step, *third = row + 2 * row_step;
#pragma omp simd
    for (int j = 0; j < columns; ++j) first[j] = in[4 * j], second[j] = in[4 * j + 1], third[j] = in[4 * j + 2];
  }

  // What turns a row of a smaller depth into the tile's columns.
  MCD_HD void find_taps(const DepthScale<T>& scale) const {
    const T ratio = T(scale.width) / p.width;
    for (int j = 0; j < count; ++j) {
      const auto tap = between<T>(T(min(first_column + j, p.width - 1)), ratio, scale.width);
      tap_low[j] = tap.low, tap_high[j] = tap.high, tap_weight[j] = tap.weight;
    }
  }
  MCD_HD void find_depth(const DepthScale<T>& scale, bool full, int y) const {
    T* out = depth_row(y);
    const T* plane = scale.depth + b * scale.height * scale.width;
    if (full) {
      std::memcpy(out, plane + int64_t(y) * p.width + first_column, tile.columns() * sizeof(T));
      return;
    }
    const auto tap = between<T>(T(y), T(scale.height) / p.height, scale.height);
    const T *low = plane + int64_t(tap.low) * scale.width, *high = plane + int64_t(tap.high) * scale.width;
    const int from = tap_low[0], columns = tap_high[count - 1] - from + 1;
    T* mixed = grad_depth;
    for (int j = 0; j < columns; ++j) mixed[j] = mix<T>(low[from + j], high[from + j], tap.weight);
    for (int j = 0; j < count; ++j) out[j] = mix<T>(mixed[tap_low[j] - from], mixed[tap_high[j] - from], tap_weight[j]);
  }

  // Row y of the warped source i, with its derivatives and where it was looked up.
  template <bool kGrad> MCD_HD void warp(const Camera<T>& camera, int i, int y) const {
    const T *depth = depth_row(y), *motion_x = errors.zeros, *motion_y = errors.zeros;
    if (p.motion) {
      const T* in = p.motion + ((b * p.sources + i) * 2 * p.height + y) * p.width + first_column;
      for (int k = 0; k < 2; ++k) std::memcpy(grad_q + k * stride, in + k * p.pixels(), tile.columns() * sizeof(T));
      motion_x = grad_q, motion_y = grad_q + stride;
    }
    T *u_x = look_row(i, y, 0), *u_y = look_row(i, y, 1), *scale = look_row(i, y, 2), *usable = errors.usable_row(i, y);
    for (int j = 0; j < count; j += kStep) {
      const Projection<V> at = look<V>(
          camera, columns_from(j), T(y), get<V>(depth + j), get<V>(motion_x + j), get<V>(motion_y + j));
      const Corner<V> to = corner<V>(at.u_x, at.u_y, p.height, p.width);
      store(index + j, to.row * (p.width + 1) + to.column, kStep);
      put<V>(grad_x + j, select<V>(is_nan(at.u_x), at.u_x, to.w_x));
      put<V>(grad_y + j, to.w_y);
      put<V>(u_x + j, at.u_x);
      put<V>(u_y + j, at.u_y);
      put<V>(scale + j, at.scale);
      put<V>(usable + j, select<V>(is_valid(at, p.height, p.width), splat<V>(1), V{}));
    }
    look_up<kGrad>(sources + i * packed.image_size());
    unpack(looked_up, count, errors.image_row(i, y, 0), stride);
    if constexpr (kGrad) {
      unpack(looked_up + 4 * stride, count, slope_row(i, y, 0, 0), 2 * stride);
      unpack(looked_up + 8 * stride, count, slope_row(i, y, 0, 1), 2 * stride);
    }
  }

  // Bilinear look-up at `index`, weights in grad_x and grad_y, all channels of a pixel at once: into `looked_up` go the
  // values, then the derivatives by x and by y.
  template <bool kGrad> MCD_HD void look_up(const T* source) const {
    using Pixel = typename PackOf<T, 4 * sizeof(T)>::type;
    const int64_t down = packed.row_size();
    T *values = looked_up, *by_x = looked_up + 4 * stride, *by_y = looked_up + 8 * stride;
    for (int j = 0; j < tile.columns(); ++j) {
      const T* at = source + 4 * int64_t(index[j]);
      const Pixel top_left = get<Pixel>(at), top_right = get<Pixel>(at + 4);
      const Pixel drop_left = get<Pixel>(at + down) - top_left, drop_right = get<Pixel>(at + down + 4) - top_right;
      const Pixel left = top_left + grad_y[j] * drop_left, across = top_right + grad_y[j] * drop_right - left;
      put<Pixel>(values + 4 * j, left + grad_x[j] * across);
      if constexpr (kGrad) {
        put<Pixel>(by_x + 4 * j, across);
        put<Pixel>(by_y + 4 * j, drop_left + grad_x[j] * (drop_right - drop_left));
      }
    }
  }

  // The loss of pixel row q at scale s, and what share each source's error has in it.
  MCD_HD void choose(int s, int q, double* loss, double* pixels) const {
    errors.find_least(q, 0, p.sources, !p.mask_invalid);
    const bool own = q >= tile.top && q < tile.bottom;
    T* keep = grad_depth;
    V row_loss{}, row_pixels{};
    for (int j = 0; j < count; j += kStep) {
      const V least = get<V>(errors.least + j), chosen = get<V>(errors.chosen + j), columns = T(j) + iota<V>();
      const Mask<V> kept = (least < get<V>(identity_row(q) + j)) & (get<V>(errors.any + j) != 0);
      const V one = select<V>(kept, splat<V>(1), V{});
      put<V>(keep + j, one);
      for (int i = 0; i < p.sources; ++i) put<V>(errors.share_row(i, q) + j, select<V>(chosen == T(i), one, V{}));
      const Mask<V> counted = kept & (columns >= T(begin)) & (columns < T(end));
      row_loss += select<V>(counted, least, V{});
      row_pixels += select<V>(counted, one, V{});
    }
    if (!own) return;
    *loss += sum(row_loss);
    *pixels += sum(row_pixels);
    if (s > 0) return;
    bool* out = p.auto_mask + (b * p.height + q) * p.width + first_column;
    for (int j = begin; j < end; ++j) out[j] = keep[j] != 0;
  }

  // Gradients of pixel row y at scale s.
  MCD_HD void finish(const Camera<T>* cameras, int s, int y) const {
    const DepthScale<T>& scale = p.scales[s];
    for (int i = 0; i < p.sources; ++i) {
      errors.find_gradients(i, y, [&](int c, int j, const V* grad) {
        // A choice: where there is no gradient the slope may be NaN.
        const Mask<V> moves = grad[0] != 0;
        const V by_x = select<V>(moves, grad[0] * get<V>(slope_row(i, y, c, 0) + j), V{});
        const V by_y = select<V>(moves, grad[0] * get<V>(slope_row(i, y, c, 1) + j), V{});
        put<V>(grad_x + j, c == 0 ? by_x : get<V>(grad_x + j) + by_x);
        put<V>(grad_y + j, c == 0 ? by_y : get<V>(grad_y + j) + by_y);
      });
      for (int j = 0; j < count; j += kStep)
        find_geometry_gradients(cameras[i], i, y, j, get<V>(grad_x + j), get<V>(grad_y + j));
      if (p.motion_grads) {
        T* out = p.motion_grads + (((s * p.batch + b) * p.sources + i) * 2 * p.height + y) * p.width + tile.left;
        for (int k = 0; k < 2; ++k)
          std::memcpy(out + k * p.pixels(), grad_q + k * stride + begin, (end - begin) * sizeof(T));
      }
    }
    if (p.full(s)) {
      T* out = scale.grad + (b * p.height + y) * p.width + tile.left;
      std::memcpy(out, grad_depth + begin, (end - begin) * sizeof(T));
      return;
    }
    const T ratio = T(scale.height) / p.height;
    const auto tap = between<T>(T(y), ratio, scale.height);
    const int top = between<T>(T(tile.top), ratio, scale.height).low;
    T *low = small + (tap.low - top) * stride, *high = small + (tap.high - top) * stride;
    for (int j = 0; j < count; j += kStep) {
      const V grad = get<V>(grad_depth + j);
      put<V>(low + j, get<V>(low + j) + (1 - tap.weight) * grad);
      put<V>(high + j, get<V>(high + j) + tap.weight * grad);
    }
  }

  // From the gradients by position: those of depth, motion and the camera's sums.
  MCD_HD void find_geometry_gradients(const Camera<T>& camera, int i, int y, int j, V by_x, V by_y) const {
    const V x = columns_from(j), columns = T(j) + iota<V>(), depth = get<V>(depth_row(y) + j);
    const Mask<V> own = (columns >= T(begin)) & (columns < T(end));
    Projection<V> at;
    for (int k = 0; k < 3; ++k) at.ray[k] = camera.A[3 * k] * x + (camera.A[3 * k + 1] * T(y) + camera.A[3 * k + 2]);
    at.u_x = select<V>(own, get<V>(look_row(i, y, 0) + j), nan<V>());
    at.u_y = select<V>(own, get<V>(look_row(i, y, 1) + j), nan<V>());
    at.scale = get<V>(look_row(i, y, 2) + j);
    V grad[3], sums[kCameraSums];
    look_grad<V>(at, p.height, p.width, by_x, by_y, grad);
    if (p.motion_grads) put<V>(grad_q + j, grad[0]), put<V>(grad_q + stride + j, grad[1]);
    const V to_depth = grad[0] * at.ray[0] + grad[1] * at.ray[1] + grad[2] * at.ray[2];
    put<V>(grad_depth + j, i == 0 ? to_depth : get<V>(grad_depth + j) + to_depth);
    for (int k = 0; k < kCameraSums; ++k) sums[k] = get<V>(camera_sum(i, k));
    add_camera_sums<V>(grad, select<V>(is_finite(depth), depth, V{}), x, splat<V>(T(y)), sums);
    for (int k = 0; k < kCameraSums; ++k) put<V>(camera_sum(i, k), sums[k]);
  }

  // Scale s: adds loss, pixels in the mask and camera sums to `out` [2 + S · kCameraSums], writes the gradient to the
  // region of a smaller depth to `small_grad`.
  MCD_HD void find_scale(const Camera<T>* cameras, int s, double* out, T* small_grad) const {
    const DepthScale<T>& scale = p.scales[s];
    const bool full = p.full(s);
    const SmallRegion region = SmallRegion::of(tile, scale);
    if (!full) find_taps(scale);
    for (int row = 0; row < (full ? 0 : region.height); ++row)
      for (int j = 0; j < count; ++j) small[row * stride + j] = 0;
    for (int k = 0; k < p.sources * kCameraSums; ++k) put<V>(camera_sums + k * stride, V{});

    const auto choose_row = [&](int q) { choose(s, q, out, out + 1); };
    if (p.need_grad) {
      const auto warp_row = [&](int y) {
        load_reference(y);
        find_depth(scale, full, y);
        for (int i = 0; i < p.sources; ++i) warp<true>(cameras[i], i, y);
      };
      errors.template walk<true>(warp_row, choose_row, [&](int y) { finish(cameras, s, y); });
    } else {
      const auto warp_row = [&](int y) {
        load_reference(y);
        find_depth(scale, full, y);
        for (int i = 0; i < p.sources; ++i) warp<false>(cameras[i], i, y);
      };
      errors.template walk<false>(warp_row, choose_row, [](int) {});
    }

    for (int k = 0; k < p.sources * kCameraSums; ++k) out[2 + k] += sum(get<V>(camera_sums + k * stride));
    if (full || !p.need_grad) return;
    for (int k = 0; k < region.height * region.width; ++k) small_grad[k] = 0;
    for (int j = begin; j < end; ++j) {
      const int low = tap_low[j] - region.left, high = tap_high[j] - region.left;
      for (int row = 0; row < region.height; ++row) {
        const T grad = small[row * stride + j];
        small_grad[row * region.width + low] += (1 - tap_weight[j]) * grad;
        small_grad[row * region.width + high] += tap_weight[j] * grad;
      }
    }
  }
};

}  // namespace mcd::MCD_TARGET
