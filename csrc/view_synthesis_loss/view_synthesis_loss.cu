#include "../common/for_each.h"
#include "../operators.h"
#include "../photometric_error/errors.cuh"
#include "walk.cuh"

namespace mcd::MCD_TARGET {
namespace {

constexpr const char* kName = "view_synthesis_loss_fwd";
constexpr int kBlockThreads = 256;

// What follows from the strips: the losses, and the cameras' gradients of a sample by each block.
template <typename T> struct FinishKernel {
  ViewSynthesisParams<T> p;
  Strips strips;
  StripSums sums;
  double scale_weights[kMaxScales];
  T *loss, *losses, *coefficients, *grad_K, *grad_T;
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
    const int count = int(kernel.strips.blocks()) * p.sources;
    const auto* of_scale = reinterpret_cast<const Two<double>*>(kernel.sums.totals(s, 0, 0));
#pragma unroll 2
    for (int i = threadIdx.x; i < count; i += kBlockThreads) {
      const Two<double> some = of_scale[i];
      for (int k = 0; k < 2; ++k) totals[k] += some.at[k];
    }
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

  // Sixteen threads take the sums of a strip; then a warp for each source.
  const int64_t b = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, k = threadIdx.x % 16, part = threadIdx.x / 16;
  const int64_t first_strip = kernel.strips.strip_of(b * kernel.strips.pairs);
  const int strips = int(kernel.strips.strip_of((b + 1) * kernel.strips.pairs - 1) - first_strip) + 1;
  const int tiles = kernel.strips.tiles, lines = p.scale_count * tiles;
  if (threadIdx.x < kWarps * 9) to_K[threadIdx.x / 9][threadIdx.x % 9] = 0;
#pragma unroll 1
  for (int first = 0; first < p.sources; first += kWarps) {
    const int some = min(kWarps, p.sources - first);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < some; ++i) {
      double sum = 0;
#pragma unroll 1
      for (int line = part; line < lines && k < kCameraSums; line += kParts) {
        const int s = line / tiles;
        double of_line = 0;
#pragma unroll 4
        for (int j = 0; j < strips; ++j)
          of_line += kernel.sums.camera(s, line - s * tiles, first_strip + j, b, first + i)[k];
        sum += coefficients[s] * of_line;
      }
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
// the columns of the large image, four a thread, then along the row.
template <typename T> struct GatherKernel {
  ViewSynthesisParams<T> p;
  const T* large_grads[kMaxScales];
  int64_t first[kMaxScales + 1];  // rows of the smaller depths, one scale after another
};
constexpr int kGatherThreads = 128;

// Small pixel j is read by large pixels in [first, last), whose number over that of small ones is `step`: fewer outsiders
// than readers() has.
template <typename T> MCD_HD void tight_readers(int j, T step, int size, int* first, int* last) {
  const T slack = T(2e-3), from = (T(j) - T(0.5)) * step - T(0.5), to = (T(j) + T(1.5)) * step - T(0.5);
  *first = max(int(from + (1 - slack)), 0);
  *last = min(int(to + (1 + slack)), size);
}
// Weight of small pixel j in large pixel i, as between() has it.
template <typename T> MCD_HD T reader_weight(int j, int i, T ratio, int size) {
  const T at = min<T>(max<T>((T(i) + T(0.5)) * ratio - T(0.5), 0), T(size - 1));
  return max<T>(1 - abs<T>(at - T(j)), 0);
}

template <typename T, bool kQuads>
__global__ void __launch_bounds__(kGatherThreads, 1) gather_rows(__grid_constant__ const GatherKernel<T> kernel) {
  constexpr int kColumns = 1024, kRows = 64;  // of the large image at a time
  constexpr int kStep = kQuads ? 4 : 1;
  __shared__ Quad<T> sums_in_quads[kColumns / 4];
  __shared__ T weights[kRows];
  T* sums = sums_in_quads[0].lanes;
  const auto& p = kernel.p;
  int s = 0;
  while (blockIdx.x >= kernel.first[s + 1]) ++s;
  const DepthScale<T>& scale = p.scales[s];
  const auto [b, row_of_sample] = divide(blockIdx.x - kernel.first[s], scale.height);
  const int row = int(row_of_sample);
  const T* image = kernel.large_grads[s] + b * p.pixels();
  T* out = scale.grad + (b * scale.height + row) * scale.width;
  int top, bottom, left, right;
  const T step_y = T(p.height) / scale.height, step_x = T(p.width) / scale.width;
  tight_readers(row, step_y, p.height, &top, &bottom);
  // As many columns of the depth as read from those that fit.
  const int step = max(1, int((kColumns - 8) * scale.ratio_x) - 2);
#pragma unroll 1
  for (int begin = 0; begin < scale.width; begin += step) {
    const int end = min(begin + step, scale.width);
    int unused;
    tight_readers(begin, step_x, p.width, &left, &unused);
    tight_readers(end - 1, step_x, p.width, &unused, &right);
    left -= left % kStep;
    // One column may read more than fits; its sum then waits in memory.
#pragma unroll 1
    for (int piece = left; piece < right; piece += kColumns) {
      const int stop = min(piece + kColumns, right);
#pragma unroll 1
      for (int first = top; first < bottom; first += kRows) {
        const int rows = min(kRows, bottom - first);
        if (int(threadIdx.x) < rows)
          weights[threadIdx.x] = reader_weight(row, first + int(threadIdx.x), scale.ratio_y, scale.height);
        __syncthreads();
#pragma unroll 1
        for (int x = piece + kStep * int(threadIdx.x); x < stop; x += kStep * kGatherThreads) {
          T total[kStep] = {};
          if (first > top)
            for (int k = 0; k < kStep; ++k) total[k] = sums[x - piece + k];
          const T* at = image + int64_t(first) * p.width + x;
#pragma unroll 4
          for (int y = 0; y < rows; ++y, at += p.width) {
            const T weight = weights[y];
            if constexpr (kQuads) {
              const Quad<T> four = *reinterpret_cast<const Quad<T>*>(at);
              for (int k = 0; k < kStep; ++k) total[k] += weight * four.lanes[k];
            } else {
              total[0] += weight * *at;
            }
          }
          if constexpr (kQuads)
            sums_in_quads[(x - piece) / 4] = {total[0], total[1], total[2], total[3]};
          else
            sums[x - piece] = total[0];
        }
        __syncthreads();
      }
#pragma unroll 1
      for (int column = begin + int(threadIdx.x); column < end; column += kGatherThreads) {
        int from, to;
        tight_readers(column, step_x, p.width, &from, &to);
        T total = piece == left ? T(0) : out[column];
#pragma unroll 4
        for (int x = max(from, piece); x < min(to, stop); ++x)
          total += reader_weight(column, x, scale.ratio_x, scale.width) * sums[x - piece];
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

// How many scales a block is to take: as many as leave room for two blocks on a multiprocessor.
template <typename T> int scales_together(int scales, int sources) {
  int device = 0, room = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device) != cudaSuccess)
    throw std::runtime_error(std::string(kName) + ": " + cudaGetErrorString(cudaGetLastError()));
  constexpr size_t kReserved = 1024;  // of each block
  int together = min(scales, max(kWalkThreads<T> / (32 * sources), 1));
  while (together > 1 && (scales % together != 0 || 2 * (LossMemory<T>::bytes(sources * together) + kReserved) > size_t(room)))
    --together;
  return together;
}

template <typename T, typename image_t> void launch_walk(const LossKernel<T, image_t>& kernel, bool usual, const Where& where) {
  const auto& p = kernel.p;
  const int64_t blocks = kernel.strips.blocks() * p.scale_count / kernel.scales_together;
  if (blocks == 0) return;
  const unsigned threads = 32 * p.sources * kernel.scales_together;
  const size_t bytes = LossMemory<T>::bytes(threads / 32);
  const auto launch = [&](auto walk) {
    allow_shared_memory(walk, bytes, kName);
    walk<<<unsigned(blocks), threads, bytes, cudaStream_t(where.stream)>>>(kernel);
    check_launch(kName);
  };
  if constexpr (sizeof(T) == 4)
    if (usual) return launch(p.need_grad ? loss_strips<T, image_t, true, true> : loss_strips<T, image_t, true, false>);
  launch(p.need_grad ? loss_strips<T, image_t, false, true> : loss_strips<T, image_t, false, false>);
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
    // The sources as they are, once for all scales.
    T* planes = large_grads.as<T>();
    const Images<T, image_t> images{
        reference.as<image_t>(), nullptr, sources.as<image_t>(), nullptr, p.weights,
        Strips::of(p.batch, p.height, p.width, kStripRows), p.sources};
    bool usual = p.batch * p.sources * 3 * p.pixels() < (int64_t(1) << 31);
    if (sizeof(T) == 8 && !usual)
      throw std::invalid_argument(std::string(kName) + ": source images of 2^31 numbers or more, which in float64 CUDA does not take");
    with_kind(
        images,
        [&](auto is_usual, auto luminance) {
          usual = usual && is_usual;
          launch_strips<kMaxGroups<T, is_usual>>(
              error_strips<T, image_t, is_usual, luminance, false>, kName, images.strips.blocks(),
              is_usual ? 1 : p.sources, 2 * p.sources * kChannels * 32 * sizeof(Two<T>), where, images, planes, nullptr);
        },
        planes);
    for (int c = 0; c < 3; ++c) {
      kernel.reference[c] = images.reference + c * p.pixels();
      kernel.sources[c] = images.sources + c * p.pixels();
    }
    kernel.identity = planes;
    kernel.strips = Strips::of(p.batch, p.height, p.width, kWalkRows);
    kernel.scales_together = scales_together<T>(p.scale_count, p.sources);
    kernel.sums = {tile_sums.as<double>(), kernel.strips.count, p.batch, kernel.strips.tiles, p.scale_count, p.sources};

    FinishKernel<T> finishing{};
    GatherKernel<T> gathering{p, {}, {}};
    T* large = planes + p.batch * p.pixels();
    for (int s = 0; s < p.scale_count; ++s) {
      const bool small = need_grad && !p.full(s);
      kernel.large_grads[s] = small ? large : nullptr;
      gathering.large_grads[s] = kernel.large_grads[s];
      gathering.first[s + 1] = gathering.first[s] + (small ? p.batch * p.scales[s].height : int64_t(0));
      finishing.scale_weights[s] = scale_weights[s];
      if (small) large += p.batch * p.pixels();
      // Pairs of columns are read and written as one.
      for (const void* at : {static_cast<const void*>(p.scales[s].depth), static_cast<const void*>(p.scales[s].grad)})
        usual = usual && reinterpret_cast<uintptr_t>(at) % (2 * sizeof(T)) == 0;
    }
    for (const void* at : {static_cast<const void*>(p.motion), static_cast<const void*>(p.auto_mask)})
      usual = usual && reinterpret_cast<uintptr_t>(at) % (2 * sizeof(T)) == 0;
    launch_walk(kernel, usual, where);

    finishing.p = p, finishing.strips = kernel.strips, finishing.sums = kernel.sums;
    finishing.loss = loss.as<T>(), finishing.losses = losses.as<T>(), finishing.coefficients = coefficients.as<T>();
    finishing.grad_K = grad_K.as<T>(), finishing.grad_T = grad_T.as<T>();
    const auto stream = cudaStream_t(where.stream);
    finish<T><<<unsigned(max<int64_t>(p.batch, 1)), kBlockThreads, 0, stream>>>(finishing);
    check_launch(kName);
    if (const int64_t rows = gathering.first[p.scale_count]) {
      if (in_quads(p.width, planes))
        gather_rows<T, true><<<unsigned(rows), kGatherThreads, 0, stream>>>(gathering);
      else
        gather_rows<T, false><<<unsigned(rows), kGatherThreads, 0, stream>>>(gathering);
    }
    check_launch(kName);
    if (need_motion) {
      const int64_t size = p.batch * p.sources * 2 * p.pixels();
      for_each_cuda(
          size, where.stream, kName,
          FinishMotion<T>{p.motion_grads, coefficients.as<T>(), grad_motion.as<T>(), size, p.scale_count});
    }
  });
}

}  // namespace mcd::MCD_TARGET
