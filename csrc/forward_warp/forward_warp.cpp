#include "forward_warp.h"

#include "../common/buffer.h"
#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

// The z-buffer of a sample: one task, which visits source pixels and their rays in order, so that the first of equals wins.
template <typename T, typename image_t> struct SplatSample {
  using V = Pack<T>;
  static constexpr int kStep = kLanes<V>;

  ForwardWarpParams<T, image_t> p;
  T* z;             // [B, H, W], 0 = hole
  int32_t* winner;  // [B, H, W]
  int16_t* ray;     // [B, H, W]

  MCD_HD void operator()(int64_t b) const {
    const Camera<T> there = p.cameras(b).there;
    T* nearest = z + b * p.pixels();
    int32_t* pixel_of = winner + b * p.pixels();
    int16_t* ray_of = ray + b * p.pixels();
    for (int64_t i = 0; i < p.pixels(); ++i) nearest[i] = T(__builtin_inff()), pixel_of[i] = -1, ray_of[i] = 0;

    const int rays = p.upscale * p.upscale;
    const Buffer<T> depths(rays * kStep);
    const Buffer<int32_t> cells(rays * kStep);
    for (int y = 0; y < p.height; ++y)
      for (int x = 0; x < p.width; x += kStep) {
        const int count = min(kStep, p.width - x);
        const int64_t at = int64_t(y) * p.width + x;
        const V depth = load<V>(p.depth + b * p.pixels() + at, count), columns = T(x) + iota<V>();
        V shift[3];
        p.template load_shift<V>(there, b, at, count, shift);
        for (int k = 0; k < rays; ++k) {
          const auto landing = land<V>(
              there, columns + p.offset(k % p.upscale), splat<V>(T(y) + p.offset(k / p.upscale)), depth, shift, p.height,
              p.width);
          store(depths.get() + k * kStep, landing.z, kStep);
          store(cells.get() + k * kStep, landing.cell, kStep);
        }
        for (int l = 0; l < count; ++l)
          for (int k = 0; k < rays; ++k) {
            const int32_t cell = cells[k * kStep + l];
            if (!(depths[k * kStep + l] < nearest[cell])) continue;
            nearest[cell] = depths[k * kStep + l];
            pixel_of[cell] = int32_t(at + l);
            ray_of[cell] = int16_t(k);
          }
      }
    for (int64_t i = 0; i < p.pixels(); ++i) nearest[i] = pixel_of[i] < 0 ? T(0) : nearest[i];
  }
};

template <typename T, typename image_t> struct ResampleRow {
  using V = Pack<T>;

  ForwardWarpParams<T, image_t> p;
  const T* z;
  const int32_t* winner;
  image_t* warped;  // [B, C, H, W]

  MCD_HD void operator()(int64_t row) const {
    const int64_t b = row / p.height;
    const int y = int(row % p.height);
    const WarpCameras<T> cameras = p.cameras(b);
    for (int x = 0; x < p.width; x += kLanes<V>) {
      const int count = min(kLanes<V>, p.width - x);
      const auto cells = look_at_cells<V>(p, cameras, z, winner, b, y, x, count);
      const Footprint<V> around = cells.around(p.height, p.width);
      for (int c = 0; c < p.channels; ++c) {
        const int64_t plane = (b * p.channels + c) * p.pixels();
        const V value = bilinear(load_patch<V>(p.attribute + plane, around), cells.corner.w_x, cells.corner.w_y);
        store(warped + plane + int64_t(y) * p.width + x, select<V>(cells.hit, value, V{}), count);
      }
    }
  }
};

