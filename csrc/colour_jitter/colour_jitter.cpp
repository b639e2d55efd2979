#include "colour_jitter.h"

#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

// One image is one task: its mean is a sum in a fixed order.
struct JitterImage {
  using V = Pack<float>;
  Jitter jitter;

  template <typename F> MCD_HD void each(const F& f) const {
    for (int64_t at = 0; at < jitter.plane; at += kLanes<V>) f(at, int(min<int64_t>(kLanes<V>, jitter.plane - at)));
  }

  MCD_HD void operator()(int64_t image) const {
    const Draws draws = jitter.of(image);
    if (draws.none()) {
      const int64_t size = 3 * jitter.plane;
      __builtin_memcpy(jitter.changed + image * size, jitter.images + image * size, size);
      return;
    }
    double total = 0;
    each([&](int64_t at, int count) {
      auto colour = jitter.read<V>(image, at, count);
      draws.change(colour, true, 0);
      const V level = grey(colour);
      if (count == kLanes<V>) total += sum(level);
      else for (int i = 0; i < count; ++i) total += level[i];
    });
    const float mean = float(total / jitter.plane);
    each([&](int64_t at, int count) {
      auto colour = jitter.read<V>(image, at, count);
      draws.change(colour, false, mean);
      jitter.write<V>(image, at, colour, count);
    });
  }
};

}  // namespace

void colour_jitter_fwd(const Tensor& images, const Tensor& draws, const Tensor& changed, const Where& where) {
  const auto jitter = jitter_of(images, draws, changed);
  for_each_cpu(jitter.items * jitter.frames, where.threads, JitterImage{jitter});
}

}  // namespace mcd::MCD_TARGET
