// The loss on CUDA: a block finds its photometric error on a tile that lies in shared memory.
#pragma once

#include "../common/for_each.h"
#include "../common/shared_memory.cuh"
#include "../photometric_error/photometric_error.h"

namespace mcd::MCD_TARGET {

constexpr int kTileHeight = 16, kTileWidth = 32, kBlockThreads = 256;
// Blocks that a multiprocessor is to hold, which bounds registers.
template <typename T> constexpr int kBlocks = sizeof(T) == 4 ? 2 : 1;
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
    for_each_place<kBlockThreads>(
        max(top - margin, 0), min(bottom + margin, height), max(left - margin, 0), min(right + margin, width), f);
  }
  // Calls f(part, x) for every one of `parts` and every column of [first, last): threads that then walk down the column.
  template <typename F> static __device__ void for_each_column(int parts, int first, int last, const F& f) {
    const int n = last - first;
#pragma unroll 1
    for (int i = threadIdx.x; i < parts * n; i += kBlockThreads) f(i / n, first + i % n);
  }
};

// The row or column in which pixel i of `size` finds its window.
MCD_HD int mirrored(int i, int size) { return i == 0 ? 2 : i == size - 1 ? size - 3 : i; }

// What the three pixels of a row give to a window.
template <typename T> struct WindowRow {
  T mean_x, spread_x, mean_d, spread_d;

  WindowRow() = default;
  __device__ WindowRow(const T* x, const T* y) {
    const T d = x[0] - y[0];
    const auto of_x = Steps<T>::of(x[-1], x[0], x[1]), of_d = Steps<T>::of(x[-1] - y[-1], d, x[1] - y[1]);
    mean_x = x[0] + of_x.to_mean(), spread_x = of_x.spread(), mean_d = d + of_d.to_mean(), spread_d = of_d.spread();
  }
};

