#include "../common/for_each.h"
#include "../operators.h"
#include "smoothness_loss.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kThreads = 128, kRows = 4;

// Four pixels in a row, or those `count` < 4 that are left of it, and what there is around them.
struct Four {
  int64_t at;  // within the sample
  int width, count;
  bool left, right, below;
  bool quads;  // whether they are read as one
};

template <typename T, typename Stored> __device__ void read_four(T (&out)[4], const Stored* from, const Four& four) {
  if (four.quads) {
    const auto quad = *reinterpret_cast<const Quad<Stored>*>(from);
#pragma unroll
    for (int k = 0; k < 4; ++k) out[k] = load<T>(&quad.lanes[k], 1);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) out[k] = k < four.count ? load<T>(from + k, 1) : T(0);
  }
}
// Values of four pixels, of those before and after them, and of those below. Of what is not there, 0.
template <typename T> struct Around {
  T own[4], below[4] = {}, left = 0, right = 0;

  template <typename Stored, typename Read> __device__ Around(const Stored* from, const Four& four, const Read& read) {
    read(own, from);
    if (four.below) read(below, from + four.width);
    if (four.left) left = read(from - 1);
    if (four.right) right = read(from + 4);
  }
  // f(k, a, b) for the pairs along x: the k-th ends at the k-th pixel.
  template <typename F> __device__ void pairs(const F& f) const {
    f(0, left, own[0]), f(1, own[0], own[1]), f(2, own[1], own[2]), f(3, own[2], own[3]), f(4, own[3], right);
  }
};
template <typename T> struct Weights {
  T x[5], y[4], inside[4];  // of pairs, the k-th along x ending at the k-th pixel, and of pixels

  // Nothing for what is not there.
  __device__ void limit(const Four& four, bool left) {
    if (!left || !four.left) x[0] = 0;
    if (!four.right) x[4] = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k > 0 && k >= four.count) x[k] = 0;
      if (!four.below || k >= four.count) y[k] = 0;
      if (k >= four.count) inside[k] = 0;
    }
  }
};

