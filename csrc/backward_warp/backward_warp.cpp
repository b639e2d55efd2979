#include "backward_warp.h"

#include <memory>

#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

template <typename Params> struct FwdRow {
  using scalar_t = typename Params::scalar;
  BackwardWarpFwd<Params> fwd;

  MCD_HD void operator()(int64_t row) const {
    using V = Pack<scalar_t>;
    const auto& p = fwd.params;
    const int64_t b = row / p.height;
    const int y = int(row % p.height);
    const Camera<scalar_t> camera = p.camera(b);
    int x = 0;  // whole packs know their size when compiled
    for (; x + kLanes<V> <= p.width; x += kLanes<V>) fwd.template pixels<V>(camera, b, y, x, kLanes<V>);
    if (x < p.width) fwd.template pixels<V>(camera, b, y, x, p.width - x);
  }
};

template <typename Params> struct BwdRow {
  using scalar_t = typename Params::scalar;
  BackwardWarpBwd<Params> bwd;

  MCD_HD void operator()(int64_t row) const {
    using V = Pack<scalar_t>;
    const auto& p = bwd.params;
    const int64_t b = row / p.height;
    const int y = int(row % p.height);
    const Camera<scalar_t> camera = p.camera(b);
    V sums[kSums] = {};
    for (int x = 0; x < p.width; x += kLanes<V>)
      bwd.template pixels<V>(camera, b, y, x, min(kLanes<V>, p.width - x), sums);
    for (int k = 0; k < kSums; ++k) bwd.sums[row * kSums + k] = sum(sums[k]);
  }
};

template <typename scalar_t> struct CameraGrad {
  BackwardWarpCameraGrad<scalar_t> grad;

  MCD_HD void operator()(int64_t b) const {
    double grad_A[9] = {}, grad_b[3] = {}, grad_motion_K[9] = {};
    for (int y = 0; y < grad.height; ++y) grad.add(b, y, grad_A, grad_b, grad_motion_K);
    grad.write(b, grad_A, grad_b, grad_motion_K);
  }
};

// One row of the small depth gradient from the large one.
template <typename scalar_t> struct DepthGradRow {
  const scalar_t* large;  // [B, H, W]
  scalar_t* small;        // [B, h, w]
  int height, width, small_height, small_width;

  MCD_HD void operator()(int64_t row) const {
    const scalar_t ratio_y = scalar_t(small_height) / height, ratio_x = scalar_t(small_width) / width;
    const int64_t b = row / small_height;
    const int i = int(row % small_height);
    const std::unique_ptr<scalar_t[]> collected(new scalar_t[width]());
    int first, last;
    readers(i, ratio_y, height, &first, &last);
    for (int y = first; y < last; ++y) {
      const scalar_t weight = weight_of<scalar_t>(i, between<scalar_t>(scalar_t(y), ratio_y, small_height));
      if (weight == 0) continue;  // a NaN there is not this row's
      const scalar_t* in = large + (b * height + y) * width;
      scalar_t* sum = collected.get();
#pragma omp simd
      for (int x = 0; x < width; ++x) sum[x] += weight * in[x];
    }
    scalar_t* out = small + row * small_width;
    for (int j = 0; j < small_width; ++j) out[j] = 0;
    for (int x = 0; x < width; ++x) {
      const auto tap = between<scalar_t>(scalar_t(x), ratio_x, small_width);
      out[tap.low] += (1 - tap.weight) * collected[x];
      out[tap.high] += tap.weight * collected[x];
    }
  }
};

