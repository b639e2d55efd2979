// Photometric error on CUDA: warps walk down strips of an image. A thread takes two neighbouring columns of one channel and
// keeps their last rows in registers; what windows need of the columns beside comes from the neighbouring threads.
#pragma once

#include "../common/for_each.h"
#include "photometric_error.h"

namespace mcd::MCD_TARGET {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kChannels = 3;
// The usual case, which has kernels of its own: two sources, the usual constants, pairs that are read as one. There a warp
// finds the windows of both sources, and what it needs of the reference serves both; else a warp takes one source.
constexpr int kUsualSources = 2;
template <bool kUsual> constexpr int kGroup = kUsual ? kUsualSources : 1;
template <typename T, bool kUsual> constexpr int kMaxGroups = kUsual ? 1 : sizeof(T) == 4 ? 5 : 4;
template <typename T, bool kUsual> constexpr int kMaxThreads = 32 * kChannels * kMaxGroups<T, kUsual>;
// Blocks that a multiprocessor is to hold, which bounds registers.
template <typename T, bool kUsual, int of_usual> constexpr int kBlocks = kUsual && sizeof(T) == 4 ? of_usual : 1;

// The compiler must not make selections, by all threads, of what is done in here.
__device__ __forceinline__ void stay_a_branch() {
#ifdef __CUDA_ARCH__
  asm volatile("");
#endif
}
// Numbers that are read and written as one.
template <typename T> struct alignas(2 * sizeof(T)) Two {
  T at[2];
};

// Images cut into strips: pairs of columns, one image after another, and `rows` rows, of which the last strips have at least
// four. The pairs at both ends of a warp serve their neighbours alone. A border's pixel finds its window two columns inside;
// where the last pair is half empty, that reads one pair more.
struct Strips {
  int64_t batch, count;  // of the images, and of strips beside each other
  int height, width, pairs, halo, rows, tiles;
  uint32_t reciprocal;  // 2^32 / count

  static Strips of(int64_t batch, int height, int width, int rows) {
    const int pairs = (width + 1) / 2, halo = 1 + width % 2, own = 32 - 2 * halo;
    while (height % rows != 0 && height % rows < 4) ++rows;
    const int64_t count = max<int64_t>((batch * pairs + own - 1) / own, 1);
    return {batch, count, height, width, pairs, halo, rows, (height + rows - 1) / rows,
            uint32_t(min<int64_t>((int64_t(1) << 32) / count, (int64_t(1) << 32) - 1))};
  }
  MCD_HD int64_t blocks() const { return batch == 0 ? 0 : count * tiles; }
  // The strip in which a pair of columns is its own, of those of all images.
  MCD_HD int64_t strip_of(int64_t pair) const { return pair / (32 - 2 * halo); }
};

// Where a thread of a warp stands.
struct PairOfColumns {
  int tile, strip, image, x, top, bottom;  // x: of the first column, -2 beyond the images
  bool own;            // not the repetition of another warp's
  bool near_border;    // some pixel of the warp is at a border

