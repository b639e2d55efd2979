#include "../common/for_each.h"
#include "../operators.h"
#include "motion_sparsity.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kThreads = 512;

// A block for each plane.
template <typename T>
__global__ void __launch_bounds__(kThreads) fwd_planes(const T* motion, int64_t pixels, T* means, T* costs) {
  const T* in = motion + blockIdx.x * pixels;
  __shared__ T mean;
  double total[1] = {};
  for (int64_t i = threadIdx.x; i < pixels; i += kThreads) total[0] += abs<T>(in[i]);
  block_sum<kThreads>(total);
  if (threadIdx.x == 0) mean = T(total[0] / double(pixels));
  __syncthreads();
  total[0] = 0;
  for (int64_t i = threadIdx.x; i < pixels; i += kThreads) total[0] += sparsity_root<T>(in[i], mean);
  block_sum<kThreads>(total);
  if (threadIdx.x == 0) means[blockIdx.x] = mean, costs[blockIdx.x] = T(2 * mean * total[0]);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) finish(const T* costs, int64_t planes, int64_t elements, T* loss) {
  double total[1] = {};
  for (int64_t plane = threadIdx.x; plane < planes; plane += kThreads) total[0] += costs[plane];
  block_sum<kThreads>(total);
  if (threadIdx.x == 0) *loss = T(total[0] / double(elements > 1 ? elements : 1));
}

template <typename T> struct GradElement {
  const T *grad_loss, *motion, *means;
  T* grad;
  int64_t elements, pixels;

  MCD_HD void operator()(int64_t i) const {
    grad[i] = *grad_loss / T(elements) * sparsity_slope<T>(motion[i], means[i / pixels]);
  }
};

}  // namespace

void motion_sparsity_fwd(
    const Tensor& motion, const Tensor& loss, const Tensor& means, const Tensor& costs, const Where& where) {
  dispatch(motion.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const int64_t planes = means.size[0], pixels = motion.size[motion.dims - 2] * motion.size[motion.dims - 1];
    const auto stream = cudaStream_t(where.stream);
    if (planes * pixels > 0) {
      fwd_planes<T><<<unsigned(planes), kThreads, 0, stream>>>(motion.as<T>(), pixels, means.as<T>(), costs.as<T>());
      check_launch("motion_sparsity_fwd");
    }
    finish<T><<<1, kThreads, 0, stream>>>(
        costs.as<T>(), planes * pixels > 0 ? planes : int64_t(0), planes * pixels, loss.as<T>());
    check_launch("motion_sparsity_fwd");
  });
}

void motion_sparsity_bwd(
    const Tensor& grad_loss, const Tensor& motion, const Tensor& means, const Tensor& grad, const Where& where) {
  dispatch(motion.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const int64_t pixels = motion.size[motion.dims - 2] * motion.size[motion.dims - 1];
    const int64_t elements = means.size[0] * pixels;
    for_each_cuda(
        elements, where.stream, "motion_sparsity_bwd",
        GradElement<T>{grad_loss.as<T>(), motion.as<T>(), means.as<T>(), grad.as<T>(), elements, pixels});
  });
}

}  // namespace mcd::MCD_TARGET
