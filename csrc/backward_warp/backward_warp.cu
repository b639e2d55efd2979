#include "backward_warp.h"

#include "../common/fixed_point.cuh"
#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

// A block takes neighbouring rows of an image, two warps each, with one camera: as a dozen numbers of double precision it takes
// as long to find as hundreds of pixels.
constexpr int kThreads = 256, kRows = 4, kRowThreads = kThreads / kRows, kRowWarps = kRowThreads / 32;
// Blocks that a multiprocessor is to hold, which bounds registers.
template <typename Params, int of_floats> constexpr int kBlocks = sizeof(typename Params::scalar) == 4 ? of_floats : 1;

template <typename Params> int blocks_of(const Params& p) { return int(p.batch) * ((p.height + kRows - 1) / kRows); }
struct RowsOfBlock {
  int64_t b;
  int first, last;

  __device__ explicit RowsOfBlock(int height) {
    const int blocks = (height + kRows - 1) / kRows;
    b = blockIdx.x / blocks;
    first = int(blockIdx.x % blocks) * kRows;
    last = min(first + kRows, height);
  }
  // Calls f(y, x) for the pixels of the thread's row.
  template <typename F> __device__ void for_each_pixel(int width, const F& f) const {
    const int y = first + int(threadIdx.x) / kRowThreads;
    for (int x = threadIdx.x % kRowThreads; y < last && x < width; x += kRowThreads) f(y, x);
  }
};

template <typename Params>
__global__ void __launch_bounds__(kThreads, kBlocks<Params, 3>) fwd_rows(BackwardWarpFwd<Params> fwd) {
  using scalar_t = typename Params::scalar;
  const auto& p = fwd.params;
  const RowsOfBlock rows(p.height);
  __shared__ Camera<scalar_t> camera;
  if (threadIdx.x == 0) camera = p.camera(rows.b);
  __syncthreads();
  rows.for_each_pixel(p.width, [&](int y, int x) { fwd.template pixels<scalar_t>(camera, rows.b, y, x, 1); });
}

template <typename Params>
__global__ void __launch_bounds__(kThreads, kBlocks<Params, Params::kMotionChannels == 0 ? 3 : 2>)
    bwd_rows(BackwardWarpBwd<Params> bwd) {
  using scalar_t = typename Params::scalar;
  constexpr int kUsed = Params::kMotionChannels == 3 ? kSums : kSumMotion;
  static_assert(kSums <= 2 * kSumsOfWarp && kRows * kSums <= kThreads, "two sums over a warp, a thread for each of the rows'");
  const auto& p = bwd.params;
  const RowsOfBlock rows(p.height);
  __shared__ Camera<scalar_t> camera;
  __shared__ scalar_t of_warps[kRows][kRowWarps][2 * kSumsOfWarp];
  if (threadIdx.x == 0) camera = p.camera(rows.b);
  __syncthreads();
  scalar_t sums[kUsed] = {};
  rows.for_each_pixel(
      p.width, [&](int y, int x) { bwd.template pixels<scalar_t>(camera, rows.b, y, x, 1, sums); });
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int first = 0; first < kUsed; first += kSumsOfWarp) {
    scalar_t some[kSumsOfWarp];
#pragma unroll
    for (int k = 0; k < kSumsOfWarp; ++k) some[k] = first + k < kUsed ? sums[first + k < kUsed ? first + k : 0] : scalar_t(0);
    const scalar_t total = sum_of_warp(some);
    if (lane % 2 == 0) of_warps[warp / kRowWarps][warp % kRowWarps][first + lane / 2] = total;
  }
  __syncthreads();
  const int row = threadIdx.x / kSums, k = threadIdx.x % kSums;
  if (row >= rows.last - rows.first) return;
  scalar_t total = 0;
  for (int w = 0; w < kRowWarps && k < kUsed; ++w) total += of_warps[row][w][k];
  bwd.sums[(rows.b * p.height + rows.first + row) * kSums + k] = total;
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

template <typename Params>
__global__ void __launch_bounds__(kThreads, kBlocks<Params, 3>) source_grad_rows(BackwardWarpBwd<Params> bwd, FixedPoint sum) {
  using scalar_t = typename Params::scalar;
  const auto& p = bwd.params;
  const RowsOfBlock rows(p.height);
  __shared__ Camera<scalar_t> camera;
  if (threadIdx.x == 0) camera = p.camera(rows.b);
  __syncthreads();
  const double scale = sum.scale();
  rows.for_each_pixel(p.width, [&](int y, int x) {
    const auto seen = look<scalar_t>(p, camera, rows.b, y, x, 1);
    if (!seen.usable) return;
    const auto at = corner(seen.at.u_x, seen.at.u_y, p.height, p.width);
    const int right = at.column < p.width - 1 ? 1 : 0, down = at.row < p.height - 1 ? p.width : 0;
    for (int c = 0; c < p.channels; ++c) {
      const int64_t plane = (rows.b * p.channels + c) * p.pixels();
      const int64_t upper = plane + int64_t(at.row) * p.width + at.column;
      const scalar_t upstream = load<scalar_t>(bwd.grad_warped + plane + int64_t(y) * p.width + x, 1);
      const scalar_t bottom = at.w_y * upstream, top = upstream - bottom;
      sum.add(upper, (1 - at.w_x) * top, scale);
      sum.add(upper + right, at.w_x * top, scale);
      sum.add(upper + down, (1 - at.w_x) * bottom, scale);
      sum.add(upper + down + right, at.w_x * bottom, scale);
    }
  });
}

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
    fwd_rows<<<unsigned(blocks_of(params)), kThreads, 0, cudaStream_t(where.stream)>>>(fwd);
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
      bwd_rows<<<unsigned(blocks_of(params)), kThreads, 0, stream>>>(bwd);
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
      source_grad_rows<<<unsigned(blocks_of(params)), kThreads, 0, stream>>>(bwd, sum);
      check_launch("backward_warp_bwd");
      read_fixed_point(sum, count, grad_source.as<image_t>(), where.stream, "backward_warp_bwd");
    }
  });
}

}  // namespace mcd::MCD_TARGET