  __device__ PairOfColumns(const Strips& strips, unsigned block) {
    const int lane = int(threadIdx.x % 32);
    // By multiplication: the compiler then sees that all threads go the same way.
    const uint32_t count = uint32_t(strips.count);
    tile = int(uint64_t(block) * strips.reciprocal >> 32), strip = int(block - unsigned(tile) * count);
    if (unsigned(strip) >= count) ++tile, strip -= int(count);
    top = tile * strips.rows, bottom = min(top + strips.rows, strips.height);
    const int64_t pair = int64_t(strip) * (32 - 2 * strips.halo) + lane - strips.halo, last = strips.batch * strips.pairs - 1;
    const bool exists = pair >= 0 && pair <= last;
    const auto [at, column] = divide(exists ? pair : 0, strips.pairs);
    image = int(at);
    x = exists ? 2 * int(column) : -2;
    own = exists && lane >= strips.halo && lane < 32 - strips.halo;
    near_border = __any_sync(kWholeWarp, inside(0, strips.width) != 0 || inside(1, strips.width) != 0);
  }
  // From here to the thread in whose window a pixel is found: 0 but at borders.
  __device__ int inside(int k, int width) const { return x + k == 0 ? 1 : x + k == width - 1 ? -1 : 0; }
  __device__ bool has_window(int k, int width) const { return x + k >= 1 && x + k < width - 1; }
};

// Two pixels of a row, the first at `from`. kPairs: they lie in the image, and aligned; else the second one may not exist.
template <bool kPairs, typename T, typename Image>
__device__ __forceinline__ void load_pair(T (&to)[2], const Image* from, int second) {
  if constexpr (kPairs) {
    const auto both = *reinterpret_cast<const Two<Image>*>(from);
    to[0] = load<T>(&both.at[0], 1), to[1] = load<T>(&both.at[1], 1);
  } else {
    to[0] = load<T>(from, 1), to[1] = load<T>(from + second, 1);
  }
}
template <bool kPairs, typename T, typename Image>
__device__ __forceinline__ void store_pair(Image* to, const T (&values)[2], int second) {
  if constexpr (kPairs) {
    Two<Image> both;
    store(&both.at[0], values[0], 1), store(&both.at[1], values[1], 1);
    *reinterpret_cast<Two<Image>*>(to) = both;
  } else {
    store(to, values[0], 1);
    if (second) store(to + 1, values[1], 1);
  }
}

// A thread's two columns and those beside.
template <typename T> struct Line {
  T left, at[2], right;

  __device__ explicit Line(const T (&own)[2])
      : left(__shfl_up_sync(kWholeWarp, own[1], 1)), at{own[0], own[1]}, right(__shfl_down_sync(kWholeWarp, own[0], 1)) {}
  __device__ void sums(T (&of)[2]) const {
    const T both = at[0] + at[1];
    of[0] = left + both, of[1] = both + right;
  }
};

// Of two neighbouring lines across columns, given how much each number is larger than the one before it: Steps::spread() of
// both, which share a square.
template <typename T> __device__ __forceinline__ void spreads_across(const T (&between)[3], T (&spreads)[2]) {
  const T square = between[1] * between[1];
  spreads[0] = between[0] * (between[0] + between[1]) + square, spreads[1] = between[2] * (between[1] + between[2]) + square;
}

// What windows of the reference's row at hand give to those of a source. x = y + d, so of the spreads of x and y together that
// of d is a part, and the rest is a product with steps of the reference: two operations a line, where the spread of x takes
// four.
template <typename T> struct ReferenceWindows {
  T mean[2];
  Steps<T> columns[2], across[2];       // the duals of steps down the columns and across their means
  T spreads_of_columns[2], spreads[2];  // twice the spreads of columns; six times those across, and c2

  ReferenceWindows() = default;
  __device__ ReferenceWindows(const T (&above)[2], const T (&here)[2], const T (&below)[2], T c2) {
    T means[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const auto steps = Steps<T>::of(above[k], here[k], below[k]);
      means[k] = here[k] + steps.to_mean(), spreads_of_columns[k] = 2 * steps.spread(), columns[k] = steps.dual();
    }
    const Line<T> line(means);
    const T between[3] = {means[0] - line.left, means[1] - means[0], line.right - means[1]};
    spreads_across(between, spreads);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Steps<T> steps{-between[k], between[k + 1]};
      mean[k] = means[k] + steps.to_mean(), spreads[k] = 6 * spreads[k] + c2, across[k] = steps.dual();
    }
  }
};

