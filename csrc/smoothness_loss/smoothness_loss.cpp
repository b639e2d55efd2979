#include "smoothness_loss.h"

#include "../common/buffer.h"
#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

// body(x, count, pairs) for the packs of a row: `count` pixels from x on, `pairs` of which have a right neighbour. Where all
// have, both are constants of the compiler, which then has nothing to mask.
template <typename V, typename Body> MCD_HD void for_packs(int width, const Body& body) {
  constexpr std::integral_constant<int, kLanes<V>> whole{};
  int x = 0;
  for (; x + whole < width; x += whole) body(x, whole, whole);
  if (x < width) body(x, width - x, width - x - 1);
}

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
      for_packs<V>(scale.width, [&](int x, auto count, auto pairs) {
        add_smoothness_sums<V>(scale, guide, task.b, y, x, count, pairs, total);
      });
    for (int k = 0; k < kSmoothSums; ++k) sums[number * kSmoothSums + k] = sum(total[k]);
  }
};

template <typename T, typename Guide> struct GradTask {
  using V = Pack<T>;

  SmoothnessParams<T> p;
  const T *grad_loss, *factors;  // [], [scales, B, 3]

  // The slopes of `count` pairs, each with the pixel `step` further.
  static MCD_HD V slopes(const T* disparity, const Guide& guide, int64_t b, int64_t at, int64_t step, int count) {
    const T* from = disparity + at;
    const V weight = guide.template weight<V>(b, at, step, count);
    return pair_slope<V>(load<V>(from, count), load<V>(from + step, count), weight);
  }

  MCD_HD void operator()(int64_t number) const {
    const auto task = p.task(number);
    const SmoothScale<T>& scale = p.scales[task.scale];
    const Guide guide = p.template guide<Guide>(task.scale);
    const T* factor = factors + (task.scale * p.batch + task.b) * 3;
    const T by_x = *grad_loss * factor[0], by_y = *grad_loss * factor[1], each = *grad_loss * factor[2];
    const int width = scale.width;
    const T* disparity = scale.disparity + task.b * scale.height * width;
    T* grad = scale.grad + task.b * scale.height * width;
    // The slopes of the row above with the row at hand.
    const Buffer<T> slopes_above(width);
    T* above = slopes_above.get();
    if (task.first_row > 0)
      for_packs<V>(width, [&](int x, auto count, auto) {
        store(above + x, slopes(disparity, guide, task.b, int64_t(task.first_row - 1) * width + x, width, count), count);
      });
    for (int y = task.first_row; y < task.last_row; ++y) {
      const bool has_below = y + 1 < scale.height;
      V before{};
      for_packs<V>(width, [&](int x, auto count, auto pairs) {
        const int64_t at = int64_t(y) * width + x;
        const V across = slopes(disparity, guide, task.b, at, 1, pairs);
        const V below = has_below ? slopes(disparity, guide, task.b, at, width, count) : V{};
        const V slope_x = across - lane_before(before, across), slope_y = below - load<V>(above + x, count);
        const V inside = guide.template inside<V>(task.b, at, count);
        store(grad + at, by_x * slope_x + by_y * slope_y - each * inside, count);
        store(above + x, below, count);
        before = across;
      });
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
    for (int64_t b = 0; b < p.batch; ++b) {
      double sample[kSmoothSums] = {};
      const T* tasks = sums + (p.scales[s].first_task + b * p.scales[s].blocks) * kSmoothSums;
      for (int i = 0; i < p.scales[s].blocks * kSmoothSums; ++i) sample[i % kSmoothSums] += tasks[i];
      total += finish_smoothness_sample(p, sample, s, b, pairs_x, pairs_y, factors);
    }
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
