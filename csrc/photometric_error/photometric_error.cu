#include "../common/dispatch.h"
#include "../common/for_each.h"
#include "../operators.h"
#include "block.cuh"

namespace mcd::MCD_TARGET {
namespace {

template <typename T, typename image_t> struct Images {
  const image_t *reference, *warped, *sources;  // [B, 3, H, W], [B, S, 3, H, W] twice
  const bool* valid;                            // [B, S, H, W] or null
  PhotometricWeights<T> weights;
  int64_t batch;
  int sources_count, height, width;

  MCD_HD int64_t pixels() const { return int64_t(height) * width; }
  MCD_HD int tiles() const { return BlockTile::count(height, width); }

  template <typename Block> __device__ void load_reference(const Block& block, int64_t b) const {
    block.tile.for_each(2, [&](int y, int x) {
      for (int c = 0; c < 3; ++c)
        block.reference[c * kImageSize + block.tile.image_at(y, x)] =
            load<T>(reference + (b * 3 + c) * pixels() + int64_t(y) * width + x, 1);
    });
  }
  template <typename Block> __device__ void load_images(const Block& block, const image_t* from, int64_t b) const {
    for (int i = 0; i < sources_count; ++i)
      block.tile.for_each(2, [&](int y, int x) {
        for (int c = 0; c < 3; ++c)
          block.image(i, c)[block.tile.image_at(y, x)] =
              load<T>(from + ((b * sources_count + i) * 3 + c) * pixels() + int64_t(y) * width + x, 1);
      });
  }
  template <typename Block> __device__ void load_warped(const Block& block, int64_t b) const {
    load_images(block, warped, b);
    for (int i = 0; valid && i < sources_count; ++i)
      block.tile.for_each(1, [&](int y, int x) {
        block.usable[i * kImageSize + block.tile.image_at(y, x)] =
            valid[(b * sources_count + i) * pixels() + int64_t(y) * width + x];
      });
  }
};

template <typename T, typename image_t>
__global__ void __launch_bounds__(kBlockThreads, kBlocks<T>) fwd_tiles(Images<T, image_t> images, T* error, bool* auto_mask) {
  extern __shared__ double shared[];
  const int64_t b = blockIdx.x / images.tiles();
  const BlockTile tile = BlockTile::of(images.height, images.width, int(blockIdx.x % images.tiles()));
  const PhotometricBlock<T, false> block(tile, images.weights, images.sources_count, reinterpret_cast<T*>(shared));
  images.load_reference(block, b);
  images.load_images(block, images.sources, b);
  __syncthreads();
  block.find_spreads();
  __syncthreads();
  block.template find_windows<false>();
  __syncthreads();
  tile.for_each(0, [&](int y, int x) { block.identity[tile.window_at(y, x)] = block.find_least(y, x, true).error; });
  __syncthreads();
  images.load_warped(block, b);
  __syncthreads();
  block.template find_windows<false>();
  __syncthreads();
  tile.for_each(0, [&](int y, int x) {
    const auto least = block.find_least(y, x, !images.valid);
    const int64_t at = b * images.pixels() + int64_t(y) * images.width + x;
    error[at] = least.error;
    auto_mask[at] = least.source >= 0 && least.error < block.identity[tile.window_at(y, x)];
  });
}

template <typename T, typename image_t, bool kBoth>
__global__ void __launch_bounds__(kBlockThreads, kBlocks<T>)
    bwd_tiles(Images<T, image_t> images, const T* grad_error, image_t* grad_warped, image_t* grad_reference) {
  extern __shared__ double shared[];
  const int64_t b = blockIdx.x / images.tiles();
  const BlockTile tile = BlockTile::of(images.height, images.width, int(blockIdx.x % images.tiles()));
  const PhotometricBlock<T, true, kBoth> block(
      tile, images.weights, images.sources_count, reinterpret_cast<T*>(shared));
  images.load_reference(block, b);
  images.load_warped(block, b);
  __syncthreads();
  block.find_spreads();
  __syncthreads();
  block.template find_windows<true>();
  __syncthreads();
  tile.for_each(1, [&](int y, int x) {
    const auto least = block.find_least(y, x, !images.valid);
    block.chosen[tile.window_at(y, x)] = is_nan(least.error) ? 0 : uint8_t(least.source + 1);
  });
  __syncthreads();
  const T* upstream = grad_error + b * images.pixels();
  const auto share = [&](int y, int x) { return upstream[int64_t(y) * images.width + x]; };
  block.weigh_windows(share);
  __syncthreads();
  block.find_gradients(share, [&](int part, int y, int x, const T* grad) {
    const int64_t plane = b * images.sources_count * 3 + part;
    store(grad_warped + plane * images.pixels() + int64_t(y) * images.width + x, grad[0], 1);
    // SSIM is not needed any more.
    if constexpr (kBoth) block.ssim[part * kWindowSize + tile.window_at(y, x)] = grad[1];
  });
  if constexpr (kBoth) {
    __syncthreads();
    tile.for_each(0, [&](int y, int x) {
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        T total = 0;
        for (int i = 0; i < images.sources_count; ++i) total += block.ssim_of(i, c)[tile.window_at(y, x)];
        store(grad_reference + (b * 3 + c) * images.pixels() + int64_t(y) * images.width + x, total, 1);
      }
    });
  }
}

template <typename T, typename image_t>
Images<T, image_t> make_images(
    const Tensor& reference, const Tensor& warped, const Tensor& sources, const Tensor& valid,
    const PhotometricWeights<T>& weights) {
  return {reference.as<image_t>(), warped.as<image_t>(), sources.as<image_t>(), valid.as<bool>(), weights,
          reference.size[0], int(warped.size[1]), int(reference.size[2]), int(reference.size[3])};
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, const char* name, int64_t blocks, size_t bytes, const Where& where, Arguments... arguments) {
  if (blocks == 0) return;
  allow_shared_memory(kernel, bytes, name);
  kernel<<<unsigned(blocks), kBlockThreads, bytes, cudaStream_t(where.stream)>>>(arguments...);
  check_launch(name);
}

}  // namespace

