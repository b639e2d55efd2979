#include "smoothness_loss.h"

#include <memory>

#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

template <typename T, typename Guide> struct SumTask {
  SmoothnessParams<T> p;
  T* sums;  // [tasks, kSmoothSums]

  MCD_HD void operator()(int64_t number) const {
    using V = Pack<T>;
    const auto task = p.task(number);
    const SmoothScale<T>& scale = p.scales[task.scale];
    const Guide guide = p.template guide<Guide>(task.scale);
    V total[kSmoothSums] = {};
    for (int y = task.first_row; y < task.last_row; ++y)
      for (int x = 0; x < scale.width; x += kLanes<V>)
        add_smoothness_sums<V>(scale, guide, task.b, y, x, min(kLanes<V>, scale.width - x), total);
    for (int k = 0; k < kSmoothSums; ++k) sums[number * kSmoothSums + k] = sum(total[k]);
  }
};

template <typename T, typename Guide> struct GradTask {
  using V = Pack<T>;

  SmoothnessParams<T> p;
  const T *grad_loss, *factors;  // [], [scales, B, 3]

  // The slopes of the pairs that row y forms with the next, weighed; zeros beyond the last row.
  MCD_HD void find_slopes_y(const SmoothScale<T>& scale, const Guide& guide, int64_t b, int y, T* out) const {
    const int width = scale.width;
    const T* row = scale.disparity + (b * scale.height + y) * width;
    for (int x = 0; x < width; x += kLanes<V>) {
      const int count = min(kLanes<V>, width - x);
      V slope{};
      if (y >= 0 && y + 1 < scale.height)
        slope = pair_slope<V>(
            load<V>(row + x, count), load<V>(row + width + x, count),
            guide.template weight<V>(b, int64_t(y) * width + x, width, count));
      store(out + x, slope, count);
    }
  }

  MCD_HD void operator()(int64_t number) const {
    const auto task = p.task(number);
    const SmoothScale<T>& scale = p.scales[task.scale];
    const Guide guide = p.template guide<Guide>(task.scale);
    const T* factor = factors + (task.scale * p.batch + task.b) * 3;
    const T by_x = *grad_loss * factor[0], by_y = *grad_loss * factor[1], each = *grad_loss * factor[2];
    const int width = scale.width;
    const std::unique_ptr<T[]> scratch(new T[3 * width + 1]);
    T *above = scratch.get(), *below = above + width, *across = below + width + 1;  // across[-1]: before the first pixel
    find_slopes_y(scale, guide, task.b, task.first_row - 1, above);
    for (int y = task.first_row; y < task.last_row; ++y) {
      find_slopes_y(scale, guide, task.b, y, below);
      const int64_t start = int64_t(y) * width;
      const T* row = scale.disparity + task.b * scale.height * width + start;
      for (int x = 0; x < width - 1; x += kLanes<V>) {
        const int count = min(kLanes<V>, width - 1 - x);
        const V weight = guide.template weight<V>(task.b, start + x, 1, count);
        store(across + x, pair_slope<V>(load<V>(row + x, count), load<V>(row + x + 1, count), weight), count);
      }
      across[-1] = across[width - 1] = 0;
      T* out = scale.grad + task.b * scale.height * width + start;
      for (int x = 0; x < width; x += kLanes<V>) {
        const int count = min(kLanes<V>, width - x);
        const V slope_x = load<V>(across + x, count) - load<V>(across + x - 1, count);
        const V slope_y = load<V>(below + x, count) - load<V>(above + x, count);
        const V inside = guide.template inside<V>(task.b, start + x, count);
        store(out + x, by_x * slope_x + by_y * slope_y - each * inside, count);
      }
      T* swapped = above;
      above = below, below = swapped;
    }
  }
};

// The loss from the sums of all tasks, and the factors of its gradient.
template <typename T> T finish(const SmoothnessParams<T>& p, const T* sums, T* factors) {
  double total = 0;
  for (int s = 0; s < p.count; ++s) {
    double pairs_x = 0, pairs_y = 0;
    for (int64_t i = 0; i < p.batch * p.scales[s].blocks; ++i) {
      const T* task = sums + (p.scales[s].first_task + i) * kSmoothSums;
      pairs_x += task[kPairsX], pairs_y += task[kPairsY];
    }
    for (int64_t b = 0; b < p.batch; ++b) total += finish_smoothness_sample(p, sums, s, b, pairs_x, pairs_y, factors);
  }
  return T(total);
}

}  // namespace

void smoothness_loss_fwd(
    const std::vector<Tensor>& disparities, const std::vector<Tensor>& guides, const Tensor& loss,
    const Tensor& factors, const Tensor& sums, const Where& where) {
  dispatch_smoothness(disparities, guides, [&](const auto& p, auto guide) {
    using T = typename decltype(guide)::scalar_t;
    for_each_cpu(p.tasks, where.threads, SumTask<T, decltype(guide)>{p, sums.as<T>()});
    *loss.as<T>() = finish<T>(p, sums.as<const T>(), factors.as<T>());
  });
}

void smoothness_loss_bwd(
    const Tensor& grad_loss, const std::vector<Tensor>& disparities, const std::vector<Tensor>& guides,
    const Tensor& factors, const std::vector<Tensor>& grads, const Where& where) {
  dispatch_smoothness(disparities, guides, [&](auto p, auto guide) {
    using T = typename decltype(guide)::scalar_t;
    for (int s = 0; s < p.count; ++s) p.scales[s].grad = grads[s].template as<T>();
    for_each_cpu(
        p.tasks, where.threads, GradTask<T, decltype(guide)>{p, grad_loss.as<T>(), factors.as<T>()});
  });
}

}  // namespace mcd::MCD_TARGET
