#include "scale_invariant_loss.h"

#include "../common/for_each.h"
#include "../common/select.cuh"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kThreads = 1024;  // a block for each sample

template <typename Values, typename scalar_t> struct ReadSet {
  Values values;
  __device__ scalar_t operator()(int64_t i, bool* taken) const { return values.template at<scalar_t>(i, 1, taken); }
};

// A quantile of a set and its least value; NaN if there is a NaN or nothing in it.
template <typename scalar_t> struct Order {
  scalar_t quantile, least;
};
template <typename scalar_t, typename Values>
__device__ Order<scalar_t> order_of(
    const Values& values, int64_t size, double quantile, bool linear, SelectionMemory<kThreads, scalar_t>* shared) {
  const ReadSet<Values, scalar_t> read{values};
  Summary<scalar_t> part;
  int own = 0;
  for_each_value<kThreads>(read, size, [&](scalar_t value, bool taken) {
    part.add(value, taken);
    own += taken;
  });
  const int64_t count = block_sum_all<kThreads>(own);
  const BlockSummary<kThreads, scalar_t> summary(part);
  if (count == 0 || summary.poisoned) return {nan<scalar_t>(), nan<scalar_t>()};
  const QuantilePosition position(quantile, count, linear);
  BlockSelection<kThreads, scalar_t, ReadSet<Values, scalar_t>> selection(shared, read, size, count, summary.least, summary.largest);
  return {position.between(selection.find(position.rank, position.fraction != 0)), summary.least};
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, 1) loss_of_samples(ScaleInvariantFwd<scalar_t> fwd) {
  __shared__ SelectionMemory<kThreads, scalar_t> shared;
  const auto& p = fwd.params;
  const int64_t b = blockIdx.x;
  const CountedRatios<scalar_t> ratios{p, b};
  const auto predicted = order_of<scalar_t>(CountedPredictions<scalar_t>{p, b}, p.pixels, 0.9, true, &shared);
  const scalar_t first = order_of<scalar_t>(ratios, p.pixels, 0.5, false, &shared).quantile;
  const Gate<scalar_t> gate{first, predicted.least, predicted.quantile};
  const scalar_t factor = order_of<scalar_t>(GatedRatios<scalar_t>{ratios, gate}, p.pixels, 0.5, false, &shared).quantile;
  double error = 0;
  int compared = 0;
  for (int64_t i = threadIdx.x; i < p.pixels; i += kThreads) {
    bool chosen;
    error += double(fwd.template pixels<scalar_t>(b, i, 1, gate, factor, &chosen));
    compared += chosen;
  }
  error = block_sum_all<kThreads>(error);
  compared = block_sum_all<kThreads>(compared);
  if (threadIdx.x == 0) fwd.factor[b] = factor, fwd.error[b] = error, fwd.compared[b] = compared;
}

template <typename scalar_t> struct Finish {
  ScaleInvariantFwd<scalar_t> fwd;
  __device__ void operator()(int64_t) const { fwd.finish(); }
};

template <typename scalar_t> struct GradOfPixel {
  ScaleInvariantBwd<scalar_t> bwd;
  __device__ void operator()(int64_t i) const {
    const auto [b, pixel] = divide(i, bwd.params.pixels);
    bwd.template pixels<scalar_t>(b, pixel, 1);
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
    if (params.batch > 0) {
      loss_of_samples<scalar_t><<<unsigned(params.batch), kThreads, 0, cudaStream_t(where.stream)>>>(fwd);
      check_launch("scale_invariant_loss_fwd");
    }
    for_each_cuda(1, where.stream, "scale_invariant_loss_fwd", Finish<scalar_t>{fwd});
  });
}

void scale_invariant_loss_bwd(
    const Tensor& grad_loss, const Tensor& prediction, const Tensor& target, const Tensor& mask, const Tensor& gate,
    const Tensor& factor, const Tensor& weight, const Tensor& grad_prediction, const Where& where) {
  dispatch_scale_invariant(prediction, target, mask, [&](auto params) {
    using scalar_t = typename decltype(params)::scalar;
    const ScaleInvariantBwd<scalar_t> bwd{params, grad_loss.as<scalar_t>(), gate.as<bool>(), factor.as<scalar_t>(),
                                          weight.as<scalar_t>(), grad_prediction.as<scalar_t>()};
    for_each_cuda(
        params.batch * params.pixels, where.stream, "scale_invariant_loss_bwd", GradOfPixel<scalar_t>{bwd});
  });
}

}  // namespace mcd::MCD_TARGET