void photometric_error_fwd(
    const Tensor& reference, const Tensor& warped, const Tensor& sources, const Tensor& valid, double ssim_weight,
    double l1_weight, double c1, double c2, const Tensor& error, const Tensor& auto_mask, const Where& where) {
  dispatch(error.dtype, reference.dtype, [&](auto scalar, auto image) {
    using T = decltype(scalar);
    using image_t = decltype(image);
    const auto images = make_images<T, image_t>(
        reference, warped, sources, valid, photometric_weights<T>(ssim_weight, l1_weight, c1, c2));
    launch(
        fwd_tiles<T, image_t>, "photometric_error_fwd", images.batch * images.tiles(),
        PhotometricBlock<T, false>::bytes(images.sources_count), where, images, error.as<T>(), auto_mask.as<bool>());
  });
}

void photometric_error_bwd(
    const Tensor& grad_error, const Tensor& reference, const Tensor& warped, const Tensor& valid, double ssim_weight,
    double l1_weight, double c1, double c2, bool need_reference, const Tensor& grad_warped,
    const Tensor& grad_reference, const Where& where) {
  dispatch(grad_error.dtype, reference.dtype, [&](auto scalar, auto image) {
    using T = decltype(scalar);
    using image_t = decltype(image);
    const auto images = make_images<T, image_t>(
        reference, warped, Tensor{}, valid, photometric_weights<T>(ssim_weight, l1_weight, c1, c2));
    const auto run = [&](auto both) {
      constexpr bool kBoth = both;
      launch(
          bwd_tiles<T, image_t, kBoth>, "photometric_error_bwd", images.batch * images.tiles(),
          PhotometricBlock<T, true, kBoth>::bytes(images.sources_count), where, images, grad_error.as<T>(),
          grad_warped.as<image_t>(), grad_reference.as<image_t>());
    };
    if (need_reference)
      run(std::true_type{});
    else
      run(std::false_type{});
  });
}

}  // namespace mcd::MCD_TARGET
