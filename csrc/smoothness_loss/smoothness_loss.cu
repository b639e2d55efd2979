#include "../common/for_each.h"
#include "../operators.h"
#include "smoothness_loss.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kThreads = 128, kRows = 4;

// Four pixels in a row, or those `count` < 4 that are left of it, and where the ones around them lie: of what is not there,
// a pixel at the edge stands for it. kQuads: whether they are read as one.
template <bool kQuads> struct Four {
  int at, count;  // within the sample
  int left, right, below;
  bool has_left, has_right, has_below;

  template <typename T> __device__ Four(const SmoothScale<T>& scale, int y, int x)
      : at(y * scale.width + x), count(kQuads ? 4 : min(4, scale.width - x)), has_left(x > 0),
        has_right(x + 4 < scale.width), has_below(y + 1 < scale.height) {
    left = has_left ? -1 : 0, right = has_right ? 4 : count - 1, below = has_below ? scale.width : 0;
  }
  __device__ bool has(int k) const { return kQuads || k < count; }
};

template <typename T, bool kQuads, typename Stored, typename Read>
__device__ void read_four(T (&out)[4], const Stored* from, const Four<kQuads>& four, const Read& read) {
  if constexpr (kQuads) {
    const auto quad = *reinterpret_cast<const Quad<Stored>*>(from);
#pragma unroll
    for (int k = 0; k < 4; ++k) out[k] = read(quad.lanes[k]);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) out[k] = four.has(k) ? read(from[k]) : T(0);
  }
}
// Values of four pixels, of those before and after them, and of those below.
template <typename T> struct Around {
  T own[4], below[4], left, right;

  template <bool kQuads, typename Stored, typename Read>
  __device__ Around(const Stored* from, const Four<kQuads>& four, bool left_too, const Read& read) {
    read_four(own, from, four, read), read_four(below, from + four.below, four, read);
    left = left_too ? read(from[four.left]) : T(0), right = read(from[four.right]);
  }
  // f(k, a, b) for the pairs along x: the k-th ends at the k-th pixel.
  template <typename F> __device__ void pairs(const F& f) const {
    f(0, left, own[0]), f(1, own[0], own[1]), f(2, own[1], own[2]), f(3, own[2], own[3]), f(4, own[3], right);
  }
};
template <typename T> struct Weights {
  T x[5], y[4], inside[4];  // of pairs, the k-th along x ending at the k-th pixel, and of pixels
};

// `left_too`: also of the pair of the first and the one before it.
template <typename T, typename image_t, bool kQuads>
__device__ Weights<T> weigh(const EdgeGuide<T, image_t>& guide, int64_t b, const Four<kQuads>& four, bool left_too) {
  Weights<T> weights{};
  const image_t* channel = guide.image + b * guide.channels * guide.plane + four.at;
  const auto add = [&] {
    const Around<T> image(channel, four, left_too, [](const image_t& value) { return load<T>(&value, 1); });
    image.pairs([&](int k, T before, T after) { weights.x[k] += abs<T>(before - after); });
#pragma unroll
    for (int k = 0; k < 4; ++k) weights.y[k] += abs<T>(image.own[k] - image.below[k]);
    channel += guide.plane;
  };
  if (guide.channels == 3) {
    add(), add(), add();
  } else {
#pragma unroll 1
    for (int c = 0; c < guide.channels; ++c) add();
  }
  const T scale = T(1) / guide.channels;
#pragma unroll
  for (int k = 0; k < 5; ++k) weights.x[k] = exp_negative<T>(-weights.x[k] * scale);
#pragma unroll
  for (int k = 0; k < 4; ++k) weights.y[k] = exp_negative<T>(-weights.y[k] * scale), weights.inside[k] = 1;
  return weights;
}
template <typename T, bool kQuads>
__device__ Weights<T> weigh(const MaskGuide<T>& guide, int64_t b, const Four<kQuads>& four, bool left_too) {
  Weights<T> weights;
  const Around<T> mask(
      guide.mask + b * guide.plane + four.at, four, left_too, [](bool inside) { return inside ? T(1) : T(0); });
  mask.pairs([&](int k, T before, T after) { weights.x[k] = before * after; });
#pragma unroll
  for (int k = 0; k < 4; ++k) weights.y[k] = mask.own[k] * mask.below[k], weights.inside[k] = mask.own[k];
  return weights;
}

// Disparities of four pixels, and the weights of their pairs, 0 of those that are none.
template <typename T> struct Pixels {
  Around<T> disparity;
  Weights<T> weights;

  template <typename Guide, bool kQuads>
  __device__ Pixels(const SmoothScale<T>& scale, const Guide& guide, int64_t b, const Four<kQuads>& four, bool left_too)
      : disparity(scale.disparity + b * guide.plane + four.at, four, left_too, [](T value) { return value; }),
        weights(weigh(guide, b, four, left_too)) {
    if (!four.has_left) weights.x[0] = 0;
    if (!four.has_right) weights.x[4] = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k > 0 && !four.has(k)) weights.x[k] = 0;
      if (!four.has_below || !four.has(k)) weights.y[k] = 0;
      if (!four.has(k)) weights.inside[k] = 0;
    }
  }
};

