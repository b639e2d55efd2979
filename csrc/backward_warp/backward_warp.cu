#include "backward_warp.h"

#include "../common/fixed_point.cuh"
#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kThreads = 128;  // a block walks a row, neighbouring threads on neighbouring pixels
// Blocks that a multiprocessor is to hold, which bounds registers: to 128 in float, whose gathers 512 threads can hide.
template <typename Params> constexpr int kBlocks = sizeof(typename Params::scalar) == 4 ? 4 : 2;

template <typename Params>
__global__ void __launch_bounds__(kThreads, kBlocks<Params>) fwd_rows(BackwardWarpFwd<Params> fwd) {
  using scalar_t = typename Params::scalar;
  const auto& p = fwd.params;
  const int64_t b = blockIdx.x / p.height;
  const int y = int(blockIdx.x % p.height);
  __shared__ Camera<scalar_t> camera;
  if (threadIdx.x == 0) camera = p.camera(b);
  __syncthreads();
  for (int x = threadIdx.x; x < p.width; x += kThreads) fwd.template pixels<scalar_t>(camera, b, y, x, 1);
}

template <typename Params>
__global__ void __launch_bounds__(kThreads, kBlocks<Params>) bwd_rows(BackwardWarpBwd<Params> bwd) {
  using scalar_t = typename Params::scalar;
  constexpr int kUsed = Params::kMotionChannels == 3 ? kSums : kSumMotion;
  const auto& p = bwd.params;
  const int64_t b = blockIdx.x / p.height;
  const int y = int(blockIdx.x % p.height);
  __shared__ Camera<scalar_t> camera;
  if (threadIdx.x == 0) camera = p.camera(b);
  __syncthreads();
  scalar_t sums[kUsed] = {};
  for (int x = threadIdx.x; x < p.width; x += kThreads) bwd.template pixels<scalar_t>(camera, b, y, x, 1, sums);
  block_sum<kThreads>(sums);
  if (threadIdx.x == 0)
    for (int k = 0; k < kSums; ++k) bwd.sums[int64_t(blockIdx.x) * kSums + k] = k < kUsed ? sums[k] : scalar_t(0);
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) camera_grads(BackwardWarpCameraGrad<scalar_t> grad) {
  double sums[21] = {};  // grad_A, grad_b, grad_motion_K
  for (int y = threadIdx.x; y < grad.height; y += kThreads) grad.add(blockIdx.x, y, sums, sums + 9, sums + 12);
  block_sum<kThreads>(sums);
  if (threadIdx.x == 0) grad.write(blockIdx.x, sums, sums + 9, sums + 12);
}

// The adjoint of upsampling, a thread for each pixel of the small depth.
template <typename scalar_t> struct SmallDepthGrad {
  const scalar_t* large;  // [B, H, W]
  scalar_t* small;        // [B, h, w]
  int height, width, small_height, small_width;

  MCD_HD void operator()(int64_t i) const {
    const int column = int(i % small_width), row = int(i / small_width % small_height);
    const scalar_t* image = large + i / small_width / small_height * height * width;
    small[i] = gather_readers(image, row, column, height, width, small_height, small_width);
  }
};

template <typename Params> struct SourceGradPixel {
  using scalar_t = typename Params::scalar;
  BackwardWarpBwd<Params> bwd;
  FixedPoint sum;  // [B, C, H, W]

  __device__ void operator()(int64_t i) const {
    const auto& p = bwd.params;
    const int64_t b = i / p.pixels();
    const int y = int(i % p.pixels() / p.width), x = int(i % p.width);
    const auto seen = look<scalar_t>(p, p.camera(b), b, y, x, 1);
    if (!seen.usable) return;
    const auto at = corner(seen.at.u_x, seen.at.u_y, p.height, p.width);
    const int right = at.column < p.width - 1 ? 1 : 0, down = at.row < p.height - 1 ? p.width : 0;
    const double scale = sum.scale();
    for (int c = 0; c < p.channels; ++c) {
      const int64_t plane = (b * p.channels + c) * p.pixels();
      const int64_t upper = plane + int64_t(at.row) * p.width + at.column;
      const scalar_t upstream = load<scalar_t>(bwd.grad_warped + plane + int64_t(y) * p.width + x, 1);
      const scalar_t bottom = at.w_y * upstream, top = upstream - bottom;
      sum.add(upper, (1 - at.w_x) * top, scale);
      sum.add(upper + right, at.w_x * top, scale);
      sum.add(upper + down, (1 - at.w_x) * bottom, scale);
      sum.add(upper + down + right, at.w_x * bottom, scale);
    }
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
    if (params.rows() == 0) return;
    fwd_rows<<<unsigned(params.rows()), kThreads, 0, cudaStream_t(where.stream)>>>(fwd);
    check_launch("backward_warp_fwd");
  });
}

void backward_warp_bwd(
    const Tensor& grad_warped, const Tensor& source, const Tensor& depth, const Tensor& K, const Tensor& T_src_ref,
    const Tensor& motion, bool need_source, bool need_geometry, const Tensor& grad_source, const Tensor& grad_depth,
    const Tensor& grad_K, const Tensor& grad_T, const Tensor& grad_motion, const Tensor& sums,
    const Tensor& large_grad_depth, const Tensor& fixed_point, const Where& where) {
  dispatch_warp(source, depth, K, T_src_ref, motion, [&](auto params) {
    using Params = decltype(params);
    using scalar_t = typename Params::scalar;
    using image_t = typename Params::image;
    const auto stream = cudaStream_t(where.stream);
    const Tensor& pixel_grad_depth = params.full_depth() ? grad_depth : large_grad_depth;
    const BackwardWarpBwd<Params> bwd{params, grad_warped.as<image_t>(), pixel_grad_depth.as<scalar_t>(),
                                      grad_motion.as<scalar_t>(), sums.as<scalar_t>()};
    if (params.rows() == 0) return;
    if (need_geometry) {
      bwd_rows<<<unsigned(params.rows()), kThreads, 0, stream>>>(bwd);
      check_launch("backward_warp_bwd");
      const BackwardWarpCameraGrad<scalar_t> camera{params.K,           params.T_src_ref,      bwd.sums,
                                                    grad_K.as<scalar_t>(), grad_T.as<scalar_t>(), params.height};
      camera_grads<<<unsigned(params.batch), kThreads, 0, stream>>>(camera);
      check_launch("backward_warp_bwd");
      if (!params.full_depth())
        for_each_cuda(
            params.batch * params.depth_height * params.depth_width, where.stream, "backward_warp_bwd",
            SmallDepthGrad<scalar_t>{bwd.grad_depth, grad_depth.as<scalar_t>(), params.height, params.width,
                                     params.depth_height, params.depth_width});
    }
    if (need_source) {
      const int64_t count = params.batch * params.channels * params.pixels();
      const FixedPoint sum{fixed_point.as<unsigned long long>(), fixed_point.as<unsigned long long>() + count,
                           params.pixels()};
      clear_fixed_point(sum, count, bwd.grad_warped, count, where.stream, "backward_warp_bwd");
      for_each_cuda(
          params.batch * params.pixels(), where.stream, "backward_warp_bwd", SourceGradPixel<Params>{bwd, sum});
      read_fixed_point(sum, count, grad_source.as<image_t>(), where.stream, "backward_warp_bwd");
    }
  });
}

}  // namespace mcd::MCD_TARGET
