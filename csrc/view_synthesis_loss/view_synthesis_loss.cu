#include "../common/for_each.h"
#include "../operators.h"
#include "../photometric_error/block.cuh"
#include "view_synthesis_loss.h"

namespace mcd::MCD_TARGET {
namespace {

template <typename T, typename image_t> struct LossKernel {
  ViewSynthesisParams<T> p;
  const image_t *reference, *sources;  // [B, 3, H, W], [B, S, 3, H, W]
  T* large_grads[kMaxScales];          // [B, H, W]: gradients of upsampled depths, or null
  double* sums;                        // [B · tiles, scales, 2 + S · kCameraSums]: loss, pixels in the mask, camera sums

  MCD_HD int tiles() const { return BlockTile::count(p.height, p.width); }
  MCD_HD int64_t sums_size() const { return 2 + int64_t(p.sources) * kCameraSums; }
  MCD_HD double* sums_of(int64_t block, int s) const { return sums + (block * p.scale_count + s) * sums_size(); }

  __device__ T depth_at(int s, int64_t b, int y, int x) const {
    const DepthScale<T>& scale = p.scales[s];
    const T* plane = scale.depth + b * scale.height * scale.width;
    if (p.full(s)) return plane[y * p.width + x];
    const auto row = between<T>(T(y), scale.ratio_y, scale.height);
    const auto column = between<T>(T(x), scale.ratio_x, scale.width);
    const T *low = plane + row.low * scale.width, *high = plane + row.high * scale.width;
    return mix(
        mix(low[column.low], high[column.low], row.weight), mix(low[column.high], high[column.high], row.weight),
        column.weight);
  }
  MCD_HD Projection<T> look_at(const Camera<T>& camera, int64_t b, int i, int y, int x, T depth) const {
    const T* motion = p.motion + (b * p.sources + i) * 2 * p.pixels() + int64_t(y) * p.width + x;
    return look<T>(camera, T(x), T(y), depth, p.motion ? motion[0] : T(0), p.motion ? motion[p.pixels()] : T(0));
  }
};

template <typename T, typename image_t, bool kGrad>
__global__ void __launch_bounds__(kBlockThreads, kBlocks<T>) loss_tiles(LossKernel<T, image_t> kernel) {
  extern __shared__ double shared[];
  __shared__ T warp_sums[kBlockThreads / 32][kSumsOfWarp];
  const auto& p = kernel.p;
  const int64_t b = blockIdx.x / kernel.tiles();
  const BlockTile tile = BlockTile::of(p.height, p.width, int(blockIdx.x % kernel.tiles()));
  auto* cameras = reinterpret_cast<Camera<T>*>(shared);
  const PhotometricBlock<T, kGrad, false, true> block(tile, p.weights, p.sources, reinterpret_cast<T*>(cameras + p.sources));
  const image_t *reference = kernel.reference + b * 3 * p.pixels(), *sources = kernel.sources + b * p.sources * 3 * p.pixels();

#pragma unroll 1
  for (int i = threadIdx.x; i < p.sources; i += kBlockThreads) cameras[i] = p.camera(b, i);
  tile.for_each(2, [&](int y, int x) {
    const int at = y * p.width + x, to = tile.image_at(y, x);
    for (int c = 0; c < 3; ++c) block.reference[c * kImageSize + to] = load<T>(reference + c * p.pixels() + at, 1);
#pragma unroll 1
    for (int part = 0; part < 3 * p.sources; ++part)
      block.images[part * kImageSize + to] = load<T>(sources + part * p.pixels() + at, 1);
  });
  __syncthreads();
  block.find_spreads();
  __syncthreads();
  block.template find_windows<false>();
  __syncthreads();
  tile.for_each(1, [&](int y, int x) { block.identity[tile.window_at(y, x)] = block.find_least(y, x, true).error; });

#pragma unroll 1
  for (int s = 0; s < p.scale_count; ++s) {
    __syncthreads();
    tile.for_each(2, [&](int y, int x) {
      const T depth = kernel.depth_at(s, b, y, x);
      const int at = tile.image_at(y, x);
#pragma unroll 1
      for (int i = 0; i < p.sources; ++i) {
        const auto seen = kernel.look_at(cameras[i], b, i, y, x, depth);
        const auto to = corner<T>(seen.u_x, seen.u_y, p.height, p.width);
        auto around = footprint<T>(to, p.height, p.width);
        around.has_pairs = true;  // no image is narrower than four pixels
        const image_t* image = sources + 3 * i * p.pixels();
#pragma unroll
        for (int c = 0; c < 3; ++c, image += p.pixels()) {
          const T value = bilinear(load_patch<T>(image, around), to.w_x, to.w_y);
          block.image(i, c)[at] = is_nan(seen.u_x) ? seen.u_x : value;
        }
        block.usable[i * kImageSize + at] = is_valid<T>(seen, p.height, p.width);
      }
    });
    __syncthreads();
    block.template find_windows<kGrad>();
    __syncthreads();
    double totals[2] = {};
    tile.for_each(1, [&](int y, int x) {
      const auto least = block.find_least(y, x, !p.mask_invalid);
      const int at = tile.window_at(y, x);
      const bool kept = least.source >= 0 && least.error < block.identity[at];
      block.chosen[at] = kept ? uint8_t(least.source + 1) : 0;
      if (!tile.owns(y, x)) return;
      if (s == 0) p.auto_mask[b * p.pixels() + int64_t(y) * p.width + x] = kept;
      if (kept) totals[0] += least.error, totals[1] += 1;
    });
    block_sum<kBlockThreads>(totals);
    double* out = kernel.sums_of(blockIdx.x, s);
    if (threadIdx.x == 0) out[0] = totals[0], out[1] = totals[1];
    if constexpr (kGrad) {
      __syncthreads();
      const auto share = [](int, int) { return uint8_t(1); };
      block.weigh_windows(share);
      __syncthreads();
      // SSIM is not needed any more: there go the gradients to the images.
      block.find_gradients(
          share, [&](int part, int y, int x, const T* grad) { block.ssim[part * kWindowSize + tile.window_at(y, x)] = grad[0]; });
      T* to_depth = (p.full(s) ? p.scales[s].grad : kernel.large_grads[s]) + b * p.pixels();
#pragma unroll 1
      for (int i = 0; i < p.sources; ++i) {
        __syncthreads();
        T camera_sums[kSumsOfWarp] = {};
        tile.for_each(0, [&](int y, int x) {
          const int64_t at = int64_t(y) * p.width + x;
          const T* grads = block.ssim_of(i, 0) + tile.window_at(y, x);
          T grad_q[3] = {}, value = 0;
          // Most pixels' errors are those of one source.
          if (grads[0] != 0 || grads[kWindowSize] != 0 || grads[2 * kWindowSize] != 0) {
            const T depth = kernel.depth_at(s, b, y, x);
            const auto seen = kernel.look_at(cameras[i], b, i, y, x, depth);
            const auto to = corner<T>(seen.u_x, seen.u_y, p.height, p.width);
            auto around = footprint<T>(to, p.height, p.width);
            around.has_pairs = true;
            const image_t* image = sources + 3 * i * p.pixels();
            T by_x = 0, by_y = 0;
#pragma unroll 1
            for (int c = 0; c < 3; ++c, image += p.pixels()) {
              const T grad = grads[c * kWindowSize];
              T slope_x, slope_y;
              bilinear_grad(load_patch<T>(image, around), to.w_x, to.w_y, &slope_x, &slope_y);
              // A choice: where there is no gradient the slope may be NaN.
              by_x += grad != 0 ? grad * slope_x : T(0);
              by_y += grad != 0 ? grad * slope_y : T(0);
            }
            look_grad<T>(seen, p.height, p.width, by_x, by_y, grad_q);
            add_camera_sums<T>(grad_q, is_finite(depth) ? depth : T(0), T(x), T(y), camera_sums);
            value = grad_q[0] * seen.ray[0] + grad_q[1] * seen.ray[1] + grad_q[2] * seen.ray[2];
          }
          if (p.motion_grads) {
            T* to_motion = p.motion_grads + ((s * p.batch + b) * p.sources + i) * 2 * p.pixels() + at;
            to_motion[0] = grad_q[0], to_motion[p.pixels()] = grad_q[1];
          }
          if (i == 0)
            to_depth[at] = value;
          else if (value != 0)
            to_depth[at] += value;
        });
        const T of_warp = sum_of_warp(camera_sums);
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        if (lane % 2 == 0) warp_sums[warp][lane / 2] = of_warp;
        __syncthreads();
        if (threadIdx.x < kCameraSums) {
          double total = 0;
          for (int w = 0; w < kBlockThreads / 32; ++w) total += warp_sums[w][threadIdx.x];
          out[2 + i * kCameraSums + threadIdx.x] = total;
        }
      }
    }
  }
}

// What follows from the tiles. Blocks [0, B) find the cameras' gradients of a sample each (and block 0 the loss), further
// blocks gather the gradients of the smaller depths.
template <typename T> struct FinishKernel {
  ViewSynthesisParams<T> p;
  const T* large_grads[kMaxScales];
  const double* sums;  // [B · tiles, scales, 2 + S · kCameraSums]
  double scale_weights[kMaxScales];
  T *loss, *losses, *coefficients, *grad_K, *grad_T;
  int64_t first[kMaxScales + 1];  // pixels of the smaller depths, one scale after another
  int tiles;

  MCD_HD const double* sums_of(int64_t tile, int s) const {
    return sums + (tile * p.scale_count + s) * (2 + int64_t(p.sources) * kCameraSums);
  }
  MCD_HD void gather_small(int64_t i) const {
    int s = 0;
    while (i >= first[s + 1]) ++s;
    const DepthScale<T>& scale = p.scales[s];
    const int64_t local = i - first[s];
    const int column = int(local % scale.width), row = int(local / scale.width % scale.height);
    const T* image = large_grads[s] + local / scale.width / scale.height * p.pixels();
    scale.grad[local] = gather_readers(image, row, column, p.height, p.width, scale.height, scale.width);
  }
};

template <typename T> __global__ void __launch_bounds__(kBlockThreads) finish(FinishKernel<T> kernel) {
  const auto& p = kernel.p;
  if (blockIdx.x > 0 && blockIdx.x >= p.batch) {
    const int64_t i = (blockIdx.x - max<int64_t>(p.batch, 1)) * kBlockThreads + threadIdx.x;
    if (i < kernel.first[p.scale_count]) kernel.gather_small(i);
    return;
  }
  __shared__ double coefficients[kMaxScales];
  double loss = 0;
  for (int s = 0; s < p.scale_count; ++s) {
    double totals[2] = {};
    for (int64_t tile = threadIdx.x; tile < p.batch * kernel.tiles; tile += kBlockThreads)
      for (int k = 0; k < 2; ++k) totals[k] += kernel.sums_of(tile, s)[k];
    __syncthreads();
    block_sum<kBlockThreads>(totals);
    if (threadIdx.x == 0) {
      const double pixels = totals[1] + 1e-10 * double(max<int64_t>(p.batch * p.pixels(), 1));
      coefficients[s] = kernel.scale_weights[s] / pixels;
      loss += coefficients[s] * totals[0];
      if (blockIdx.x == 0) {
        kernel.losses[s] = T(totals[0] / pixels);
        kernel.coefficients[s] = T(coefficients[s]);
      }
    }
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *kernel.loss = T(loss);
  if (!p.need_grad || p.batch == 0) return;

  const int64_t b = blockIdx.x;
  double to_K[9] = {};
  for (int i = 0; i < p.sources; ++i) {
    double grads[kCameraSums] = {};
    __syncthreads();
    for (int tile = threadIdx.x; tile < kernel.tiles; tile += kBlockThreads)
      for (int s = 0; s < p.scale_count; ++s)
        for (int k = 0; k < kCameraSums; ++k)
          grads[k] += coefficients[s] * kernel.sums_of(b * kernel.tiles + tile, s)[2 + i * kCameraSums + k];
    block_sum<kBlockThreads>(grads);
    if (threadIdx.x == 0) {
      const int64_t camera = b * p.sources + i;
      double grad_A[9], part[9], grad_T[16];
      const double no_motion[9] = {};
      for (int k = 0; k < 3; ++k)
        grad_A[3 * k] = grads[kSumX + k], grad_A[3 * k + 1] = grads[kSumY + k], grad_A[3 * k + 2] = grads[kSumOne + k];
      camera_grad(
          load_pose(p.K + 9 * b, p.T_src_ref + 16 * camera), grad_A, grads + kSumB, no_motion, part, grad_T);
      for (int k = 0; k < 16; ++k) kernel.grad_T[16 * camera + k] = T(grad_T[k]);
      for (int k = 0; k < 9; ++k) to_K[k] += part[k];
    }
  }
  if (threadIdx.x == 0)
    for (int k = 0; k < 9; ++k) kernel.grad_K[9 * b + k] = T(to_K[k]);
}

template <typename T> struct FinishMotion {
  const T *parts, *coefficients;  // [scales, size], [scales]
  T* grad_motion;                 // [size]
  int64_t size;
  int scale_count;

  MCD_HD void operator()(int64_t i) const {
    T total = 0;
    for (int s = 0; s < scale_count; ++s) total += coefficients[s] * parts[s * size + i];
    grad_motion[i] = total;
  }
};

template <typename T, typename image_t, bool kGrad> void launch_tiles(const LossKernel<T, image_t>& kernel, const Where& where) {
  const char* name = "view_synthesis_loss_fwd";
  const int64_t blocks = kernel.p.batch * kernel.tiles();
  if (blocks == 0) return;
  const size_t bytes = PhotometricBlock<T, kGrad, false, true>::bytes(kernel.p.sources) + kernel.p.sources * sizeof(Camera<T>);
  allow_shared_memory(loss_tiles<T, image_t, kGrad>, bytes, name);
  loss_tiles<T, image_t, kGrad><<<unsigned(blocks), kBlockThreads, bytes, cudaStream_t(where.stream)>>>(kernel);
  check_launch(name);
}

}  // namespace

void view_synthesis_loss_fwd(
    const Tensor& reference, const Tensor& sources, const std::vector<Tensor>& depths, const Tensor& K,
    const Tensor& T_src_ref, const Tensor& motion, const std::vector<double>& scale_weights, bool mask_invalid,
    double ssim_weight, double l1_weight, double c1, double c2, bool need_grad, bool need_motion, const Tensor& loss,
    const Tensor& losses, const Tensor& auto_mask, const std::vector<Tensor>& grad_depths, const Tensor& grad_K,
    const Tensor& grad_T, const Tensor& grad_motion, const Tensor& coefficients, const Tensor& motion_parts,
    const Tensor& tile_sums, const Tensor& large_grads, const Where& where) {
  dispatch(K.dtype, reference.dtype, [&](auto scalar, auto image) {
    using T = decltype(scalar);
    using image_t = decltype(image);
    LossKernel<T, image_t> kernel{};
    kernel.p = view_synthesis_params<T>(
        reference, sources, depths, K, T_src_ref, motion, mask_invalid, ssim_weight, l1_weight, c1, c2, need_grad,
        need_motion, auto_mask, grad_depths, motion_parts);
    const auto& p = kernel.p;
    kernel.reference = reference.as<image_t>(), kernel.sources = sources.as<image_t>();
    kernel.sums = tile_sums.as<double>();

    FinishKernel<T> finishing{};
    T* large = large_grads.as<T>();
    for (int s = 0; s < p.scale_count; ++s) {
      const bool small = need_grad && !p.full(s);
      kernel.large_grads[s] = small ? large : nullptr;
      finishing.large_grads[s] = kernel.large_grads[s];
      finishing.first[s + 1] =
          finishing.first[s] + (small ? p.batch * p.scales[s].height * p.scales[s].width : int64_t(0));
      finishing.scale_weights[s] = scale_weights[s];
      if (small) large += p.batch * p.pixels();
    }
    if (need_grad)
      launch_tiles<T, image_t, true>(kernel, where);
    else
      launch_tiles<T, image_t, false>(kernel, where);

    finishing.p = p, finishing.sums = kernel.sums, finishing.tiles = kernel.tiles();
    finishing.loss = loss.as<T>(), finishing.losses = losses.as<T>(), finishing.coefficients = coefficients.as<T>();
    finishing.grad_K = grad_K.as<T>(), finishing.grad_T = grad_T.as<T>();
    const int64_t small_blocks = (finishing.first[p.scale_count] + kBlockThreads - 1) / kBlockThreads;
    finish<T><<<unsigned(max<int64_t>(p.batch, 1) + small_blocks), kBlockThreads, 0, cudaStream_t(where.stream)>>>(
        finishing);
    check_launch("view_synthesis_loss_fwd");
    if (need_motion) {
      const int64_t size = p.batch * p.sources * 2 * p.pixels();
      for_each_cuda(
          size, where.stream, "view_synthesis_loss_fwd",
          FinishMotion<T>{p.motion_grads, coefficients.as<T>(), grad_motion.as<T>(), size, p.scale_count});
    }
  });
}

}  // namespace mcd::MCD_TARGET
