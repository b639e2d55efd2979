#include "../common/for_each.h"
#include "../operators.h"
#include "block.cuh"
#include "view_synthesis_loss.h"

namespace mcd::MCD_TARGET {
namespace {

// What tiles add up to, each at each scale.
struct TileSums {
  double* sums;  // [scales, B · tiles, 2], then [B · tiles, scales, S, kCameraSums]
  int64_t tiles;  // of all samples
  int scales, sources;

  // The loss, and how many pixels are in the mask.
  MCD_HD double* totals(int64_t tile, int s) const { return sums + (s * tiles + tile) * 2; }
  MCD_HD double* camera(int64_t tile, int s, int i) const {
    return sums + 2 * scales * tiles + ((tile * scales + s) * sources + i) * kCameraSums;
  }
};

template <typename T, typename image_t> struct LossKernel {
  ViewSynthesisParams<T> p;
  const image_t *reference, *sources;  // [B, 3, H, W], [B, S, 3, H, W]
  T* large_grads[kMaxScales];          // [B, H, W]: gradients of upsampled depths, or null
  TileSums sums;

  MCD_HD int tiles() const { return BlockTile::count(p.height, p.width); }

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
  const PhotometricBlock<T, kGrad> block(tile, p.weights, p.sources, reinterpret_cast<T*>(cameras + p.sources));
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
    double* out = kernel.sums.totals(blockIdx.x, s);
    if (threadIdx.x == 0) out[0] = totals[0], out[1] = totals[1];
    if constexpr (kGrad) {
      __syncthreads();
      block.weigh_windows();
      __syncthreads();
      // SSIM is not needed any more: there go the gradients to the images.
      block.find_gradients(
          [&](int part, int y, int x, T grad) { block.ssim[part * kWindowSize + tile.window_at(y, x)] = grad; });
      T* to_depth = (p.full(s) ? p.scales[s].grad : kernel.large_grads[s]) + b * p.pixels();
#pragma unroll 1
      for (int i = 0; i < p.sources; ++i) {
        __syncthreads();
        T camera_sums[kSumsOfWarp] = {};
        tile.for_each(0, [&](int y, int x) {
          const int64_t at = int64_t(y) * p.width + x;
          const T* grads = block.ssim_of(i, 0) + tile.window_at(y, x);
          // Once for all sources. The windows' planes are not needed any more: there a thread leaves it for itself.
          T& depth = block.windows[tile.window_at(y, x)];
          if (i == 0) depth = kernel.depth_at(s, b, y, x);
          T grad_q[3] = {}, value = 0;
          // Most pixels' errors are those of one source.
          if (grads[0] != 0 || grads[kWindowSize] != 0 || grads[2 * kWindowSize] != 0) {
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
          kernel.sums.camera(blockIdx.x, s, i)[threadIdx.x] = total;
        }
      }
    }
  }
}

// What follows from the tiles: the losses, and the cameras' gradients of a sample by each block.
template <typename T> struct FinishKernel {
  ViewSynthesisParams<T> p;
  TileSums sums;
  double scale_weights[kMaxScales];
  T *loss, *losses, *coefficients, *grad_K, *grad_T;
  int tiles;  // of a sample
};

template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 1) finish(__grid_constant__ const FinishKernel<T> kernel) {
  constexpr int kWarps = kBlockThreads / 32, kParts = kBlockThreads / 16;
  static_assert(kCameraSums <= 16, "a thread for each sum");
  const auto& p = kernel.p;
  __shared__ double coefficients[kMaxScales], parts[kWarps][kParts][16], camera_sums[kWarps][kCameraSums], to_K[kWarps][9];
  double loss = 0;
#pragma unroll 1
  for (int s = 0; s < p.scale_count; ++s) {
    double totals[2] = {};
    for (int64_t tile = threadIdx.x; tile < kernel.sums.tiles; tile += kBlockThreads)
      for (int k = 0; k < 2; ++k) totals[k] += kernel.sums.totals(tile, s)[k];
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

  // Sixteen threads take the sums of a tile; then a warp for each source.
  const int64_t b = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, k = threadIdx.x % 16, part = threadIdx.x / 16;
  if (threadIdx.x < kWarps * 9) to_K[threadIdx.x / 9][threadIdx.x % 9] = 0;
#pragma unroll 1
  for (int first = 0; first < p.sources; first += kWarps) {
    const int some = min(kWarps, p.sources - first);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < some; ++i) {
      double sum = 0;
#pragma unroll 1
      for (int tile = part; tile < kernel.tiles; tile += kParts)
        for (int s = 0; s < p.scale_count; ++s)
          if (k < kCameraSums) sum += coefficients[s] * kernel.sums.camera(b * kernel.tiles + tile, s, first + i)[k];
      parts[i][part][k] = sum;
    }
    __syncthreads();
    if (warp < some && lane < kCameraSums) {
      double sum = 0;
      for (int j = 0; j < kParts; ++j) sum += parts[warp][j][lane];
      camera_sums[warp][lane] = sum;
    }
    __syncwarp();
    if (warp < some && lane == 0) {
      const double* of_camera = camera_sums[warp];
      const int64_t camera = b * p.sources + first + warp;
      double grad_A[9], of_K[9], grad_T[16];
      const double no_motion[9] = {};
      for (int j = 0; j < 3; ++j)
        grad_A[3 * j] = of_camera[kSumX + j], grad_A[3 * j + 1] = of_camera[kSumY + j], grad_A[3 * j + 2] = of_camera[kSumOne + j];
      camera_grad(
          load_pose(p.K + 9 * b, p.T_src_ref + 16 * camera), grad_A, of_camera + kSumB, no_motion, of_K, grad_T);
      for (int j = 0; j < 16; ++j) kernel.grad_T[16 * camera + j] = T(grad_T[j]);
      for (int j = 0; j < 9; ++j) to_K[warp][j] += of_K[j];
    }
  }
  __syncthreads();
  if (threadIdx.x < 9) {
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += to_K[w][threadIdx.x];
    kernel.grad_K[9 * b + threadIdx.x] = T(total);
  }
}

// The gradients of the smaller depths from those of what they were enlarged to: a block for each of their rows. First down
// the columns of the large image, then along the row.
template <typename T> struct GatherKernel {
  ViewSynthesisParams<T> p;
  const T* large_grads[kMaxScales];
  int64_t first[kMaxScales + 1];  // rows of the smaller depths, one scale after another
};
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 1) gather_rows(__grid_constant__ const GatherKernel<T> kernel) {
  constexpr int kColumns = 1024, kRows = 64;  // of the large image at a time
  __shared__ T sums[kColumns], weights[kRows];
  const auto& p = kernel.p;
  int s = 0;
  while (blockIdx.x >= kernel.first[s + 1]) ++s;
  const DepthScale<T>& scale = p.scales[s];
  const auto [b, row_of_sample] = divide(blockIdx.x - kernel.first[s], scale.height);
  const int row = int(row_of_sample);
  const T* image = kernel.large_grads[s] + b * p.pixels();
  T* out = scale.grad + (b * scale.height + row) * scale.width;
  int top, bottom, left, right;
  readers(row, scale.ratio_y, p.height, &top, &bottom);
  // As many columns of the depth as read from those that fit.
  const int step = max(1, int((kColumns - 4) * scale.ratio_x) - 2);
#pragma unroll 1
  for (int begin = 0; begin < scale.width; begin += step) {
    const int end = min(begin + step, scale.width);
    int unused;
    readers(begin, scale.ratio_x, p.width, &left, &unused);
    readers(end - 1, scale.ratio_x, p.width, &unused, &right);
    // One column may read more than fits; its sum then waits in memory.
#pragma unroll 1
    for (int piece = left; piece < right; piece += kColumns) {
      const int stop = min(piece + kColumns, right);
#pragma unroll 1
      for (int first = top; first < bottom; first += kRows) {
        const int rows = min(kRows, bottom - first);
        if (int(threadIdx.x) < rows)
          weights[threadIdx.x] = weight_of(row, between(T(first + int(threadIdx.x)), scale.ratio_y, scale.height));
        __syncthreads();
#pragma unroll 1
        for (int x = piece + int(threadIdx.x); x < stop; x += kBlockThreads) {
          T total = first == top ? T(0) : sums[x - piece];
          const T* at = image + int64_t(first) * p.width + x;
#pragma unroll 4
          for (int y = 0; y < rows; ++y, at += p.width)
            if (weights[y] != 0) total += weights[y] * *at;
          sums[x - piece] = total;
        }
        __syncthreads();
      }
#pragma unroll 1
      for (int column = begin + int(threadIdx.x); column < end; column += kBlockThreads) {
        int from, to;
        readers(column, scale.ratio_x, p.width, &from, &to);
        T total = piece == left ? T(0) : out[column];
#pragma unroll 4
        for (int x = max(from, piece); x < min(to, stop); ++x) {
          const T weight = weight_of(column, between(T(x), scale.ratio_x, scale.width));
          total += weight != 0 ? weight * sums[x - piece] : T(0);
        }
        out[column] = total;
      }
      __syncthreads();
    }
  }
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
  const size_t bytes = PhotometricBlock<T, kGrad>::bytes(kernel.p.sources) + kernel.p.sources * sizeof(Camera<T>);
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
    kernel.sums = {tile_sums.as<double>(), p.batch * kernel.tiles(), p.scale_count, p.sources};

    FinishKernel<T> finishing{};
    GatherKernel<T> gathering{p, {}, {}};
    T* large = large_grads.as<T>();
    for (int s = 0; s < p.scale_count; ++s) {
      const bool small = need_grad && !p.full(s);
      kernel.large_grads[s] = small ? large : nullptr;
      gathering.large_grads[s] = kernel.large_grads[s];
      gathering.first[s + 1] = gathering.first[s] + (small ? p.batch * p.scales[s].height : int64_t(0));
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
    const auto stream = cudaStream_t(where.stream);
    finish<T><<<unsigned(max<int64_t>(p.batch, 1)), kBlockThreads, 0, stream>>>(finishing);
    check_launch("view_synthesis_loss_fwd");
    if (const int64_t rows = gathering.first[p.scale_count])
      gather_rows<T><<<unsigned(rows), kBlockThreads, 0, stream>>>(gathering);
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
