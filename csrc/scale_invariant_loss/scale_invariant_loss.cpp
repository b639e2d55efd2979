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
  double* error;      // [B], sums over gate and mask
  int64_t* compared;  // [B], of so many pixels

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

    typename Lanes<V>::template of<double> errors{};
    Int<V> counts{};
    for (int64_t i = 0; i < p.pixels; i += kLanes<V>) {
      const int count = int(min<int64_t>(kLanes<V>, p.pixels - i));
      const V target = load<V>(p.target + b * p.pixels + i, count);
      Mask<V> counted, chosen;
      const V ratio = of_sample.template at<V>(i, count, &counted);
      const V size = fwd.template pixels<V>(b, i, count, target, ratio, gate.template at<V>(target, counted), factor, &chosen);
      errors += convert<decltype(errors)>(size);
      counts += convert<Int<V>>(chosen & 1);
    }
    fwd.factor[b] = factor;
    error[b] = sum(errors);
    compared[b] = sum(counts);
  }
};

constexpr int64_t kChunk = 4096;

template <typename scalar_t> struct GradOfChunk {
  using V = Pack<scalar_t>;
  ScaleInvariantBwd<scalar_t> bwd;
  int64_t chunks;  // of a sample

  MCD_HD void operator()(int64_t i) const {
    const int64_t b = i / chunks, begin = i % chunks * kChunk, end = min(begin + kChunk, bwd.params.pixels);
    const auto& p = bwd.params;
    for (int64_t x = begin; x < end; x += kLanes<V>) {
      const int count = int(min<int64_t>(kLanes<V>, end - x));
      const int64_t at = b * p.pixels + x;
      const Mask<V> chosen = load_mask<V>(bwd.gate + at, count) & load_mask<V>(p.mask + at, count);
      const V prediction = load<V>(p.prediction + at, count), target = load<V>(p.target + at, count);
      const V grad = bwd.template grad<V>(prediction, target, chosen, bwd.factor[b], *bwd.grad_loss * *bwd.weight);
      store(bwd.grad_prediction + at, grad, count);
    }
  }
};

}  // namespace

void scale_invariant_loss_fwd(
    const Tensor& prediction, const Tensor& target, const Tensor& mask, const Tensor& loss, const Tensor& gate,
    const Tensor& factor, const Tensor& weight, const Tensor& error, const Tensor& compared, const Tensor&,
    const Where& where) {
  dispatch_scale_invariant(prediction, target, mask, [&](auto params) {
    using scalar_t = typename decltype(params)::scalar;
    const ScaleInvariantFwd<scalar_t> fwd{params, loss.as<scalar_t>(), gate.as<bool>(), factor.as<scalar_t>(),
                                          weight.as<scalar_t>()};
    const Sample<scalar_t> sample{fwd, error.as<double>(), compared.as<int64_t>()};
    for_each_cpu(params.batch, where.threads, sample);
    double total = 0;
    int64_t count = 0;
    for (int64_t b = 0; b < params.batch; ++b) total += sample.error[b], count += sample.compared[b];
    fwd.finish(total, count);
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
