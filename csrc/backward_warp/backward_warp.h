// Backward warp: what its CPU loops and CUDA kernels share. The formula stands in mcd/ops/backward_warp.py.
#pragma once

#include "../common/bilinear.h"
#include "../common/camera.h"
#include "../common/dispatch.h"

namespace mcd::MCD_TARGET {

// Channels of the motion: 0 (none), 2 (pixel · depth) or 3 (translation in the source frame). On CUDA they are known when
// kernels are compiled, which saves registers; on CPU a branch costs nothing, and a copy for each kind minutes of compiling.
constexpr int kAnyMotion = -1;

template <typename scalar_t, typename image_t, int kMotion> struct BackwardWarpParams {
  using scalar = scalar_t;
  using image = image_t;
  static constexpr int kMotionChannels = kMotion;

  const image_t* source;      // [B, C, H, W]
  const scalar_t* depth;      // [B, h, w]
  const scalar_t* K;          // [B, 3, 3]
  const scalar_t* T_src_ref;  // [B, 4, 4]
  const scalar_t* motion;     // [B, motion_channels(), H, W]
  int64_t batch;
  int channels, height, width, depth_height, depth_width, channels_of_motion;

  MCD_HD int motion_channels() const { return kMotion == kAnyMotion ? channels_of_motion : kMotion; }
  MCD_HD int64_t rows() const { return batch * height; }
  MCD_HD int64_t pixels() const { return int64_t(height) * width; }
  MCD_HD bool full_depth() const { return depth_height == height && depth_width == width; }
  MCD_HD Camera<scalar_t> camera(int64_t b) const { return make_camera(K + 9 * b, T_src_ref + 16 * b); }

  // Depth of the reference at `count` pixels from (x, y).
  template <typename V> MCD_HD V depth_at(int64_t b, int y, int x, int count) const {
    if (full_depth()) return load<V>(depth + b * pixels() + int64_t(y) * width + x, count);
    const scalar_t ratio_y = scalar_t(depth_height) / height, ratio_x = scalar_t(depth_width) / width;
    const auto row = between<scalar_t>(scalar_t(y), ratio_y, depth_height);
    const auto column = between<V>(scalar_t(x) + iota<V>(), ratio_x, depth_width);
    const scalar_t* low = depth + (b * depth_height + row.low) * depth_width;
    const scalar_t* high = depth + (b * depth_height + row.high) * depth_width;
    return mix(mix(gather<V>(low, column.low), gather<V>(low, column.high), column.weight),
               mix(gather<V>(high, column.low), gather<V>(high, column.high), column.weight), splat<V>(row.weight));
  }
};

// Where reference pixels look. An unusable one (depth or motion not finite, or 0/0) reads NaN without gradient.
template <typename V> struct Look {
  Projection<V> at;
  V depth, motion[3];
  Mask<V> usable;
};
template <typename V, typename Params>
MCD_HD Look<V> look(const Params& p, const Camera<Scalar<V>>& camera, int64_t b, int y, int x, int count) {
  using scalar_t = Scalar<V>;
  const int motion_channels = p.motion_channels();
  Look<V> look;
  look.depth = p.template depth_at<V>(b, y, x, count);
  look.usable = is_finite(look.depth);
  const int64_t pixel = int64_t(y) * p.width + x;
  V shift[3] = {};
  if (motion_channels > 0) {
    for (int i = 0; i < 3; ++i) {
      const bool given = i < motion_channels;
      look.motion[i] = given ? load<V>(p.motion + (b * motion_channels + i) * p.pixels() + pixel, count) : V{};
      look.usable = look.usable & is_finite(look.motion[i]);
    }
    for (int i = 0; i < 3; ++i) look.motion[i] = select<V>(look.usable, look.motion[i], V{});
    if (motion_channels == 3)
      apply(camera.K, look.motion, shift);
    else
      shift[0] = look.motion[0], shift[1] = look.motion[1];
  }
  look.depth = select<V>(look.usable, look.depth, splat<V>(1));
  look.at = project<V>(camera, scalar_t(x) + iota<V>(), scalar_t(y), look.depth, shift);
  look.usable = look.usable & (look.at.u_x == look.at.u_x) & (look.at.u_y == look.at.u_y);
  return look;
}

// Both directions work on `count` <= kLanes<V> pixels of row y from column x on.
template <typename Params> struct BackwardWarpFwd {
  using scalar_t = typename Params::scalar;
  using image_t = typename Params::image;

  Params params;
  image_t* warped;   // [B, C, H, W]
  scalar_t* coords;  // [B, 2, H, W] or null
  bool* valid;       // [B, H, W] or null

  template <typename V>
  MCD_HD void pixels(const Camera<scalar_t>& camera, int64_t b, int y, int x, int count) const {
    const auto& p = params;
    const Look<V> seen = look<V>(p, camera, b, y, x, count);
    const Corner<V> at = corner(seen.at.u_x, seen.at.u_y, p.height, p.width);
    const Footprint<V> around = footprint(at, p.height, p.width);
    const int64_t pixel = int64_t(y) * p.width + x;
    for (int c = 0; c < p.channels; ++c) {
      const int64_t plane = (b * p.channels + c) * p.pixels();
      const V value = bilinear(load_patch<V>(p.source + plane, around), at.w_x, at.w_y);
      store(warped + plane + pixel, select<V>(seen.usable, value, nan<V>()), count);
      prefetch_below(p.source + plane, around, p.width);
    }
    if (coords) write_coords(b, pixel, seen, count);
  }

  template <typename V> MCD_HD void write_coords(int64_t b, int64_t pixel, const Look<V>& seen, int count) const {
    const scalar_t right = scalar_t(params.width - 1), bottom = scalar_t(params.height - 1);
    const V u_x = seen.at.u_x, u_y = seen.at.u_y;
    scalar_t* out = coords + 2 * b * params.pixels() + pixel;
    store(out, select<V>(seen.usable, clamp_coord(u_x, right), nan<V>()), count);
    store(out + params.pixels(), select<V>(seen.usable, clamp_coord(u_y, bottom), nan<V>()), count);
    const Mask<V> inside = (u_x >= 0) & (u_x <= right) & (u_y >= 0) & (u_y <= bottom);
    const Mask<V> is_valid = seen.usable & inside & (seen.at.q_z > scalar_t(kNearest));
    store_mask<V>(valid + b * params.pixels() + pixel, is_valid, count);
  }
};

// Sums over the pixels of one row, from which the gradients to the camera follow (the row's y is applied to the sums): of
// grad_q · depth · x, grad_q · depth, grad_q, and grad_q · motionᵀ of a 3-D motion.
enum { kSumDepthX = 0, kSumDepth = 3, kSum = 6, kSumMotion = 9, kSums = 18 };

template <typename Params> struct BackwardWarpBwd {
  using scalar_t = typename Params::scalar;
  using image_t = typename Params::image;

  Params params;
  const image_t* grad_warped;  // [B, C, H, W]
  scalar_t* grad_depth;        // [B, H, W], before the adjoint of upsampling
  scalar_t* grad_motion;       // [B, motion_channels(), H, W]
  scalar_t* sums;              // [B, H, kSums]

  // Writes the pixels' gradients and adds to the sums of their row.
  template <typename V>
  MCD_HD void pixels(const Camera<scalar_t>& camera, int64_t b, int y, int x, int count, V* sums) const {
    const auto& p = params;
    const Look<V> seen = look<V>(p, camera, b, y, x, count);
    const Corner<V> at = corner(seen.at.u_x, seen.at.u_y, p.height, p.width);
    const Footprint<V> around = footprint(at, p.height, p.width);
    const int64_t pixel = int64_t(y) * p.width + x;
    V grad_x{}, grad_y{};
    for (int c = 0; c < p.channels; ++c) {
      const int64_t plane = (b * p.channels + c) * p.pixels();
      V by_x, by_y;
      bilinear_grad(load_patch<V>(p.source + plane, around), at.w_x, at.w_y, &by_x, &by_y);
      const V upstream = load<V>(grad_warped + plane + pixel, count);
      prefetch_below(p.source + plane, around, p.width);
      grad_x += upstream * by_x;
      grad_y += upstream * by_y;
    }
    const Mask<V> moves_x = seen.usable & moves_freely(seen.at.u_x, scalar_t(p.width - 1));
    const Mask<V> moves_y = seen.usable & moves_freely(seen.at.u_y, scalar_t(p.height - 1));
    V grad_q[3];
    project_grad(seen.at, select<V>(moves_x, grad_x, V{}), select<V>(moves_y, grad_y, V{}), grad_q);
    // A choice, not a product: u and its scale may be infinite where nothing moves.
    for (int i = 0; i < 3; ++i) grad_q[i] = select<V>(moves_x | moves_y, grad_q[i], V{});

    const V* ray = seen.at.ray;
    store(grad_depth + b * p.pixels() + pixel, grad_q[0] * ray[0] + grad_q[1] * ray[1] + grad_q[2] * ray[2], count);
    const int motion_channels = p.motion_channels();
    if (motion_channels > 0) {
      V grad_m[3] = {grad_q[0], grad_q[1], grad_q[2]};
      if (motion_channels == 3) apply_transposed(camera.K, grad_q, grad_m);
      for (int i = 0; i < 3; ++i)
        if (i < motion_channels)
          store(grad_motion + (b * motion_channels + i) * p.pixels() + pixel, grad_m[i], count);
    }
    const V columns = scalar_t(x) + iota<V>();
    for (int i = 0; i < 3; ++i) {
      const V by_depth = grad_q[i] * seen.depth;
      sums[kSumDepthX + i] += by_depth * columns;
      sums[kSumDepth + i] += by_depth;
      sums[kSum + i] += grad_q[i];
    }
    if (motion_channels == 3)
      for (int i = 0; i < 9; ++i) sums[kSumMotion + i] += grad_q[i / 3] * seen.motion[i % 3];
  }
};

// Gradients to K and T_src_ref of sample b from the sums of its rows.
template <typename scalar_t> struct BackwardWarpCameraGrad {
  const scalar_t *K, *T_src_ref, *sums;
  scalar_t *grad_K, *grad_T;
  int height;

  // Adds row y's sums.
  MCD_HD void add(int64_t b, int y, double* grad_A, double* grad_b, double* grad_motion_K) const {
    const scalar_t* row = sums + (b * height + y) * kSums;
    for (int i = 0; i < 3; ++i) {
      grad_A[3 * i] += row[kSumDepthX + i];
      grad_A[3 * i + 1] += double(row[kSumDepth + i]) * y;
      grad_A[3 * i + 2] += row[kSumDepth + i];
      grad_b[i] += row[kSum + i];
    }
    for (int i = 0; i < 9; ++i) grad_motion_K[i] += row[kSumMotion + i];
  }
  MCD_HD void write(int64_t b, const double* grad_A, const double* grad_b, const double* grad_motion_K) const {
    camera_grad(load_pose(K + 9 * b, T_src_ref + 16 * b), grad_A, grad_b, grad_motion_K, grad_K + 9 * b, grad_T + 16 * b);
  }
};

// Calls f(BackwardWarpParams<…>) with the types that the tensors have.
template <typename F>
void dispatch_warp(
    const Tensor& source, const Tensor& depth, const Tensor& K, const Tensor& T_src_ref, const Tensor& motion, F f) {
  dispatch(depth.dtype, source.dtype, [&](auto scalar, auto image) {
    const auto call = [&](auto channels) {
      using scalar_t = decltype(scalar);
      using image_t = decltype(image);
      f(BackwardWarpParams<scalar_t, image_t, channels>{
          source.as<image_t>(), depth.as<scalar_t>(), K.as<scalar_t>(), T_src_ref.as<scalar_t>(),
          motion.as<scalar_t>(), source.size[0], int(source.size[1]), int(source.size[2]), int(source.size[3]),
          int(depth.size[2]), int(depth.size[3]), motion ? int(motion.size[1]) : 0});
    };
#ifdef __CUDACC__
    if (!motion) return call(std::integral_constant<int, 0>{});
    if (motion.size[1] == 2) return call(std::integral_constant<int, 2>{});
    return call(std::integral_constant<int, 3>{});
#else
    call(std::integral_constant<int, kAnyMotion>{});
#endif
  });
}

}  // namespace mcd::MCD_TARGET