// Scatters the gradient of one plane of the source: a single task a plane, so that the order of its sums is fixed.
template <typename Params> struct SourceGradPlane {
  using scalar_t = typename Params::scalar;
  BackwardWarpBwd<Params> bwd;
  typename Params::image* grad_source;  // [B, C, H, W]

  MCD_HD void operator()(int64_t plane) const {
    const auto& p = bwd.params;
    const int64_t b = plane / p.channels;
    const Camera<scalar_t> camera = p.camera(b);
    const auto* grad = bwd.grad_warped + plane * p.pixels();
    const std::unique_ptr<scalar_t[]> sum(new scalar_t[p.pixels()]());
    for (int y = 0; y < p.height; ++y)
      for (int x = 0; x < p.width; ++x) {
        const auto seen = look<scalar_t>(p, camera, b, y, x, 1);
        if (!seen.usable) continue;
        const auto at = corner(seen.at.u_x, seen.at.u_y, p.height, p.width);
        const int right = at.column < p.width - 1 ? 1 : 0;
        scalar_t* upper = sum.get() + int64_t(at.row) * p.width + at.column;
        scalar_t* lower = at.row < p.height - 1 ? upper + p.width : upper;
        const scalar_t upstream = load<scalar_t>(grad + int64_t(y) * p.width + x, 1);
        const scalar_t bottom = at.w_y * upstream, top = upstream - bottom;
        upper[0] += (1 - at.w_x) * top;
        upper[right] += at.w_x * top;
        lower[0] += (1 - at.w_x) * bottom;
        lower[right] += at.w_x * bottom;
      }
    for (int64_t i = 0; i < p.pixels(); ++i) store(grad_source + plane * p.pixels() + i, sum[i], 1);
  }
};

}  // namespace

void backward_warp_fwd(
    const Tensor& source, const Tensor& depth, const Tensor& K, const Tensor& T_src_ref, const Tensor& motion,
    bool return_coords, const Tensor& warped, const Tensor& coords, const Tensor& valid, const Where& where) {
  dispatch_warp(source, depth, K, T_src_ref, motion, [&](auto params) {
    using Params = decltype(params);
    const BackwardWarpFwd<Params> fwd{
        params, warped.as<typename Params::image>(), return_coords ? coords.as<typename Params::scalar>() : nullptr,
        return_coords ? valid.as<bool>() : nullptr};
    for_each_cpu(params.rows(), where.threads, FwdRow<Params>{fwd});
  });
}

void backward_warp_bwd(
    const Tensor& grad_warped, const Tensor& source, const Tensor& depth, const Tensor& K, const Tensor& T_src_ref,
    const Tensor& motion, bool need_source, bool need_geometry, const Tensor& grad_source, const Tensor& grad_depth,
    const Tensor& grad_K, const Tensor& grad_T, const Tensor& grad_motion, const Tensor& sums,
    const Tensor& large_grad_depth, const Tensor&, const Where& where) {
  dispatch_warp(source, depth, K, T_src_ref, motion, [&](auto params) {
    using Params = decltype(params);
    using scalar_t = typename Params::scalar;
    using image_t = typename Params::image;
    const Tensor& pixel_grad_depth = params.full_depth() ? grad_depth : large_grad_depth;
    const BackwardWarpBwd<Params> bwd{params, grad_warped.as<image_t>(), pixel_grad_depth.as<scalar_t>(),
                                      grad_motion.as<scalar_t>(), sums.as<scalar_t>()};
    if (need_geometry) {
      for_each_cpu(params.rows(), where.threads, BwdRow<Params>{bwd});
      const BackwardWarpCameraGrad<scalar_t> camera{params.K,           params.T_src_ref,      bwd.sums,
                                                    grad_K.as<scalar_t>(), grad_T.as<scalar_t>(), params.height};
      for_each_cpu(params.batch, where.threads, CameraGrad<scalar_t>{camera});
      if (!params.full_depth())
        for_each_cpu(
            params.batch * params.depth_height, where.threads,
            DepthGradRow<scalar_t>{bwd.grad_depth, grad_depth.as<scalar_t>(), params.height, params.width,
                                   params.depth_height, params.depth_width});
    }
    if (need_source)
      for_each_cpu(
          params.batch * params.channels, where.threads, SourceGradPlane<Params>{bwd, grad_source.as<image_t>()});
  });
}

}  // namespace mcd::MCD_TARGET
