#include "instance_stats.h"

#include "../common/for_each.h"
#include "../common/select.cuh"
#include "../common/tiles.cuh"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kThreads = 512;  // a block for each instance
constexpr int kQuantiles = 8;  // of one launch; they travel with its arguments
struct Quantiles {
  double values[kQuantiles];
};

template <typename Values, typename scalar_t> struct ReadValue {
  Values values;
  __device__ scalar_t operator()(int64_t i, bool* taken) const {
    *taken = true;
    return values.template at<scalar_t>(i, 1);
  }
};

template <typename scalar_t, typename Read>
__device__ void stats_of_instance(
    const InstanceStatsParams<scalar_t>& p, const Quantiles& quantiles, int first, int count, int64_t n, const Read& read,
    SelectionMemory<kThreads, scalar_t>* shared) {
  const int64_t size = p.instances.size(n);
  Summary<scalar_t> part;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    bool taken;
    const scalar_t value = read(i, &taken);
    part.add(value, taken);
  }
  const BlockSummary<kThreads, scalar_t> summary(part);
  if (threadIdx.x == 0) p.write(n, summary.sum, summary.least, summary.largest, summary.poisoned);
  if (size == 0 || summary.poisoned) return;
  BlockSelection<kThreads, scalar_t, Read> selection(shared, read, size, size, summary.least, summary.largest);
  for (int q = 0; q < count; ++q) {
    const QuantilePosition position(quantiles.values[q], size, p.linear);
    const Neighbours<scalar_t> found = selection.find(position.rank, position.fraction != 0);
    if (threadIdx.x == 0) p.quantile[n * p.quantile_count + first + q] = position.between(found);
  }
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    stats_of_instances(InstanceStatsParams<scalar_t> params, __grid_constant__ const Quantiles quantiles, int first, int count) {
  __shared__ SelectionMemory<kThreads, scalar_t> shared;
  const int64_t n = blockIdx.x;
  if (params.image_size) {
    const ReadValue<ImageValues<scalar_t>, scalar_t> read{params.image_values(n)};
    stats_of_instance(params, quantiles, first, count, n, read, &shared);
  } else {
    const ReadValue<OwnValues<scalar_t>, scalar_t> read{params.own_values(n)};
    stats_of_instance(params, quantiles, first, count, n, read, &shared);
  }
}

template <typename scalar_t> struct MeanGrad {
  InstanceView instances;
  const scalar_t* grad_mean;  // [N]
  scalar_t* grad_values;      // [P]

  __device__ void operator()(int64_t i) const {
    const int64_t n = instances.instance_of(i);
    grad_values[i] = grad_mean[n] / scalar_t(instances.size(n));
  }
};

// Masks that overlap add up, one after the other; a mask has each pixel once, so that no two threads meet.
template <typename scalar_t>
__global__ void __launch_bounds__(kTileThreads, 1) mean_grad_of_tiles(
    InstanceView instances, const scalar_t* grad_mean, scalar_t* grad_values, int64_t image_size) {
  __shared__ scalar_t sum[kTile];
  const TileOfImage tile(blockIdx.x, image_size);
  for (int x = threadIdx.x; x < kTile; x += kTileThreads) sum[x] = 0;
  __syncthreads();
  for_each_part(instances, tile, [&](int64_t n, int64_t begin, int64_t end) {
    const scalar_t grad = grad_mean[n] / scalar_t(instances.size(n));
    for (int64_t at = begin + threadIdx.x; at < end; at += kTileThreads) sum[instances.pixel[at] - tile.begin] += grad;
    __syncthreads();
  });
  for (int64_t x = tile.begin + threadIdx.x; x < tile.end; x += kTileThreads)
    grad_values[tile.frame * image_size + x] = sum[x - tile.begin];
}

}  // namespace

void instance_stats_fwd(
    const Tensor& values, const Tensor& pixel, const Tensor& offset, const Tensor& frame,
    const std::vector<double>& quantiles, bool linear, const Tensor& count, const Tensor& mean, const Tensor& least,
    const Tensor& largest, const Tensor& quantile, const Where& where) {
  const InstanceView instances = view_instances(pixel, offset, frame);
  if (instances.count == 0) return;
  dispatch_instance_stats(
      values, instances, quantiles, linear, count, mean, least, largest, quantile, [&](auto params) {
        const int total = int(quantiles.size());
        for (int first = 0; first == 0 || first < total; first += kQuantiles) {
          const int some = min(kQuantiles, total - first);
          Quantiles chosen{};
          for (int q = 0; q < some; ++q) chosen.values[q] = quantiles[first + q];
          stats_of_instances<<<unsigned(instances.count), kThreads, 0, cudaStream_t(where.stream)>>>(
              params, chosen, first, some);
          check_launch("instance_stats_fwd");
        }
      });
}

void instance_stats_bwd(
    const Tensor& grad_mean, const Tensor& values, const Tensor& pixel, const Tensor& offset, const Tensor& frame,
    const Tensor& grad_values, const Where& where) {
  const InstanceView instances = view_instances(pixel, offset, frame);
  dispatch(grad_mean.dtype, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    if (values.dims == 1)
      return for_each_cuda(
          pixel.size[0], where.stream, "instance_stats_bwd",
          MeanGrad<scalar_t>{instances, grad_mean.as<scalar_t>(), grad_values.as<scalar_t>()});
    const int64_t image_size = values.size[2] * values.size[3], tiles = values.size[0] * tiles_of(image_size);
    if (tiles == 0) return;
    mean_grad_of_tiles<scalar_t><<<unsigned(tiles), kTileThreads, 0, cudaStream_t(where.stream)>>>(
        instances, grad_mean.as<scalar_t>(), grad_values.as<scalar_t>(), image_size);
    check_launch("instance_stats_bwd");
  });
}

}  // namespace mcd::MCD_TARGET