// Calls f(column, first row, last row) for four columns and a few rows each, shared among the block's threads.
template <typename T, typename F> __device__ void for_each_strip(const SmoothTask<T>& task, int width, const F& f) {
  const int columns = (width + 3) / 4, strips = (task.last_row - task.first_row + kRows - 1) / kRows;
  for_each_place<kThreads>(0, strips, 0, columns, [&](int strip, int column) {
    const int first = task.first_row + strip * kRows;
    f(4 * column, first, min(first + kRows, task.last_row));
  });
}

template <bool kQuads, typename T, typename Guide>
__device__ __forceinline__ void sum_task(
    const SmoothScale<T>& scale, const Guide& guide, const SmoothTask<T>& task, T (&total)[kSmoothSums]) {
  for_each_strip(task, scale.width, [&](int x, int first_row, int last_row) {
#pragma unroll 1
    for (int y = first_row; y < last_row; ++y) {
      const Four<kQuads> four(scale, y, x);
      const Pixels<T> pixels(scale, guide, task.b, four, false);
      const Around<T>& d = pixels.disparity;
      const Weights<T>& weights = pixels.weights;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        total[kSumD] += select<T>(weights.inside[k] != 0, d.own[k], T(0));
        total[kCostY] += pair_cost<T>(d.own[k], d.below[k], weights.y[k]);
        if (!Guide::kCountsAll) total[kArea] += weights.inside[k], total[kPairsY] += weights.y[k];
      }
      d.pairs([&](int k, T before, T after) {
        if (k == 0) return;
        total[kCostX] += pair_cost<T>(before, after, weights.x[k]);
        if (!Guide::kCountsAll) total[kPairsX] += weights.x[k];
      });
    }
  });
}

template <typename T, typename Guide>
__global__ void __launch_bounds__(kThreads, 1)
    sum_tasks(__grid_constant__ const SmoothnessParams<T> p, T* sums, unsigned in_quads) {
  const auto task = p.task(blockIdx.x);
  const SmoothScale<T>& scale = p.scales[task.scale];
  const Guide guide = p.template guide<Guide>(task.scale);
  T total[kSmoothSums] = {};
  if (in_quads >> task.scale & 1)
    sum_task<true>(scale, guide, task, total);
  else
    sum_task<false>(scale, guide, task, total);
  block_sum<kThreads>(total);
  if (threadIdx.x == 0)
    for (int k = 0; k < kSmoothSums; ++k) sums[int64_t(blockIdx.x) * kSmoothSums + k] = total[k];
}

constexpr int kFinishThreads = 512;
constexpr int kFinishItems = 256;  // samples of scales that are finished at a time

// One block for all: a thread for each sum over the tasks of a sample at a scale, then one for each sample and scale.
template <typename T, typename Guide>
__global__ void __launch_bounds__(kFinishThreads, 1)
    finish(__grid_constant__ const SmoothnessParams<T> p, const T* sums, T* loss, T* factors) {
  __shared__ double pairs_of[kMaxSmoothScales][2], kept[kFinishItems][kSmoothSums];
#pragma unroll 1
  for (int s = 0; s < p.count; ++s) {
    const SmoothScale<T>& scale = p.scales[s];
    double pairs[2] = {double(p.batch * scale.height * (scale.width - 1)), double(p.batch * (scale.height - 1) * scale.width)};
    if constexpr (!Guide::kCountsAll) {
      pairs[0] = pairs[1] = 0;
      for (int64_t i = threadIdx.x; i < p.batch * scale.blocks; i += kFinishThreads) {
        const T* task = sums + (scale.first_task + i) * kSmoothSums;
        pairs[0] += task[kPairsX], pairs[1] += task[kPairsY];
      }
      block_sum<kFinishThreads>(pairs);
      __syncthreads();
    }
    if (threadIdx.x == 0) pairs_of[s][0] = pairs[0], pairs_of[s][1] = pairs[1];
  }
  const int64_t items = p.count * p.batch;
  double total[1] = {};
#pragma unroll 1
  for (int64_t first = 0; first < items; first += kFinishItems) {
    const int some = int(min<int64_t>(kFinishItems, items - first));
    for (int i = threadIdx.x; i < some * kSmoothSums; i += kFinishThreads) {
      const int64_t item = first + i / kSmoothSums;
      const SmoothScale<T>& scale = p.scales[item / p.batch];
      const T* tasks = sums + (scale.first_task + item % p.batch * scale.blocks) * kSmoothSums + i % kSmoothSums;
      double value = 0;
#pragma unroll 8
      for (int task = 0; task < scale.blocks; ++task) value += tasks[task * kSmoothSums];
      kept[i / kSmoothSums][i % kSmoothSums] = value;
    }
    __syncthreads();
    if (int(threadIdx.x) < some) {
      const int64_t item = first + threadIdx.x;
      const int s = int(item / p.batch);
      if (Guide::kCountsAll) kept[threadIdx.x][kArea] = double(p.scales[s].height) * p.scales[s].width;
      total[0] += finish_smoothness_sample(
          p, kept[threadIdx.x], s, item % p.batch, pairs_of[s][0], pairs_of[s][1], factors);
    }
    __syncthreads();
  }
  block_sum<kFinishThreads>(total);
  if (threadIdx.x == 0) *loss = T(total[0]);
}

