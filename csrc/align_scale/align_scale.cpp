#include "align_scale.h"

#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

template <typename scalar_t> struct AlignInstance {
  using V = Pack<scalar_t>;
  using Double = typename Lanes<V>::template of<double>;
  AlignScaleFwd<scalar_t> fwd;

  struct ReadRatio {
    ScaleRatios<scalar_t> ratios;
    MCD_HD V operator()(int64_t i, int count, Mask<V>* taken) const { return ratios.template at<V>(i, count, taken); }
  };

  MCD_HD void operator()(int64_t n) const {
    const auto& p = fwd.params;
    const int64_t size = p.instances.size(n);
    Double total{};
    for (int64_t i = 0; i < size; i += kLanes<V>)
      total += convert<Double>(load<V>(p.depths(n) + i, lanes(size - i)));
    scalar_t mean = scalar_t(sum(total) / double(size)), scale = nan<scalar_t>();
    bool usable = size > 0 && usable_mean(mean);
    if (usable) {
      scale = fwd.given ? fwd.given[n] : closed_form(n, size, mean);
      usable = fwd.given || !is_nan(scale);
    }
    fwd.mean[n] = usable ? mean : nan<scalar_t>();
    fwd.scale[n] = scale;
    if (!usable) {
      for (int64_t i = 0; i < size; ++i) fwd.aligned[p.instances.offset[n] + i] = nan<scalar_t>();
      fwd.loss[n] = 0;
      return;
    }
    Double loss{};
    for (int64_t i = 0; i < size; i += kLanes<V>)
      loss += convert<Double>(fwd.template pixels<V>(n, i, lanes(size - i), mean, scale));
    fwd.loss[n] = scalar_t(sum(loss) / double(size));
  }

  MCD_HD scalar_t closed_form(int64_t n, int64_t size, scalar_t mean) const {
    const ReadRatio read{{fwd.params.depths(n), fwd.params.targets(n), mean}};
    Summary<V> summary;
    Int<V> compared{};
    for (int64_t i = 0; i < size; i += kLanes<V>) {
      Mask<V> taken;
      const V ratio = read(i, lanes(size - i), &taken);
      summary.add(ratio, taken);
      compared += convert<Int<V>>(taken & 1);
    }
    const int64_t count = sum(compared);
    const SummaryOfLanes<V> found(summary);
    if (count == 0 || found.poisoned) return nan<scalar_t>();
    Selection<V, ReadRatio> selection(read, size, count, found.least, found.largest);
    return selection.find((count - 1) / 2, false).low;
  }

  static MCD_HD int lanes(int64_t left) { return int(min<int64_t>(kLanes<V>, left)); }
};

template <typename scalar_t> struct AlignGradOfInstance {
  using V = Pack<scalar_t>;
  using Double = typename Lanes<V>::template of<double>;
  AlignScaleBwd<scalar_t> bwd;

  MCD_HD void operator()(int64_t n) const {
    const int64_t size = bwd.params.instances.size(n);
    scalar_t* out = bwd.grad_object_depth + bwd.params.instances.offset[n];
    bwd.grad_scale[n] = 0;
    if (is_nan(bwd.mean[n])) {
      for (int64_t i = 0; i < size; ++i) out[i] = 0;
      return;
    }
    Double total{};
    for (int64_t i = 0; i < size; i += kLanes<V>) {
      const int count = int(min<int64_t>(kLanes<V>, size - i));
      const auto grad = bwd.template grad<V>(n, i, count);
      total += convert<Double>(select<V>(first_lanes<V>(count), grad.to_aligned * grad.normalised, V{}));
      store(out + i, grad.to_aligned, count);
    }
    const double grad_scale = sum(total);
    bwd.grad_scale[n] = scalar_t(grad_scale);
    const scalar_t factor = bwd.scale[n] / bwd.mean[n], shift = scalar_t(grad_scale / double(size));
    for (int64_t i = 0; i < size; ++i) out[i] = factor * (out[i] - shift);
  }
};

}  // namespace

void align_scale_fwd(
    const Tensor& object_depth, const Tensor& target_depth, const Tensor& pixel, const Tensor& offset,
    const Tensor& frame, const Tensor& given, double delta, const Tensor& aligned, const Tensor& loss,
    const Tensor& mean, const Tensor& scale, const Where& where) {
  const InstanceView instances = view_instances(pixel, offset, frame);
  dispatch_align_scale(object_depth, target_depth, instances, delta, [&](auto params) {
    using scalar_t = typename decltype(params)::scalar;
    for_each_instance_cpu(
        instances, where.threads,
        AlignInstance<scalar_t>{
            {params, given.as<scalar_t>(), aligned.as<scalar_t>(), loss.as<scalar_t>(), mean.as<scalar_t>(),
             scale.as<scalar_t>()}});
  });
}

void align_scale_bwd(
    const Tensor& grad_aligned, const Tensor& grad_loss, const Tensor& object_depth, const Tensor& target_depth,
    const Tensor& pixel, const Tensor& offset, const Tensor& frame, const Tensor& mean, const Tensor& scale,
    double delta, const Tensor& grad_object_depth, const Tensor& grad_scale, const Where& where) {
  const InstanceView instances = view_instances(pixel, offset, frame);
  dispatch_align_scale(object_depth, target_depth, instances, delta, [&](auto params) {
    using scalar_t = typename decltype(params)::scalar;
    for_each_instance_cpu(
        instances, where.threads,
        AlignGradOfInstance<scalar_t>{
            {params, grad_aligned.as<scalar_t>(), grad_loss.as<scalar_t>(), mean.as<scalar_t>(),
             scale.as<scalar_t>(), grad_object_depth.as<scalar_t>(), grad_scale.as<scalar_t>()}});
  });
}

}  // namespace mcd::MCD_TARGET
