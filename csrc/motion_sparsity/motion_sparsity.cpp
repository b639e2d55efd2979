#include "motion_sparsity.h"

#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

// A plane is small enough for the cache, so its two passes read memory once.
template <typename T> struct FwdPlane {
  const T* motion;  // [planes, pixels]
  T *means, *costs;  // [planes]
  int64_t pixels;

  MCD_HD void operator()(int64_t plane) const {
    using V = Pack<T>;
    const T* in = motion + plane * pixels;
    const T mean = T(add_up([&](int64_t i, int count) { return abs<V>(load<V>(in + i, count)); }) / double(pixels));
    means[plane] = mean;
    costs[plane] = T(2 * mean * add_up([&](int64_t i, int count) {
      return select<V>(iota<V>() < T(count), sparsity_root<V>(load<V>(in + i, count), mean), V{});
    }));
  }

  // Sum of the packs that value(i, count) makes of `count` pixels from i on; in double after every few thousand.
  template <typename Value> MCD_HD double add_up(const Value& value) const {
    using V = Pack<T>;
    double total = 0;
    for (int64_t start = 0; start < pixels; start += 4096) {
      const int64_t end = min<int64_t>(start + 4096, pixels);
      V part{};
      for (int64_t i = start; i < end; i += kLanes<V>) part += value(i, int(min<int64_t>(kLanes<V>, end - i)));
      total += sum(part);
    }
    return total;
  }
};

template <typename T> struct BwdPlane {
  const T *grad_loss, *motion, *means;
  T* grad;
  int64_t planes, pixels;

  MCD_HD void operator()(int64_t plane) const {
    using V = Pack<T>;
    const T scale = *grad_loss / T(planes * pixels), mean = means[plane];
    for (int64_t i = plane * pixels; i < (plane + 1) * pixels; i += kLanes<V>) {
      const int count = int(min<int64_t>(kLanes<V>, (plane + 1) * pixels - i));
      store(grad + i, scale * sparsity_slope<V>(load<V>(motion + i, count), mean), count);
    }
  }
};

}  // namespace

void motion_sparsity_fwd(
    const Tensor& motion, const Tensor& loss, const Tensor& means, const Tensor& costs, const Where& where) {
  dispatch(motion.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const int64_t planes = means.size[0], pixels = motion.size[motion.dims - 2] * motion.size[motion.dims - 1];
    for_each_cpu(planes, where.threads, FwdPlane<T>{motion.as<T>(), means.as<T>(), costs.as<T>(), pixels});
    double total = 0;
    for (int64_t plane = 0; plane < planes; ++plane) total += costs.as<T>()[plane];
    *loss.as<T>() = T(total / double(max<int64_t>(planes * pixels, 1)));
  });
}

void motion_sparsity_bwd(
    const Tensor& grad_loss, const Tensor& motion, const Tensor& means, const Tensor& grad, const Where& where) {
  dispatch(motion.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const int64_t planes = means.size[0], pixels = motion.size[motion.dims - 2] * motion.size[motion.dims - 1];
    for_each_cpu(
        planes, where.threads,
        BwdPlane<T>{grad_loss.as<T>(), motion.as<T>(), means.as<T>(), grad.as<T>(), planes, pixels});
  });
}

}  // namespace mcd::MCD_TARGET