// Each weight is found once: the one above is kept as threads go down.
template <bool kQuads, typename T, typename Guide>
__device__ __forceinline__ void grad_task(
    const SmoothScale<T>& scale, const Guide& guide, const SmoothTask<T>& task, const T* factor, T grad) {
  const T factor_x = factor[0], factor_y = factor[1], factor_inside = factor[2];
  for_each_strip(task, scale.width, [&](int x, int first_row, int last_row) {
    T above[4] = {};
#pragma unroll 1
    for (int y = max(first_row - 1, 0); y < last_row; ++y) {
      const Four<kQuads> four(scale, y, x);
      const Pixels<T> pixels(scale, guide, task.b, four, true);
      const Around<T>& d = pixels.disparity;
      const Weights<T>& weights = pixels.weights;
      T slopes[5], out[4];
      d.pairs([&](int k, T before, T after) { slopes[k] = pair_slope<T>(before, after, weights.x[k]); });
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const T down = pair_slope<T>(d.own[k], d.below[k], weights.y[k]);
        out[k] = grad * (factor_x * (slopes[k + 1] - slopes[k]) + factor_y * (down - above[k]) - factor_inside * weights.inside[k]);
        above[k] = down;
      }
      if (y < first_row) continue;
      T* to = scale.grad + task.b * guide.plane + four.at;
      if constexpr (kQuads)
        *reinterpret_cast<Quad<T>*>(to) = {out[0], out[1], out[2], out[3]};
      else
        for (int k = 0; k < four.count; ++k) to[k] = out[k];
    }
  });
}

template <typename T, typename Guide>
__global__ void __launch_bounds__(kThreads, 1) grad_tasks(
    __grid_constant__ const SmoothnessParams<T> p, const T* grad_loss, const T* factors, unsigned in_quads) {
  const auto task = p.task(blockIdx.x);
  const SmoothScale<T>& scale = p.scales[task.scale];
  const Guide guide = p.template guide<Guide>(task.scale);
  const T* factor = factors + (task.scale * p.batch + task.b) * 3;
  if (in_quads >> task.scale & 1)
    grad_task<true>(scale, guide, task, factor, *grad_loss);
  else
    grad_task<false>(scale, guide, task, factor, *grad_loss);
}

// Of which scales disparities, guides and gradients are read by four: a bit each.
template <typename Guide, typename T> unsigned scales_in_quads(const SmoothnessParams<T>& p) {
  unsigned found = 0;
  for (int s = 0; s < p.count; ++s) {
    const SmoothScale<T>& scale = p.scales[s];
    const auto* guide = static_cast<const typename Guide::value_t*>(scale.guide);
    found |= unsigned(in_quads(scale.width, scale.disparity, guide, scale.grad)) << s;
  }
  return found;
}

}  // namespace

void smoothness_loss_fwd(
    const std::vector<Tensor>& disparities, const std::vector<Tensor>& guides, const Tensor& loss,
    const Tensor& factors, const Tensor& sums, const Where& where) {
  dispatch_smoothness(disparities, guides, [&](const auto& p, auto guide) {
    using T = typename decltype(guide)::scalar_t;
    const auto stream = cudaStream_t(where.stream);
    if (p.tasks > 0) {
      const unsigned quads = scales_in_quads<decltype(guide)>(p);
      sum_tasks<T, decltype(guide)><<<unsigned(p.tasks), kThreads, 0, stream>>>(p, sums.as<T>(), quads);
      check_launch("smoothness_loss_fwd");
    }
    finish<T, decltype(guide)><<<1, kFinishThreads, 0, stream>>>(p, sums.as<const T>(), loss.as<T>(), factors.as<T>());
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
        p, grad_loss.as<T>(), factors.as<T>(), scales_in_quads<decltype(guide)>(p));
    check_launch("smoothness_loss_bwd");
  });
}

}  // namespace mcd::MCD_TARGET