template <typename T, typename image_t>
__device__ Weights<T> weigh(const EdgeGuide<T, image_t>& guide, int64_t b, const Four& four) {
  struct Read {
    const Four& four;
    __device__ void operator()(T (&out)[4], const image_t* from) const { read_four(out, from, four); }
    __device__ T operator()(const image_t* from) const { return load<T>(from, 1); }
  };
  Weights<T> weights{};
  const image_t* channel = guide.image + b * guide.channels * guide.plane + four.at;
  const auto add = [&] {
    const Around<T> image(channel, four, Read{four});
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
template <typename T> __device__ Weights<T> weigh(const MaskGuide<T>& guide, int64_t b, const Four& four) {
  struct Read {
    const Four& four;
    __device__ void operator()(T (&out)[4], const bool* from) const {
#pragma unroll
      for (int k = 0; k < 4; ++k) out[k] = k < four.count && from[k] ? T(1) : T(0);
    }
    __device__ T operator()(const bool* from) const { return *from ? T(1) : T(0); }
  };
  Weights<T> weights;
  const Around<T> mask(guide.mask + b * guide.plane + four.at, four, Read{four});
  mask.pairs([&](int k, T before, T after) { weights.x[k] = before * after; });
#pragma unroll
  for (int k = 0; k < 4; ++k) weights.y[k] = mask.own[k] * mask.below[k], weights.inside[k] = mask.own[k];
  return weights;
}

// Disparities of four pixels, and the weights of their pairs: of the first with the one before only if `left`.
template <typename T, typename Guide> struct Pixels {
  Around<T> disparity;
  Weights<T> weights;

  __device__ Pixels(const SmoothScale<T>& scale, const Guide& guide, int64_t b, const Four& four, bool left)
      : disparity(scale.disparity + b * scale.height * scale.width + four.at, four, Read{four}),
        weights(weigh(guide, b, four)) {
    weights.limit(four, left);
  }

 private:
  struct Read {
    const Four& four;
    __device__ void operator()(T (&out)[4], const T* from) const { read_four(out, from, four); }
    __device__ T operator()(const T* from) const { return *from; }
  };
};

// Calls f(column, first row, last row) for four columns and a few rows each, shared among the block's threads.
template <typename T, typename F> __device__ void for_each_strip(const SmoothTask<T>& task, int width, const F& f) {
  const int columns = (width + 3) / 4, strips = (task.last_row - task.first_row + kRows - 1) / kRows;
  for_each_place<kThreads>(0, strips, 0, columns, [&](int strip, int column) {
    const int first = task.first_row + strip * kRows;
    f(4 * column, first, min(first + kRows, task.last_row));
  });
}
template <typename T> __device__ Four four_at(const SmoothScale<T>& scale, int y, int x, bool quads, bool left) {
  const int count = min(4, scale.width - x);
  return {int64_t(y) * scale.width + x, scale.width, count, left && x > 0, x + 4 < scale.width, y + 1 < scale.height, quads};
}

template <typename T, typename Guide>
__global__ void __launch_bounds__(kThreads)
    sum_tasks(__grid_constant__ const SmoothnessParams<T> p, T* sums, unsigned in_quads) {
  const auto task = p.task(blockIdx.x);
  const SmoothScale<T>& scale = p.scales[task.scale];
  const Guide guide = p.template guide<Guide>(task.scale);
  const bool quads = in_quads >> task.scale & 1;
  T total[kSmoothSums] = {};
  for_each_strip(task, scale.width, [&](int x, int first_row, int last_row) {
#pragma unroll 1
    for (int y = first_row; y < last_row; ++y) {
      const Four four = four_at(scale, y, x, quads, false);
      const Pixels<T, Guide> pixels(scale, guide, task.b, four, false);
      const auto& [d, weights] = pixels;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        total[kSumD] += select<T>(weights.inside[k] != 0, d.own[k], T(0));
        total[kArea] += weights.inside[k];
        total[kCostY] += pair_cost<T>(d.own[k], d.below[k], weights.y[k]);
        total[kPairsY] += four.below && k < four.count ? Guide::template counted<T>(weights.y[k]) : T(0);
      }
      d.pairs([&](int k, T before, T after) {
        if (k == 0) return;
        total[kCostX] += pair_cost<T>(before, after, weights.x[k]);
        total[kPairsX] += (k < 4 ? k < four.count : four.right) ? Guide::template counted<T>(weights.x[k]) : T(0);
      });
    }
  });
  block_sum<kThreads>(total);
  if (threadIdx.x == 0)
    for (int k = 0; k < kSmoothSums; ++k) sums[int64_t(blockIdx.x) * kSmoothSums + k] = total[k];
}

constexpr int kFinishThreads = 1024, kFinishWarps = kFinishThreads / 32;
constexpr int kFinishItems = 256;  // samples of scales that are finished at a time

// One block for all: warps sum the tasks of each sample of each scale, a thread finishes it.
template <typename T, typename Guide>
__global__ void __launch_bounds__(kFinishThreads)
    finish(__grid_constant__ const SmoothnessParams<T> p, const T* sums, T* loss, T* factors) {
  static_assert(kFinishWarps == 32, "a lane for what each warp has summed");
  __shared__ double pairs_of[kMaxSmoothScales][2], kept[kFinishItems][kSmoothSums];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
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
#pragma unroll 1
    for (int i = warp; i < some; i += kFinishWarps) {
      const SmoothScale<T>& scale = p.scales[(first + i) / p.batch];
      const T* tasks = sums + (scale.first_task + (first + i) % p.batch * scale.blocks) * kSmoothSums;
      double values[kSumsOfWarp] = {};
      for (int block = lane; block < scale.blocks; block += 32)
#pragma unroll
        for (int k = 0; k < kSmoothSums; ++k) values[k] += tasks[block * kSmoothSums + k];
      const double value = sum_of_warp(values);
      if (lane % 2 == 0 && lane / 2 < kSmoothSums) kept[i][lane / 2] = value;
    }
    __syncthreads();
    if (int(threadIdx.x) < some) {
      const int64_t item = first + threadIdx.x;
      const int s = int(item / p.batch);
      total[0] += finish_smoothness_sample(
          p, kept[threadIdx.x], s, item % p.batch, pairs_of[s][0], pairs_of[s][1], factors);
    }
    __syncthreads();
  }
  block_sum<kFinishThreads>(total);
  if (threadIdx.x == 0) *loss = T(total[0]);
}

// Each weight is found once: the one above is kept as threads go down.
template <typename T, typename Guide>
__global__ void __launch_bounds__(kThreads) grad_tasks(
    __grid_constant__ const SmoothnessParams<T> p, const T* grad_loss, const T* factors, unsigned in_quads) {
  const auto task = p.task(blockIdx.x);
  const SmoothScale<T>& scale = p.scales[task.scale];
  const Guide guide = p.template guide<Guide>(task.scale);
  const bool quads = in_quads >> task.scale & 1;
  const T* factor = factors + (task.scale * p.batch + task.b) * 3;
  const T factor_x = factor[0], factor_y = factor[1], factor_inside = factor[2], grad = *grad_loss;
  for_each_strip(task, scale.width, [&](int x, int first_row, int last_row) {
    T above[4] = {};
#pragma unroll 1
    for (int y = max(first_row - 1, 0); y < last_row; ++y) {
      const Four four = four_at(scale, y, x, quads, true);
      const Pixels<T, Guide> pixels(scale, guide, task.b, four, true);
      const auto& [d, weights] = pixels;
      T slopes[5], out[4];
      d.pairs([&](int k, T before, T after) { slopes[k] = pair_slope<T>(before, after, weights.x[k]); });
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        // What the last of a row has after it stands behind the last of four.
        const T after = k + 1 < four.count ? slopes[k + 1] : k == 3 ? slopes[4] : T(0);
        const T down = pair_slope<T>(d.own[k], d.below[k], weights.y[k]);
        out[k] = grad * (factor_x * (after - slopes[k]) + factor_y * (down - above[k]) - factor_inside * weights.inside[k]);
        above[k] = down;
      }
      if (y < first_row) continue;
      T* to = scale.grad + task.b * scale.height * scale.width + four.at;
      if (quads)
        *reinterpret_cast<Quad<T>*>(to) = {out[0], out[1], out[2], out[3]};
      else
        for (int k = 0; k < four.count; ++k) to[k] = out[k];
    }
  });
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
