// Errors of a reference's sources on CUDA: a warp takes a channel, and warps hand each other their parts of the errors.
#pragma once

#include "../common/shared_memory.cuh"
#include "../common/tensor.h"
#include "strip.cuh"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kStripRows = 32;

template <typename T, typename image_t> struct Images {
  const image_t *reference, *warped, *sources;  // [B, 3, H, W], [B, S, 3, H, W] twice
  const bool* valid;                            // [B, S, H, W] or null
  PhotometricWeights<T> weights;
  Strips strips;
  int count;  // of sources

  MCD_HD int64_t pixels() const { return int64_t(strips.height) * strips.width; }
};

// The least error of the sources as they are (identity), or with kWarped the least one of the warped sources, and where that is
// smaller.
template <typename T, typename image_t, bool kUsual, bool kLuminance, bool kWarped>
__global__ void __launch_bounds__(kMaxThreads<T, kUsual>, kBlocks<T, kUsual, kWarped ? 5 : 7>)
    error_strips(Images<T, image_t> images, T* error, bool* auto_mask) {
  extern __shared__ double shared[];
  constexpr int kSources = kGroup<kUsual>, kKinds = kWarped ? 2 : 1, kImages = kKinds * kSources;  // sources, then warped
  const int height = images.strips.height, width = images.strips.width, sources = kUsual ? kUsualSources : images.count;
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), warps = int(blockDim.x / 32);
  const int channel = warp % kChannels, first = kUsual ? 0 : warp / kChannels;
  const PairOfColumns pair(images.strips, blockIdx.x);
  const int second = kUsual || pair.x + 1 < width ? 1 : 0;
  // The parts of channels in the errors of a row, [2, kinds · sources, channels, 32]: one row is read while the next is
  // written.
  auto* parts = reinterpret_cast<Two<T>*>(shared) + lane;
  const int row_of_parts = kKinds * sources * kChannels * 32;

  // The next row to be read, of the reference, of the first source as it is and as it is warped.
  const int64_t pixels = images.pixels(), at_first = int64_t(max(pair.top, 1) - 1) * width + max(pair.x, 0);
  const int64_t of_source = ((int64_t(pair.image) * sources + first) * kChannels + channel) * pixels + at_first;
  const image_t* of_reference = images.reference + (int64_t(pair.image) * kChannels + channel) * pixels + at_first;
  const image_t *of_sources = images.sources + of_source, *of_warped = kWarped ? images.warped + of_source : nullptr;
  const auto image_at = [&](int i) {
    return (i < kSources ? of_sources : of_warped) + i % kSources * kChannels * pixels;
  };
  const auto move = [&](int step) {
    of_reference += step, of_sources += step;
    if (kWarped) of_warped += step;
  };

  T y_above[2], y_here[2], y_next[2], d_above[kImages][2], d_here[kImages][2], next[kImages][2];
  const auto load_row = [&] {
    load_pair<kUsual>(y_next, of_reference, second);
#pragma unroll
    for (int i = 0; i < kImages; ++i) load_pair<kUsual>(next[i], image_at(i), second);
  };
  const auto shift = [&] {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      y_above[k] = y_here[k], y_here[k] = y_next[k];
#pragma unroll
      for (int i = 0; i < kImages; ++i) d_above[i][k] = d_here[i][k], d_here[i][k] = next[i][k] - y_next[k];
    }
  };
  load_row(), move(width), shift(), load_row(), move(width), shift(), load_row();

  int turn = 0, row = 0;
  // Writes what pixels of row q have for errors, whose windows and differences are those given.
  const auto write = [&](int q, const T(&errors)[kImages][2], const T(&d)[kImages][2]) {
    row = row_of_parts - row;
#pragma unroll
    for (int i = 0; i < kImages; ++i) {
      Two<T> part;
      for (int k = 0; k < 2; ++k)
        part.at[k] = images.weights.ssim * errors[i][k] + images.weights.l1 * abs<T>(d[i][k]);
      parts[row + ((i / kSources * sources + first + i % kSources) * kChannels + channel) * 32] = part;
    }
    __syncthreads();
    if (warp == turn) {
      const int64_t at = int64_t(q) * width + max(pair.x, 0);
      LeastOfPair<T> identity;
      identity.template find<kUsual>(parts + row, sources, nullptr, 0, 0);
      if constexpr (kWarped) {
        const bool* usable = images.valid ? images.valid + int64_t(pair.image) * sources * pixels + at : nullptr;
        LeastOfPair<T> least;
        least.template find<kUsual>(parts + row + row_of_parts / 2, sources, usable, pixels, second);
        bool counts[2];
        for (int k = 0; k < 2; ++k) counts[k] = least.source[k] >= 0 && least.error[k] < identity.error[k];
        if (pair.own) {
          store_pair<kUsual>(error + pair.image * pixels + at, least.error, second);
          store_pair<kUsual>(auto_mask + pair.image * pixels + at, counts, second);
        }
      } else if (pair.own) {
        store_pair<kUsual>(error + pair.image * pixels + at, identity.error, second);
      }
    }
    turn = turn + 1 == warps ? 0 : turn + 1;
  };
  const int end = min(pair.bottom, height - 1);