// The gradients of a sample: one task, which scatters them to winners and attribute in order.
template <typename T, typename image_t> struct GradSample {
  using V = Pack<T>;
  static constexpr int kStep = kLanes<V>;

  ForwardWarpParams<T, image_t> p;
  const image_t* grad_warped;  // [B, C, H, W]
  const T* grad_z;             // [B, 1, H, W]
  const T* z;
  const int32_t* winner;
  const int16_t* ray;
  image_t* grad_attribute;  // [B, C, H, W] or null
  T* grad_depth;            // [B, 1, H, W] or null, then no gradient to the geometry
  T* grad_T;                // [B, 4, 4]
  T* grad_motion;           // [B, 3, H, W] or null

  MCD_HD void operator()(int64_t b) const {
    const WarpCameras<T> cameras = p.cameras(b);
    const int64_t attribute_size = p.channels * p.pixels();
    const Buffer<T> to_attribute(grad_attribute ? attribute_size : 0);
    for (int64_t i = 0; grad_depth && i < p.pixels(); ++i) grad_depth[b * p.pixels() + i] = 0;
    for (int64_t i = 0; grad_motion && i < 3 * p.pixels(); ++i) grad_motion[b * 3 * p.pixels() + i] = 0;
    double sums[kWarpSums] = {};
    for (int y = 0; y < p.height; ++y) {
      V row_sums[kWarpSums] = {};
      for (int x = 0; x < p.width; x += kStep) {
        const int count = min(kStep, p.width - x);
        const auto cells = look_at_cells<V>(p, cameras, z, winner, b, y, x, count);
        if (grad_depth) geometry(cameras, cells, b, y, x, count, row_sums);
        if (grad_attribute) scatter_attribute(cells, b, y, x, count, to_attribute.get());
      }
      for (int k = 0; k < kWarpSums; ++k) sums[k] += sum(row_sums[k]);
    }
    if (grad_depth) warp_camera_grad(p.K + 9 * b, p.T_dst_ref + 16 * b, sums, grad_T + 16 * b);
    for (int64_t i = 0; grad_attribute && i < attribute_size; i += kStep) {
      const int count = int(min<int64_t>(kStep, attribute_size - i));
      store(grad_attribute + b * attribute_size + i, load<V>(to_attribute.get() + i, count), count);
    }
  }

  MCD_HD void geometry(
      const WarpCameras<T>& cameras, const Cells<V>& cells, int64_t b, int y, int x, int count, V* sums) const {
    V x_ray{}, y_ray{}, to_motion[3];
    for (int l = 0; l < count; ++l) {
      const int32_t pixel = cells.winner[l];
      const int k = ray[b * p.pixels() + int64_t(y) * p.width + x + l];
      x_ray[l] = T(pixel % p.width) + p.offset(k % p.upscale);
      y_ray[l] = T(pixel / p.width) + p.offset(k / p.upscale);
    }
    const V to_z = cell_gradients<V>(
        p, cameras, cells, grad_warped, grad_z, b, y, x, count, x_ray, y_ray, sums, to_motion);
    const V to_depth = to_z * (cameras.there.A[6] * x_ray + (cameras.there.A[7] * y_ray + cameras.there.A[8]));
    for (int l = 0; l < count; ++l)
      if (cells.hit[l]) grad_depth[b * p.pixels() + cells.winner[l]] += to_depth[l];
    for (int k = 0; k < 3 && grad_motion; ++k) {
      T* out = grad_motion + (b * 3 + k) * p.pixels();
      for (int l = 0; l < count; ++l)
        if (cells.hit[l]) out[cells.winner[l]] += to_motion[k][l];
    }
  }

  MCD_HD void scatter_attribute(const Cells<V>& cells, int64_t b, int y, int x, int count, T* to_attribute) const {
    for (int c = 0; c < p.channels; ++c) {
      T* plane = to_attribute + c * p.pixels();
      const V upstream = load<V>(grad_warped + (b * p.channels + c) * p.pixels() + int64_t(y) * p.width + x, count);
      for (int l = 0; l < count; ++l) {
        if (!cells.hit[l]) continue;
        const int32_t column = cells.corner.column[l], row = cells.corner.row[l];
        const T w_x = cells.corner.w_x[l], bottom = cells.corner.w_y[l] * upstream[l], top = upstream[l] - bottom;
        const int right = column < p.width - 1 ? 1 : 0;
        T* upper = plane + int64_t(row) * p.width + column;
        T* lower = row < p.height - 1 ? upper + p.width : upper;
        upper[0] += (1 - w_x) * top;
        upper[right] += w_x * top;
        lower[0] += (1 - w_x) * bottom;
        lower[right] += w_x * bottom;
      }
    }
  }
};

}  // namespace

void forward_warp_fwd(
    const Tensor& attribute, const Tensor& depth, const Tensor& K, const Tensor& T_dst_ref, const Tensor& motion,
    int64_t upscale, const Tensor& warped, const Tensor& depth_dst, const Tensor& winner, const Tensor& ray,
    const Tensor&, const Tensor&, const Where& where) {
  dispatch(depth.dtype, attribute.dtype, [&](auto scalar, auto image) {
    using T = decltype(scalar);
    using image_t = decltype(image);
    const auto p = forward_warp_params<T, image_t>(attribute, depth, K, T_dst_ref, motion, upscale);
    T* z = depth_dst.as<T>();
    int32_t* pixels = winner.as<int32_t>();
    for_each_cpu(p.batch, where.threads, SplatSample<T, image_t>{p, z, pixels, ray.as<int16_t>()});
    for_each_cpu(
        p.batch * p.height, where.threads, ResampleRow<T, image_t>{p, z, pixels, warped.as<image_t>()});
  });
}

void forward_warp_bwd(
    const Tensor& grad_warped, const Tensor& grad_depth_dst, const Tensor& attribute, const Tensor& depth,
    const Tensor& K, const Tensor& T_dst_ref, const Tensor& motion, const Tensor& depth_dst, const Tensor& winner,
    const Tensor& ray, int64_t upscale, bool need_attribute, bool need_geometry, const Tensor& grad_attribute,
    const Tensor& grad_depth, const Tensor& grad_T, const Tensor& grad_motion, const Tensor&, const Tensor&,
    const Tensor&, const Tensor&, const Where& where) {
  dispatch(depth.dtype, attribute.dtype, [&](auto scalar, auto image) {
    using T = decltype(scalar);
    using image_t = decltype(image);
    const auto p = forward_warp_params<T, image_t>(attribute, depth, K, T_dst_ref, motion, upscale);
    for_each_cpu(
        p.batch, where.threads,
        GradSample<T, image_t>{
            p, grad_warped.as<image_t>(), grad_depth_dst.as<T>(), depth_dst.as<T>(), winner.as<int32_t>(),
            ray.as<int16_t>(), need_attribute ? grad_attribute.as<image_t>() : nullptr,
            need_geometry ? grad_depth.as<T>() : nullptr, grad_T.as<T>(),
            need_geometry && motion ? grad_motion.as<T>() : nullptr});
  });
}

}  // namespace mcd::MCD_TARGET