// What a block keeps in shared memory, of type T: the reference and the spread of its windows, and for each source its
// image, its SSIM by channel and with kGrad its windows' planes (alpha, beta, gamma of each channel) and weights. A chosen
// pixel weighs 1, so that weights are small integers.
template <typename T, bool kGrad> struct PhotometricBlock {
  static constexpr int kPlanes = kGrad ? 3 : 0;

  BlockTile tile;
  PhotometricWeights<T> weights;
  int sources;
  T *reference, *spreads, *images, *ssim, *windows, *identity;
  uint8_t *window_weights, *usable, *chosen;  // [S, kWindowSize], [S, kImageSize], [kWindowSize]: the source whose error
                                              // counts, plus 1

  static MCD_HD size_t bytes(int sources) {
    const int shared = 3 * kImageSize + 4 * kWindowSize;
    const int of_a_source = 3 * kImageSize + (3 + 3 * kPlanes) * kWindowSize;
    return (shared + sources * of_a_source) * sizeof(T) + (kGrad ? sources * kWindowSize : 0) +
           sources * kImageSize + kWindowSize;
  }
  __device__ PhotometricBlock(const BlockTile& tile, const PhotometricWeights<T>& weights, int sources, T* shared)
      : tile(tile), weights(weights), sources(sources), reference(shared), spreads(reference + 3 * kImageSize),
        images(spreads + 3 * kWindowSize), ssim(images + sources * 3 * kImageSize),
        windows(ssim + sources * 3 * kWindowSize), identity(windows + sources * 3 * kPlanes * kWindowSize),
        window_weights(reinterpret_cast<uint8_t*>(identity + kWindowSize)),
        usable(window_weights + (kGrad ? sources * kWindowSize : 0)),
        chosen(usable + sources * kImageSize) {}

  __device__ T* image(int i, int c) const { return images + (3 * i + c) * kImageSize; }
  __device__ T* ssim_of(int i, int c) const { return ssim + (3 * i + c) * kWindowSize; }
  // Plane k of a source's channel, `part` = 3 · source + channel.
  __device__ T* plane(int part, int k) const { return windows + (part * kPlanes + k) * kWindowSize; }

  __device__ int first_window() const { return max(tile.top - 1, 1); }
  __device__ int last_window() const { return min(tile.bottom + 1, tile.height - 1); }

  // Calls f(part, x) as for_each_column does, for the columns that have windows.
  template <typename F> __device__ void for_each_window_column(int parts, const F& f) const {
    BlockTile::for_each_column(parts, max(tile.left - 1, 1), min(tile.right + 1, tile.width - 1), f);
  }

  // What windows need of the reference, once for all images. The block has to agree before and after.
  __device__ void find_spreads() const {
    for_each_window_column(3, [&](int c, int x) {
      const int first = first_window(), last = last_window();
      const T* at = reference + c * kImageSize + tile.image_at(first - 1, x);
      T* out = spreads + c * kWindowSize + tile.window_at(first, x);
      T means[3], of_rows[3];
      const auto read = [&](int k) {
        const auto steps = Steps<T>::of(at[-1], at[0], at[1]);
        means[k] = at[0] + steps.to_mean(), of_rows[k] = steps.spread();
        at += kImageWidth;
      };
      read(0), read(1);
#pragma unroll 3
      for (int y = first; y < last; ++y, out += kWindowWidth) {
        read(2);
        *out = of_rows[0] + of_rows[1] + of_rows[2] + 3 * Steps<T>::of(means[0], means[1], means[2]).spread();
        means[0] = means[1], means[1] = means[2], of_rows[0] = of_rows[1], of_rows[1] = of_rows[2];
      }
    });
  }

  template <bool kLuminance, bool kKeep> __device__ void find_windows_as() const {
    for_each_window_column(3 * sources, [&](int part, int x) {
      const int first = first_window(), last = last_window(), at = tile.image_at(first - 1, x);
      const T *here = images + part * kImageSize + at, *there = reference + part % 3 * kImageSize + at;
      int out = tile.window_at(first, x);
      const T* spread_y = spreads + part % 3 * kWindowSize;
      WindowRow<T> above(here, there), middle(here + kImageWidth, there + kImageWidth);
      here += 2 * kImageWidth, there += 2 * kImageWidth;
#pragma unroll 3
      for (int y = first; y < last; ++y, out += kWindowWidth, here += kImageWidth, there += kImageWidth) {
        const WindowRow<T> below(here, there);
        const auto of_x = Steps<T>::of(above.mean_x, middle.mean_x, below.mean_x);
        const auto of_d = Steps<T>::of(above.mean_d, middle.mean_d, below.mean_d);
        const Moments<T> x_moments{
            middle.mean_x + of_x.to_mean(), above.spread_x + middle.spread_x + below.spread_x + 3 * of_x.spread()};
        const Moments<T> d_moments{
            middle.mean_d + of_d.to_mean(), above.spread_d + middle.spread_d + below.spread_d + 3 * of_d.spread()};
        const auto window = ssim_window<kLuminance, T>(
            x_moments.mean, x_moments.mean - d_moments.mean, d_moments, x_moments.spread + spread_y[out] + weights.c2, weights);
        ssim[part * kWindowSize + out] = window.error;
        if constexpr (kKeep) {
          plane(part, 0)[out] = window.alpha, plane(part, 1)[out] = window.beta, plane(part, 2)[out] = window.gamma;
        }
        above = middle, middle = below;
      }
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
    const T there[3] = {reference[at], reference[kImageSize + at], reference[2 * kImageSize + at]};
    Least least{0, -1};
#pragma unroll 1
    for (int i = 0; i < sources; ++i) {
      if (!all_usable && !usable[i * kImageSize + at]) continue;
      T l1 = 0, of_windows = 0;
#pragma unroll
      for (int c = 0; c < 3; ++c) l1 += abs<T>(image(i, c)[at] - there[c]), of_windows += ssim_of(i, c)[window];
      const T error = of_windows + weights.l1 * l1;
      if (least.source < 0 || error < least.error || is_nan(error)) least = {error, i};
    }
    return least;
  }

  // Weighs the windows by how many pixels find their SSIM in them, of those whose error is a source's. Where there is no
  // window the weight is 0. The block has to agree before and after.
  __device__ void weigh_windows() const {
    const int height = tile.height, width = tile.width;
    for_each_place<kBlockThreads>(tile.top - 1, tile.bottom + 1, tile.left - 1, tile.right + 1, [&](int y, int x) {
      const int at = tile.window_at(y, x), own = tile.has_window(y, x) ? chosen[at] : 0;
#pragma unroll 1
      for (int i = 0; i < sources; ++i) window_weights[i * kWindowSize + at] = own == i + 1;
    });
    if (tile.top > 0 && tile.bottom < height && tile.left > 0 && tile.right < width) return;
    __syncthreads();
    const auto gather = [&](int y, int x) {
      // The k-th line of pixels that find their SSIM in line i, or -1.
      const auto line = [](int k, int i, int size) {
        return k == 0 ? i : k == 1 ? (i == 2 ? 0 : -1) : i == size - 3 ? size - 1 : -1;
      };
#pragma unroll 1
      for (int k = 1; k < 9; ++k) {
        const int row = line(k / 3, y, height), column = line(k % 3, x, width);
        const int other = row >= 0 && column >= 0 ? chosen[tile.window_at(row, column)] : 0;
        if (other) ++window_weights[(other - 1) * kWindowSize + tile.window_at(y, x)];
      }
    };
    // The lines of windows that borders are mirrored into.
    const int top = max(tile.top - 1, 1), bottom = min(tile.bottom + 1, height - 1);
    const int left = max(tile.left - 1, 1), right = min(tile.right + 1, width - 1);
#pragma unroll 1
    for (int k = 0; k < 2; ++k) {
      const int row = k == 0 ? 2 : height - 3, column = k == 0 ? 2 : width - 3;
      if (row >= top && row < bottom && (k == 0 || row != 2)) for_each_place<kBlockThreads>(row, row + 1, left, right, gather);
      if (column >= left && column < right && (k == 0 || column != 2))
        for_each_place<kBlockThreads>(top, bottom, column, column + 1, [&](int y, int x) {
          if (y != 2 && y != height - 3) gather(y, x);
        });
    }
  }

  // Calls use(part, y, x, grad) with the gradient of the loss to a source's channel at every pixel of the tile, `part` =
  // 3 · source + channel.
  template <typename Use> __device__ void find_gradients(const Use& use) const {
    BlockTile::for_each_column(3 * sources, tile.left, tile.right, [&](int part, int x) {
      const int i = part / 3;
      int at = tile.window_at(tile.top - 1, x);
      T rows[3][kPlanes > 0 ? kPlanes : 1];
      const auto read = [&](T* sums) {
#pragma unroll
        for (int k = 0; k < kPlanes; ++k) sums[k] = 0;
#pragma unroll
        for (int column = -1; column <= 1; ++column) {
          // Not a product: what is no window, or NaN, has the weight 0.
          const uint8_t weight = window_weights[i * kWindowSize + at + column];
          if (weight != 0)
#pragma unroll
            for (int k = 0; k < kPlanes; ++k) sums[k] += T(weight) * plane(part, k)[at + column];
        }
        at += kWindowWidth;
      };
      read(rows[0]), read(rows[1]);
#pragma unroll 3
      for (int y = tile.top; y < tile.bottom; ++y) {
        read(rows[2]);
        T sums[kPlanes > 0 ? kPlanes : 1];
#pragma unroll
        for (int k = 0; k < kPlanes; ++k)
          sums[k] = rows[0][k] + rows[1][k] + rows[2][k], rows[0][k] = rows[1][k], rows[1][k] = rows[2][k];
        const int pixel = tile.image_at(y, x);
        const T here = images[part * kImageSize + pixel], there = reference[part % 3 * kImageSize + pixel];
        const T l1 = chosen[tile.window_at(y, x)] == i + 1 ? weights.l1 : T(0);
        use(part, y, x, photometric_grad<T>(sums[0], sums[1], sums[2], l1, here, here - there));
      }
    });
  }
};

}  // namespace mcd::MCD_TARGET
