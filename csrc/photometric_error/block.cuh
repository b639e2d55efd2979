// Photometric error on CUDA: a block finds it on a tile that lies in shared memory.
#pragma once

#include <stdexcept>
#include <string>

#include "../common/for_each.h"
#include "photometric_error.h"

namespace mcd::MCD_TARGET {

constexpr int kTileHeight = 16, kTileWidth = 32, kBlockThreads = 256;
// Images reach two pixels beyond the tile, windows and the pixels that weigh them one.
constexpr int kImageWidth = kTileWidth + 4, kImageSize = kImageWidth * (kTileHeight + 4);
constexpr int kWindowWidth = kTileWidth + 2, kWindowSize = kWindowWidth * (kTileHeight + 2);

// Pixels [top, bottom) × [left, right) of an image. No tile is shorter than half of what it may be, so the windows that a
// border mirrors lie within its own tile.
struct BlockTile {
  int height, width, top, bottom, left, right;

  static MCD_HD int rows(int height) { return (height + kTileHeight - 1) / kTileHeight; }
  static MCD_HD int columns(int width) { return (width + kTileWidth - 1) / kTileWidth; }
  static MCD_HD int count(int height, int width) { return rows(height) * columns(width); }
  static MCD_HD BlockTile of(int height, int width, int i) {
    const int64_t n_rows = rows(height), n_columns = columns(width), row = i / n_columns, column = i % n_columns;
    return {height, width, int(row * height / n_rows), int((row + 1) * height / n_rows),
            int(column * width / n_columns), int((column + 1) * width / n_columns)};
  }
  MCD_HD int image_at(int y, int x) const { return (y - top + 2) * kImageWidth + x - left + 2; }
  MCD_HD int window_at(int y, int x) const { return (y - top + 1) * kWindowWidth + x - left + 1; }
  MCD_HD bool owns(int y, int x) const { return y >= top && y < bottom && x >= left && x < right; }
  MCD_HD bool has_window(int y, int x) const { return y >= 1 && y < height - 1 && x >= 1 && x < width - 1; }

  // Calls f(y, x) for every pixel of the image within `margin` of the tile, shared among the block's threads.
  template <typename F> __device__ void for_each(int margin, const F& f) const {
    const int first_row = max(top - margin, 0), n_rows = min(bottom + margin, height) - first_row;
    const int first_column = max(left - margin, 0), n_columns = min(right + margin, width) - first_column;
    for (int i = threadIdx.x; i < n_rows * n_columns; i += kBlockThreads)
      f(first_row + i / n_columns, first_column + i % n_columns);
  }
};

// Blocks may use more than 48 KiB of shared memory only where that is asked for.
template <typename Kernel> void allow_shared_memory(Kernel kernel, size_t bytes, const char* operator_name) {
  if (bytes <= 48 * 1024) return;
  const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::invalid_argument(
      std::string(operator_name) + ": so many source images need " + std::to_string(bytes) +
      " bytes of shared memory, more than this GPU has; backend=\"reference\" has no such limit");
}

// The row or column in which pixel i of `size` finds its window.
MCD_HD int mirrored(int i, int size) { return i == 0 ? 2 : i == size - 1 ? size - 3 : i; }

// The 3x3 window around image position `at`, from its rows.
template <bool kLuminance, typename T>
__device__ SsimWindow<T> window_at(const T* x, const T* y, int at, const PhotometricWeights<T>& weights) {
  const auto moments = [&](const auto& value) {
    T means[3], spread = 0;
#pragma unroll
    for (int row = 0; row < 3; ++row) {
      const int here = at + (row - 1) * kImageWidth;
      const auto steps = Steps<T>::of(value(here - 1), value(here), value(here + 1));
      means[row] = value(here) + steps.to_mean(), spread += steps.spread();
    }
    const auto steps = Steps<T>::of(means[0], means[1], means[2]);
    return Moments<T>{means[1] + steps.to_mean(), spread + 3 * steps.spread()};
  };
  return ssim_window<kLuminance, T>(
      moments([&](int i) { return x[i]; }), moments([&](int i) { return y[i]; }),
      moments([&](int i) { return x[i] - y[i]; }), weights);
}

// What a block keeps in shared memory, of type T: the reference, and for each source its image, its SSIM and with kGrad
// its windows' planes (alpha, beta, gamma of each channel; with kBoth gamma_y, too), then the identity error.
template <typename T, bool kGrad, bool kBoth = false> struct PhotometricBlock {
  static constexpr int kPlanes = !kGrad ? 0 : kBoth ? 12 : 9;

  BlockTile tile;
  PhotometricWeights<T> weights;
  int sources;
  T *reference, *images, *ssim, *windows, *identity;
  uint8_t *usable, *chosen;  // [S, kImageSize], [kWindowSize]: the source whose error counts, plus 1

  static MCD_HD size_t bytes(int sources) {
    return (3 * kImageSize + kWindowSize + sources * (3 * kImageSize + (1 + kPlanes) * kWindowSize)) * sizeof(T) +
           sources * kImageSize + kWindowSize;
  }
  __device__ PhotometricBlock(const BlockTile& tile, const PhotometricWeights<T>& weights, int sources, T* shared)
      : tile(tile), weights(weights), sources(sources), reference(shared), images(reference + 3 * kImageSize),
        ssim(images + sources * 3 * kImageSize), windows(ssim + sources * kWindowSize),
        identity(windows + sources * kPlanes * kWindowSize),
        usable(reinterpret_cast<uint8_t*>(identity + kWindowSize)), chosen(usable + sources * kImageSize) {}

  __device__ T* image(int i, int c) const { return images + (3 * i + c) * kImageSize; }
  __device__ T* plane(int i, int k) const { return windows + (i * kPlanes + k) * kWindowSize; }

  template <bool kLuminance, bool kKeep> __device__ void find_windows_as() const {
#pragma unroll 1
    for (int i = 0; i < sources; ++i)
      tile.for_each(1, [&](int y, int x) {
        if (!tile.has_window(y, x)) return;
        const int at = tile.image_at(y, x), out = tile.window_at(y, x);
        T error = 0;
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          const auto window = window_at<kLuminance>(image(i, c), reference + c * kImageSize, at, weights);
          error += window.error;
          if constexpr (kKeep) {
            plane(i, 3 * c)[out] = window.alpha, plane(i, 3 * c + 1)[out] = window.beta;
            plane(i, 3 * c + 2)[out] = window.gamma;
            if constexpr (kBoth) plane(i, 9 + c)[out] = window.gamma_y;
          }
        }
        ssim[i * kWindowSize + out] = error;
      });
  }
  // SSIM of every source, and with kKeep the windows' planes. The block has to agree before and after.
  template <bool kKeep> __device__ void find_windows() const {
    if (weights.luminance)
      find_windows_as<true, kKeep>();
    else
      find_windows_as<false, kKeep>();
  }

