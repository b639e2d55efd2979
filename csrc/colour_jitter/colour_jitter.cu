#include "../common/for_each.h"
#include "../operators.h"
#include "colour_jitter.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kThreads = 512;

// A block an image: first the mean that contrast wants, then all changes. Bytes are few, and a batch has images enough.
__global__ void __launch_bounds__(kThreads, 1) jitter_images(Jitter jitter) {
  const int64_t image = blockIdx.x;
  const Draws draws = jitter.of(image);
  double sums[1] = {0};
  if (!draws.none()) {
    for (int64_t at = threadIdx.x; at < jitter.plane; at += kThreads) {
      auto colour = jitter.read<float>(image, at, 1);
      draws.change(colour, true, 0);
      sums[0] += grey(colour);
    }
  }
  block_sum<kThreads>(sums);
  __shared__ float mean;
  if (threadIdx.x == 0) mean = float(sums[0] / jitter.plane);
  __syncthreads();
  for (int64_t at = threadIdx.x; at < jitter.plane; at += kThreads) {
    auto colour = jitter.read<float>(image, at, 1);
    if (!draws.none()) draws.change(colour, false, mean);
    jitter.write<float>(image, at, colour, 1);
  }
}

}  // namespace

void colour_jitter_fwd(const Tensor& images, const Tensor& draws, const Tensor& changed, const Where& where) {
  const auto jitter = jitter_of(images, draws, changed);
  const int64_t count = jitter.items * jitter.frames;
  if (count == 0 || jitter.plane == 0) return;
  jitter_images<<<unsigned(count), kThreads, 0, cudaStream_t(where.stream)>>>(jitter);
  check_launch("colour_jitter");
}

}  // namespace mcd::MCD_TARGET
