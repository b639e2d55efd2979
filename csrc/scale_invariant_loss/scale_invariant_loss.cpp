#include "scale_invariant_loss.h"

#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

// A set of values that is read in packs.
template <typename Values, typename scalar_t> struct Set {
  using V = Pack<scalar_t>;
  Values values;
  int64_t size;
  int64_t count = 0;  // of values taken
  Summary<V> summary{};

  MCD_HD V operator()(int64_t i, int lanes, Mask<V>* taken) const { return values.template at<V>(i, lanes, taken); }

  MCD_HD void summarize() {
    Int<V> counts{};
    for (int64_t i = 0; i < size; i += kLanes<V>) {
      Mask<V> taken;
      const V value = values.template at<V>(i, int(min<int64_t>(kLanes<V>, size - i)), &taken);
      summary.add(value, taken);
      counts += convert<Int<V>>(taken & 1);
    }
    count = sum(counts);
  }
  MCD_HD scalar_t quantile(double which, bool linear) const {
    const SummaryOfLanes<V> found(summary);
    if (count == 0 || found.poisoned) return nan<scalar_t>();
    const QuantilePosition position(which, count, linear);
    Selection<V, Set> selection(*this, size, count, found.least, found.largest);
    return position.between(selection.find(position.rank, position.fraction != 0));
  }
};

template <typename scalar_t> struct Sample {
  using V = Pack<scalar_t>;
  ScaleInvariantFwd<scalar_t> fwd;

  MCD_HD void operator()(int64_t b) const {
    const auto& p = fwd.params;
    const CountedRatios<scalar_t> of_sample{p, b};
    Set<CountedRatios<scalar_t>, scalar_t> ratios{of_sample, p.pixels};
    Set<CountedPredictions<scalar_t>, scalar_t> predictions{{p, b}, p.pixels};
    ratios.summarize();
    predictions.summarize();
    const scalar_t least = SummaryOfLanes<V>(predictions.summary).least;
    const Gate<scalar_t> gate{ratios.quantile(0.5, false), least, predictions.quantile(0.9, true)};
    Set<GatedRatios<scalar_t>, scalar_t> gated{{of_sample, gate}, p.pixels};
    gated.summarize();
    const scalar_t factor = gated.quantile(0.5, false);

    typename Lanes<V>::template of<double> error{};
    Int<V> compared{};
    for (int64_t i = 0; i < p.pixels; i += kLanes<V>) {
      Mask<V> chosen;
      const V size = fwd.template pixels<V>(b, i, int(min<int64_t>(kLanes<V>, p.pixels - i)), gate, factor, &chosen);
      error += convert<decltype(error)>(size);
      compared += convert<Int<V>>(chosen & 1);
    }
    fwd.factor[b] = factor;
    fwd.error[b] = sum(error);
    fwd.compared[b] = sum(compared);
  }
};

constexpr int64_t kChunk = 4096;

template <typename scalar_t> struct GradOfChunk {
  using V = Pack<scalar_t>;
  ScaleInvariantBwd<scalar_t> bwd;
  int64_t chunks;  // of a sample

  MCD_HD void operator()(int64_t i) const {
    const int64_t b = i / chunks, begin = i % chunks * kChunk, end = min(begin + kChunk, bwd.params.pixels);
    for (int64_t x = begin; x < end; x += kLanes<V>)
      bwd.template pixels<V>(b, x, int(min<int64_t>(kLanes<V>, end - x)));
  }
};

}  // namespace

void scale_invariant_loss_fwd(
    const Tensor& prediction, const Tensor& target, const Tensor& mask, const Tensor& loss, const Tensor& gate,
    const Tensor& factor, const Tensor& weight, const Tensor& error, const Tensor& compared, const Where& where) {
  dispatch_scale_invariant(prediction, target, mask, [&](auto params) {
    using scalar_t = typename decltype(params)::scalar;
    const ScaleInvariantFwd<scalar_t> fwd{params, loss.as<scalar_t>(), gate.as<bool>(), factor.as<scalar_t>(),
                                          weight.as<scalar_t>(), error.as<double>(), compared.as<int64_t>()};
    for_each_cpu(params.batch, where.threads, Sample<scalar_t>{fwd});
    fwd.finish();
  });
}

void scale_invariant_loss_bwd(
    const Tensor& grad_loss, const Tensor& prediction, const Tensor& target, const Tensor& mask, const Tensor& gate,
    const Tensor& factor, const Tensor& weight, const Tensor& grad_prediction, const Where& where) {
  dispatch_scale_invariant(prediction, target, mask, [&](auto params) {
    using scalar_t = typename decltype(params)::scalar;
    const int64_t chunks = (params.pixels + kChunk - 1) / kChunk;
    for_each_cpu(
        params.batch * chunks, where.threads,
        GradOfChunk<scalar_t>{
            {params, grad_loss.as<scalar_t>(), gate.as<bool>(), factor.as<scalar_t>(), weight.as<scalar_t>(),
             grad_prediction.as<scalar_t>()},
            chunks});
  });
}

}  // namespace mcd::MCD_TARGET