// SSIM of a source's windows in the row at hand: the error, and what its gradients to x at a pixel p inside need, which are
// alpha · d(p) - beta · y(p) - gamma, and to y -(alpha + beta) · d(p) - beta · y(p) - gamma_y. The error is in units of
// PhotometricWeights::ssim, the rest of thrice that.
template <typename T> struct WindowsOfPair {
  T error[2], alpha[2], beta[2], gamma[2], gamma_y[2];

  // From d = x - y.
  template <bool kLuminance>
  __device__ __forceinline__ void find(
      const T (&above)[2], const T (&here)[2], const T (&below)[2], const ReferenceWindows<T>& y,
      const PhotometricWeights<T>& weights) {
    T means[2], spreads[2], others[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const auto steps = Steps<T>::of(above[k], here[k], below[k]);
      means[k] = here[k] + steps.to_mean(), spreads[k] = steps.spread();
      others[k] = steps.times(y.columns[k]) + y.spreads_of_columns[k];
    }
    const Line<T> of_means(means), of_spreads(spreads), of_others(others);
    const T between[3] = {means[0] - of_means.left, means[1] - means[0], of_means.right - means[1]};
    T spread[2], other[2], of_row[2];
    of_spreads.sums(spread), of_others.sums(other), spreads_across(between, of_row);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const Steps<T> steps{-between[k], between[k + 1]};
      const T mean = means[k] + steps.to_mean();
      spread[k] += 3 * of_row[k], other[k] += 3 * steps.times(y.across[k]);
      const T all = spread[k] + (other[k] + y.spreads[k]);
      if constexpr (!kLuminance) {
        const T over = reciprocal<T>(all), b = spread[k] * over;
        error[k] = b, beta[k] = over * b, alpha[k] = over - beta[k];
        gamma[k] = alpha[k] * mean - beta[k] * y.mean[k];
        gamma_y[k] = -over * mean - beta[k] * y.mean[k];
      } else {
        PhotometricWeights<T> one = weights;
        one.ssim = T(1) / 3;
        const auto window = ssim_window<true, T>(y.mean[k] + mean, y.mean[k], {mean, spread[k]}, all, one);
        error[k] = 3 * window.error, alpha[k] = window.alpha - window.beta, beta[k] = window.beta;
        gamma[k] = window.gamma, gamma_y[k] = window.gamma_y;
      }
    }
  }
};

// What pixels' errors take from windows: at a border those of two pixels inside.
template <int n, typename T> __device__ __forceinline__ void mirror(const PairOfColumns& pair, int width, T (&errors)[n][2]) {
  if (!pair.near_border) return;
#pragma unroll
  for (int i = 0; i < n; ++i)
#pragma unroll
    for (int k = 0; k < 2; ++k) 
      errors[i][k] = __shfl_sync(kWholeWarp, errors[i][k], int(threadIdx.x % 32) + pair.inside(k, width));
}
// The adjoint: windows weigh what the pixels do that are found in them. Where there is no window the weight is 0.
template <int n, typename T>
__device__ __forceinline__ void gather_mirrored(const PairOfColumns& pair, int width, T (&weights)[n][2]) {
  if (!pair.near_border) return;
#pragma unroll
  for (int i = 0; i < n; ++i)
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const T before = __shfl_up_sync(kWholeWarp, weights[i][k], 1), after = __shfl_down_sync(kWholeWarp, weights[i][k], 1);
      const int x = pair.x + k;
      const T sum = weights[i][k] + (x == 2 ? before : T(0)) + (x == width - 3 ? after : T(0));
      weights[i][k] = pair.has_window(k, width) ? sum : T(0);
    }
}

// The gradient that windows, whose planes are summed along the row, add to a pixel there.
template <typename T> __device__ __forceinline__ T add_windows(T grad, T alpha, T beta, T gamma, T d, T y) {
  return (grad - gamma) + alpha * d - beta * y;
}

// The least error over the sources, of a thread's two pixels, from the parts that channels have in them: [sources, channels,
// 32] pairs.
template <typename T> struct LeastOfPair {
  T error[2] = {0, 0};
  int source[2] = {-1, -1};  // none may be chosen

  // usable: of the first source at the first pixel, or null; `plane` further is the next source.
  template <bool kPairs>
  __device__ void find(const Two<T>* parts, int sources, const bool* usable, int64_t plane, int second) {
    const auto take = [&](int i) {
      const Two<T> red = parts[(3 * i) * 32], green = parts[(3 * i + 1) * 32], blue = parts[(3 * i + 2) * 32];
      bool may[2] = {true, true};
      if (usable) may[0] = usable[i * plane], may[1] = usable[i * plane + second];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const T candidate = red.at[k] + green.at[k] + blue.at[k];
        const bool better = may[k] & ((source[k] < 0) | (candidate < error[k]) | is_nan(candidate));
        error[k] = better ? candidate : error[k], source[k] = better ? i : source[k];
      }
    };
    if constexpr (kPairs) {
#pragma unroll
      for (int i = 0; i < kUsualSources; ++i) take(i);
    } else {
#pragma unroll 1
      for (int i = 0; i < sources; ++i) take(i);
    }
  }
};

}  // namespace mcd::MCD_TARGET