  struct Least {
    T error;
    int source;  // -1: none may be chosen
  };
  __device__ Least find_least(int y, int x, bool all_usable) const {
    const int at = tile.image_at(y, x), window = tile.window_at(mirrored(y, tile.height), mirrored(x, tile.width));
    Least least{0, -1};
#pragma unroll 1
    for (int i = 0; i < sources; ++i) {
      if (!all_usable && !usable[i * kImageSize + at]) continue;
      T l1 = 0;
#pragma unroll
      for (int c = 0; c < 3; ++c) l1 += abs<T>(image(i, c)[at] - reference[c * kImageSize + at]);
      const T error = ssim[i * kWindowSize + window] + weights.l1 * l1;
      if (least.source < 0 || error < least.error || is_nan(error)) least = {error, i};
    }
    return least;
  }

  // Calls share(y, x) for the pixels that find their SSIM in the window of (y, x) and adds up.
  template <typename Share> __device__ T weight_of_window(int y, int x, const Share& share) const {
    const int rows[3] = {y, y == 2 ? 0 : -1, y == tile.height - 3 ? tile.height - 1 : -1};
    const int columns[3] = {x, x == 2 ? 0 : -1, x == tile.width - 3 ? tile.width - 1 : -1};
    T total = 0;
    for (const int row : rows)
      for (const int column : columns)
        if (row >= 0 && column >= 0) total += share(row, column);
    return total;
  }
  // Weighs the windows of source i by share(y, x), its part in the loss at a pixel.
  template <typename Share> __device__ void weigh_windows(int i, const Share& share) const {
    tile.for_each(1, [&](int y, int x) {
      if (!tile.has_window(y, x)) return;
      const T weight = weight_of_window(y, x, share);
      const int at = tile.window_at(y, x);
      for (int k = 0; k < kPlanes; ++k) plane(i, k)[at] = weight != 0 ? plane(i, k)[at] * weight : T(0);
    });
  }

  // The gradient of the loss to source i at a pixel; with kBoth then that to the reference.
  __device__ void find_gradient(int i, int y, int x, T share, T* grad) const {
    T sums[kPlanes > 0 ? kPlanes : 1] = {};
    for (int row = y - 1; row <= y + 1; ++row)
      for (int column = x - 1; column <= x + 1; ++column) {
        if (!tile.has_window(row, column)) continue;
        const int at = tile.window_at(row, column);
#pragma unroll
        for (int k = 0; k < kPlanes; ++k) sums[k] += plane(i, k)[at];
      }
    const int at = tile.image_at(y, x);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const T here = image(i, c)[at], there = reference[c * kImageSize + at];
      grad[c] = photometric_grad<T>(
          sums[3 * c], sums[3 * c + 1], sums[3 * c + 2], weights.l1 * share, here, here - there);
      if constexpr (kBoth)
        grad[3 + c] = photometric_grad<T>(
            sums[3 * c], sums[3 * c + 1], sums[9 + c], weights.l1 * share, there, there - here);
    }
  }
};

}  // namespace mcd::MCD_TARGET
