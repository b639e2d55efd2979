#include "../common/for_each.h"
#include "../operators.h"
#include "smoothness_loss.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kThreads = 256;

// Calls f(y, x) for every pixel of a task, shared among the block's threads.
template <typename T, typename F> __device__ void for_each_pixel(const SmoothTask<T>& task, int width, const F& f) {
  for_each_place<kThreads>(task.first_row, task.last_row, 0, width, f);
}

template <typename T, typename Guide>
__global__ void __launch_bounds__(kThreads) sum_tasks(SmoothnessParams<T> p, T* sums) {
  const auto task = p.task(blockIdx.x);
  const SmoothScale<T>& scale = p.scales[task.scale];
  const Guide guide = p.template guide<Guide>(task.scale);
  T total[kSmoothSums] = {};
  for_each_pixel(task, scale.width, [&](int y, int x) {
    add_smoothness_sums<T>(scale, guide, task.b, y, x, 1, x + 1 < scale.width ? 1 : 0, total);
  });
  block_sum<kThreads>(total);
  if (threadIdx.x == 0)
    for (int k = 0; k < kSmoothSums; ++k) sums[int64_t(blockIdx.x) * kSmoothSums + k] = total[k];
}

constexpr int kFinishThreads = 1024, kFinishWarps = kFinishThreads / 32;

template <int n> __device__ void sum_over_lanes(double (&values)[n]) {
#pragma unroll
  for (int k = 0; k < n; ++k)
    for (int step = 16; step > 0; step /= 2) values[k] += __shfl_xor_sync(0xffffffffu, values[k], step);
}

// One block for all scales: a warp finishes each sample of each scale.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads) finish(SmoothnessParams<T> p, const T* sums, T* loss, T* factors) {
  static_assert(kFinishWarps == 32, "a lane for what each warp has summed");
  __shared__ double pairs_of[kMaxSmoothScales][2][kFinishWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll 1
  for (int s = 0; s < p.count; ++s) {
    double pairs[2] = {};
    for (int64_t i = threadIdx.x; i < p.batch * p.scales[s].blocks; i += kFinishThreads) {
      const T* task = sums + (p.scales[s].first_task + i) * kSmoothSums;
      pairs[0] += task[kPairsX], pairs[1] += task[kPairsY];
    }
    sum_over_lanes(pairs);
    if (lane == 0) pairs_of[s][0][warp] = pairs[0], pairs_of[s][1][warp] = pairs[1];
  }
  __syncthreads();
  double total[1] = {};
#pragma unroll 1
  for (int64_t item = warp; item < p.count * p.batch; item += kFinishWarps) {
    const int s = int(item / p.batch);
    const int64_t b = item % p.batch, blocks = p.scales[s].blocks;
    double pairs[2] = {pairs_of[s][0][lane], pairs_of[s][1][lane]}, sample[kSmoothSums] = {};
    const T* tasks = sums + (p.scales[s].first_task + b * blocks) * kSmoothSums;
    for (int64_t block = lane; block < blocks; block += 32)
      for (int k = 0; k < kSmoothSums; ++k) sample[k] += tasks[block * kSmoothSums + k];
    sum_over_lanes(pairs);
    sum_over_lanes(sample);
    if (lane == 0) total[0] += finish_smoothness_sample(p, sample, s, b, pairs[0], pairs[1], factors);
  }
  block_sum<kFinishThreads>(total);
  if (threadIdx.x == 0) *loss = T(total[0]);
}

template <typename T, typename Guide> struct GradPixel {
  SmoothnessParams<T> p;
  const T *grad_loss, *factors;  // [], [scales, B, 3]

  __device__ void operator()(const SmoothTask<T>& task, int y, int x) const {
    const SmoothScale<T>& scale = p.scales[task.scale];
    const Guide guide = p.template guide<Guide>(task.scale);
    const T* factor = factors + (task.scale * p.batch + task.b) * 3;
    const int width = scale.width;
    const int64_t at = int64_t(y) * width + x;
    const T* d = scale.disparity + task.b * scale.height * width + at;
    const auto slope = [&](int64_t step, int64_t from) {
      return pair_slope<T>(d[from], d[from + step], guide.template weight<T>(task.b, at + from, step, 1));
    };
    T slope_x = 0, slope_y = 0;
    if (x + 1 < width) slope_x += slope(1, 0);
    if (x > 0) slope_x -= slope(1, -1);
    if (y + 1 < scale.height) slope_y += slope(width, 0);
    if (y > 0) slope_y -= slope(width, -width);
    const T inside = guide.template inside<T>(task.b, at, 1);
    scale.grad[task.b * scale.height * width + at] =
        *grad_loss * (factor[0] * slope_x + factor[1] * slope_y - factor[2] * inside);
  }
};

template <typename T, typename Guide>
__global__ void __launch_bounds__(kThreads, 1) grad_tasks(GradPixel<T, Guide> grad) {
  const auto task = grad.p.task(blockIdx.x);
  for_each_pixel(task, grad.p.scales[task.scale].width, [&](int y, int x) { grad(task, y, x); });
}

}  // namespace

void smoothness_loss_fwd(
    const std::vector<Tensor>& disparities, const std::vector<Tensor>& guides, const Tensor& loss,
    const Tensor& factors, const Tensor& sums, const Where& where) {
  dispatch_smoothness(disparities, guides, [&](const auto& p, auto guide) {
    using T = typename decltype(guide)::scalar_t;
    const auto stream = cudaStream_t(where.stream);
    if (p.tasks > 0) {
      sum_tasks<T, decltype(guide)><<<unsigned(p.tasks), kThreads, 0, stream>>>(p, sums.as<T>());
      check_launch("smoothness_loss_fwd");
    }
    finish<T><<<1, kFinishThreads, 0, stream>>>(p, sums.as<const T>(), loss.as<T>(), factors.as<T>());
    check_launch("smoothness_loss_fwd");
  });
}

void smoothness_loss_bwd(
    const Tensor& grad_loss, const std::vector<Tensor>& disparities, const std::vector<Tensor>& guides,
    const Tensor& factors, const std::vector<Tensor>& grads, const Where& where) {
  dispatch_smoothness(disparities, guides, [&](auto p, auto guide) {
    using T = typename decltype(guide)::scalar_t;
    for (int s = 0; s < p.count; ++s) p.scales[s].grad = grads[s].template as<T>();
    if (p.tasks == 0) return;
    grad_tasks<T, decltype(guide)><<<unsigned(p.tasks), kThreads, 0, cudaStream_t(where.stream)>>>(
        GradPixel<T, decltype(guide)>{p, grad_loss.as<T>(), factors.as<T>()});
    check_launch("smoothness_loss_bwd");
  });
}

}  // namespace mcd::MCD_TARGET