#pragma unroll 1
  for (int r = max(pair.top, 1); r < end; ++r) {
    const ReferenceWindows<T> y(y_above, y_here, y_next, images.weights.c2);
    T errors[kImages][2], d[kImages][2];
#pragma unroll
    for (int i = 0; i < kImages; ++i) {
      T d_below[2];
      for (int k = 0; k < 2; ++k) d_below[k] = next[i][k] - y_next[k], d[i][k] = d_here[i][k];
      WindowsOfPair<T> windows;
      windows.template find<kLuminance>(d_above[i], d_here[i], d_below, y, images.weights);
      for (int k = 0; k < 2; ++k) errors[i][k] = windows.error[k];
    }
    shift();
    move(r + 2 < height ? width : 0);  // the last row is not followed by another
    load_row();
    mirror(pair, width, errors);
    write(r, errors, d);
    if (r != 2 && r != height - 3) continue;
    // The pixels of the border's rows are found in the windows of these.
#pragma unroll 1
    for (int q = 0; q < height; q += height - 1) {
      if (q == 0 ? r != 2 || pair.top > 0 : r != height - 3 || pair.bottom < height) continue;
      const int64_t away = int64_t(q - min(r + 2, height - 1)) * width;
      T there[2];
      load_pair<kUsual>(there, of_reference + away, second);
#pragma unroll
      for (int i = 0; i < kImages; ++i) {
        T here[2];
        load_pair<kUsual>(here, image_at(i) + away, second);
        for (int k = 0; k < 2; ++k) d[i][k] = here[k] - there[k];
      }
      write(q, errors, d);
    }
  }
}

// Launches `blocks` of a kernel with a warp for each channel of each group of sources.
template <int max_groups, typename Kernel, typename... Arguments>
void launch_strips(
    Kernel kernel, const char* name, int64_t blocks, int groups, size_t bytes, const Where& where, Arguments... arguments) {
  if (blocks == 0) return;
  if (groups > max_groups)
    throw std::invalid_argument(
        std::string(name) + ": " + std::to_string(groups) + " source images, on CUDA they may be at most " +
        std::to_string(max_groups) + "; backend=\"reference\" has no such limit");
  allow_shared_memory(kernel, bytes, name);
  kernel<<<unsigned(blocks), unsigned(groups * 32 * kChannels), bytes, cudaStream_t(where.stream)>>>(arguments...);
  check_launch(name);
}

// Calls f(usual, luminance) for the images.
template <typename T, typename image_t, typename F, typename... Outputs>
void with_kind(const Images<T, image_t>& images, const F& f, const Outputs*... outputs) {
  const auto aligned = [](const auto* at) { return reinterpret_cast<uintptr_t>(at) % (2 * sizeof(*at)) == 0; };
  if (images.weights.luminance) return f(std::false_type{}, std::true_type{});
  if constexpr (sizeof(T) == 4)
    if (images.count == kUsualSources && images.strips.width % 2 == 0 && aligned(images.reference) &&
        aligned(images.warped) && aligned(images.sources) && (aligned(outputs) && ...))
      return f(std::true_type{}, std::false_type{});
  f(std::false_type{}, std::false_type{});
}

}  // namespace
}  // namespace mcd::MCD_TARGET
