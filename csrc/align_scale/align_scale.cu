#include "align_scale.h"

#include "../common/for_each.h"
#include "../common/select.cuh"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kThreads = 512;  // a block for each instance

template <typename scalar_t> struct ReadRatio {
  ScaleRatios<scalar_t> ratios;
  __device__ scalar_t operator()(int64_t i, bool* taken) const { return ratios.template at<scalar_t>(i, 1, taken); }
};

// The lower median of target / normalised depth; NaN without a target.
template <typename scalar_t>
__device__ scalar_t closed_form(const AlignScaleParams<scalar_t>& p, int64_t n, scalar_t mean) {
  __shared__ SelectionMemory<kThreads, scalar_t> shared;
  const ReadRatio<scalar_t> read{{p.depths(n), p.targets(n), mean}};
  const int64_t size = p.instances.size(n);
  Summary<scalar_t> part;
  int own = 0;
  for_each_value<kThreads>(read, size, [&](scalar_t ratio, bool taken) {
    part.add(ratio, taken);
    own += taken;
  });
  const int64_t count = block_sum_all<kThreads>(own);
  const BlockSummary<kThreads, scalar_t> summary(part);
  if (count == 0 || summary.poisoned) return nan<scalar_t>();
  BlockSelection<kThreads, scalar_t, ReadRatio<scalar_t>> selection(&shared, read, size, count, summary.least, summary.largest);
  return selection.find((count - 1) / 2, false).low;
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, 1) align_instances(AlignScaleFwd<scalar_t> fwd) {
  const auto& p = fwd.params;
  const int64_t n = blockIdx.x, size = p.instances.size(n);
  double total = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) total += double(p.depths(n)[i]);
  const scalar_t mean = scalar_t(block_sum_all<kThreads>(total) / double(size));
  bool usable = size > 0 && usable_mean(mean);
  scalar_t scale = nan<scalar_t>();
  if (usable) {
    scale = fwd.given ? fwd.given[n] : closed_form(p, n, mean);
    usable = fwd.given || !is_nan(scale);
  }
  double loss = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    if (usable)
      loss += double(fwd.template pixels<scalar_t>(n, i, 1, mean, scale));
    else
      fwd.aligned[p.instances.offset[n] + i] = nan<scalar_t>();
  }
  loss = block_sum_all<kThreads>(loss);
  if (threadIdx.x == 0) {
    fwd.mean[n] = usable ? mean : nan<scalar_t>();
    fwd.scale[n] = scale;
    fwd.loss[n] = usable ? scalar_t(loss / double(size)) : scalar_t(0);
  }
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads) align_grads_of_instances(AlignScaleBwd<scalar_t> bwd) {
  const int64_t n = blockIdx.x, size = bwd.params.instances.size(n);
  scalar_t* out = bwd.grad_object_depth + bwd.params.instances.offset[n];
  if (is_nan(bwd.mean[n])) {
    for (int64_t i = threadIdx.x; i < size; i += kThreads) out[i] = 0;
    if (threadIdx.x == 0) bwd.grad_scale[n] = 0;
    return;
  }
  double total = 0;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    const auto grad = bwd.template grad<scalar_t>(n, i, 1);
    total += double(grad.to_aligned * grad.normalised);
    out[i] = grad.to_aligned;
  }
  total = block_sum_all<kThreads>(total);
  if (threadIdx.x == 0) bwd.grad_scale[n] = scalar_t(total);
  const scalar_t factor = bwd.scale[n] / bwd.mean[n], shift = scalar_t(total / double(size));
  for (int64_t i = threadIdx.x; i < size; i += kThreads) out[i] = factor * (out[i] - shift);
}

}  // namespace

void align_scale_fwd(
    const Tensor& object_depth, const Tensor& target_depth, const Tensor& pixel, const Tensor& offset,
    const Tensor& frame, const Tensor& given, double delta, const Tensor& aligned, const Tensor& loss,
    const Tensor& mean, const Tensor& scale, const Where& where) {
  const InstanceView instances = view_instances(pixel, offset, frame);
  if (instances.count == 0) return;
  dispatch_align_scale(object_depth, target_depth, instances, delta, [&](auto params) {
    using scalar_t = typename decltype(params)::scalar;
    const AlignScaleFwd<scalar_t> fwd{params, given.as<scalar_t>(), aligned.as<scalar_t>(), loss.as<scalar_t>(),
                                      mean.as<scalar_t>(), scale.as<scalar_t>()};
    align_instances<scalar_t><<<unsigned(instances.count), kThreads, 0, cudaStream_t(where.stream)>>>(fwd);
    check_launch("align_scale_fwd");
  });
}

void align_scale_bwd(
    const Tensor& grad_aligned, const Tensor& grad_loss, const Tensor& object_depth, const Tensor& target_depth,
    const Tensor& pixel, const Tensor& offset, const Tensor& frame, const Tensor& mean, const Tensor& scale,
    double delta, const Tensor& grad_object_depth, const Tensor& grad_scale, const Where& where) {
  const InstanceView instances = view_instances(pixel, offset, frame);
  if (instances.count == 0) return;
  dispatch_align_scale(object_depth, target_depth, instances, delta, [&](auto params) {
    using scalar_t = typename decltype(params)::scalar;
    const AlignScaleBwd<scalar_t> bwd{params, grad_aligned.as<scalar_t>(), grad_loss.as<scalar_t>(),
                                      mean.as<scalar_t>(), scale.as<scalar_t>(), grad_object_depth.as<scalar_t>(),
                                      grad_scale.as<scalar_t>()};
    align_grads_of_instances<scalar_t><<<unsigned(instances.count), kThreads, 0, cudaStream_t(where.stream)>>>(bwd);
    check_launch("align_scale_bwd");
  });
}

}  // namespace mcd::MCD_TARGET
