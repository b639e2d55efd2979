#include "../common/dispatch.h"
#include "../common/for_each.h"
#include "../common/shared_memory.cuh"
#include "../operators.h"
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

template <typename T, typename image_t, bool kUsual, bool kLuminance>
__global__ void __launch_bounds__(kMaxThreads<T, kUsual>, kBlocks<T, kUsual, 5>)
    fwd_strips(Images<T, image_t> images, T* error, bool* auto_mask) {
  extern __shared__ double shared[];
  constexpr int kSources = kGroup<kUsual>, kImages = 2 * kSources;  // sources, then warped
  const int height = images.strips.height, width = images.strips.width, sources = kUsual ? kUsualSources : images.count;
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32), warps = int(blockDim.x / 32);
  const int channel = warp % kChannels, first = kUsual ? 0 : warp / kChannels;
  const PairOfColumns pair(images.strips);
  const int second = kUsual || pair.x + 1 < width ? 1 : 0;
  // The parts of channels in the errors of a row, [2, 2 · sources, channels, 32]: one row is read while the next is written.
  auto* parts = reinterpret_cast<Two<T>*>(shared) + lane;
  const int row_of_parts = 2 * sources * kChannels * 32;

  // The next row to be read, of the reference, of the first source as it is and as it is warped.
  const int64_t pixels = images.pixels(), at_first = int64_t(max(pair.top, 1) - 1) * width + max(pair.x, 0);
  const int64_t of_source = ((int64_t(pair.image) * sources + first) * kChannels + channel) * pixels + at_first;
  const image_t* of_reference = images.reference + (int64_t(pair.image) * kChannels + channel) * pixels + at_first;
  const image_t *of_sources = images.sources + of_source, *of_warped = images.warped + of_source;
  const auto image_at = [&](int i) {
    return (i < kSources ? of_sources : of_warped) + i % kSources * kChannels * pixels;
  };
  const auto move = [&](int step) { of_reference += step, of_sources += step, of_warped += step; };

  Down<T> y;
  SourceDown<T> source[kImages];
  T next_y[2], next[kImages][2];
  {
    T above[kImages][2], above_y[2];
    load_pair<kUsual>(above_y, of_reference, second);
#pragma unroll
    for (int i = 0; i < kImages; ++i) load_pair<kUsual>(above[i], image_at(i), second);
    move(width);
    load_pair<kUsual>(y.here, of_reference, second);
    for (int k = 0; k < 2; ++k) y.up[k] = y.here[k] - above_y[k];
#pragma unroll
    for (int i = 0; i < kImages; ++i) {
      T here[2];
      load_pair<kUsual>(here, image_at(i), second);
      source[i].start(above[i], here, y);
    }
    move(width);
    load_pair<kUsual>(next_y, of_reference, second);
#pragma unroll
    for (int i = 0; i < kImages; ++i) load_pair<kUsual>(next[i], image_at(i), second);
  }

  int turn = 0, row = 0;
  // Writes what pixels of row q have for errors, whose windows and differences are those given.
  const auto write = [&](int q, const T(&errors)[kImages][2], const T(&d)[kImages][2]) {
    row = row_of_parts - row;
#pragma unroll
    for (int i = 0; i < kImages; ++i) {
      Two<T> part;
      for (int k = 0; k < 2; ++k) part.at[k] = errors[i][k] + images.weights.l1 * abs<T>(d[i][k]);
      parts[row + ((i / kSources * sources + first + i % kSources) * kChannels + channel) * 32] = part;
    }
    __syncthreads();
    if (warp == turn) {
      const int64_t at = int64_t(q) * width + max(pair.x, 0);
      const bool* usable = images.valid ? images.valid + int64_t(pair.image) * sources * pixels + at : nullptr;
      LeastOfPair<T> identity, least;
      identity.template find<kUsual>(parts + row, sources, nullptr, 0, 0);
      least.template find<kUsual>(parts + row + row_of_parts / 2, sources, usable, pixels, second);
      bool counts[2];
      for (int k = 0; k < 2; ++k) counts[k] = least.source[k] >= 0 && least.error[k] < identity.error[k];
      if (pair.own) {
        store_pair<kUsual>(error + pair.image * pixels + at, least.error, second);
        store_pair<kUsual>(auto_mask + pair.image * pixels + at, counts, second);
      }
    }
    turn = turn + 1 == warps ? 0 : turn + 1;
  };
  const int end = min(pair.bottom, height - 1);
#pragma unroll 1
  for (int r = max(pair.top, 1); r < end; ++r) {
    const ReferenceWindows<T> of_y(y, next_y, images.weights.c2);
    move(r + 2 < height ? width : 0);  // the last row is not followed by another
    load_pair<kUsual>(next_y, of_reference, second);
    T errors[kImages][2], d[kImages][2];
#pragma unroll
    for (int i = 0; i < kImages; ++i) {
      SsimWindow<T> windows[2];
      source[i].template windows<kLuminance>(next[i], of_y, images.weights, windows, d[i]);
      load_pair<kUsual>(next[i], image_at(i), second);
      for (int k = 0; k < 2; ++k) errors[i][k] = windows[k].error;
    }
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

// What a thread keeps of its rows in shared memory until it finds their gradients: the reference, and for each source the
// image and the part that its error has in the loss. Of that the first row and the last have places of their own, for
// their errors are known late and early.
template <typename T, bool kUsual> struct KeptRows {
  static constexpr int kNumbers = 1 + 2 * kGroup<kUsual>, kRows = 4;
  Two<T>* first;
  int height;

  static constexpr size_t bytes(int threads) { return size_t(threads) * kRows * kNumbers * sizeof(Two<T>); }
  __device__ Two<T>& at(int row, int number) const { return first[(row * kNumbers + number) * int(blockDim.x)]; }
  __device__ Two<T>& reference(int q) const { return at(q % kRows, 0); }
  __device__ Two<T>& image(int i, int q) const { return at(q % kRows, 1 + i); }
  __device__ Two<T>& share(int i, int q) const {
    return at(q == 0 ? 2 : q == height - 1 ? 3 : q & 1, 1 + kGroup<kUsual> + i);
  }
};

template <typename T, typename image_t, bool kUsual, bool kLuminance, bool kBoth>
__global__ void __launch_bounds__(kMaxThreads<T, kUsual>, kBlocks<T, kUsual, 5>)
    bwd_strips(Images<T, image_t> images, const T* grad_error, image_t* grad_warped, image_t* grad_reference) {
  extern __shared__ double shared[];
  constexpr int kSources = kGroup<kUsual>, kPlanes = kBoth ? 4 : 3;  // alpha, beta, gamma, gamma_y
  const int height = images.strips.height, width = images.strips.width, sources = kUsual ? kUsualSources : images.count;
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int channel = warp % kChannels, first = kUsual ? 0 : warp / kChannels;
  const PairOfColumns pair(images.strips);
  const int second = kUsual || pair.x + 1 < width ? 1 : 0;
  auto* parts = reinterpret_cast<Two<T>*>(shared) + lane;  // [2, sources, channels, 32] as in the forward pass
  const int row_of_parts = sources * kChannels * 32;
  const int of_groups = 2 * row_of_parts;  // there, with kBoth, [groups, channels, 32]: gradients to the reference
  const KeptRows<T, kUsual> kept{parts - lane + of_groups + threadIdx.x + (kBoth ? int(blockDim.x) : 0), height};

  const int begin = max(pair.top - 1, 1);
  const int64_t pixels = images.pixels(), at_first = int64_t(begin - 1) * width + max(pair.x, 0);
  // Where the row lies that was read last.
  int64_t in_reference = (int64_t(pair.image) * kChannels + channel) * pixels + at_first;
  int64_t in_warped = ((int64_t(pair.image) * sources + first) * kChannels + channel) * pixels + at_first;
  const auto image_at = [&](int i) { return images.warped + in_warped + i * kChannels * pixels; };

  Down<T> y;
  SourceDown<T> source[kSources];
  T next_y[2], next[kSources][2];
  const auto keep = [&](int q) {
    kept.reference(q) = {y.here[0], y.here[1]};
#pragma unroll
    for (int i = 0; i < kSources; ++i) kept.image(i, q) = {source[i].here[0], source[i].here[1]};
  };
  // Back from there, which leaves registers to others meanwhile.
  const auto take = [&](int q) {
    const Two<T> of_y = kept.reference(q);
    y.here[0] = of_y.at[0], y.here[1] = of_y.at[1];
#pragma unroll
    for (int i = 0; i < kSources; ++i) {
      const Two<T> of_x = kept.image(i, q);
      source[i].here[0] = of_x.at[0], source[i].here[1] = of_x.at[1];
    }
  };
  {
    T above[kSources][2], above_y[2];
    load_pair<kUsual>(above_y, images.reference + in_reference, second);
    kept.reference(begin - 1) = {above_y[0], above_y[1]};
#pragma unroll
    for (int i = 0; i < kSources; ++i) {
      load_pair<kUsual>(above[i], image_at(i), second);
      kept.image(i, begin - 1) = {above[i][0], above[i][1]};
    }
    in_reference += width, in_warped += width;
    load_pair<kUsual>(y.here, images.reference + in_reference, second);
    for (int k = 0; k < 2; ++k) y.up[k] = y.here[k] - above_y[k];
#pragma unroll
    for (int i = 0; i < kSources; ++i) {
      T here[2];
      load_pair<kUsual>(here, image_at(i), second);
      source[i].start(above[i], here, y);
    }
    keep(begin);
    in_reference += width, in_warped += width;
    load_pair<kUsual>(next_y, images.reference + in_reference, second);
#pragma unroll
    for (int i = 0; i < kSources; ++i) load_pair<kUsual>(next[i], image_at(i), second);
  }

  // Of each source: its windows' planes, summed over three columns, of the row before and of the two before.
  T before[kSources][kPlanes][2] = {}, two_before[kSources][kPlanes][2] = {};
  int row = 0;
  const auto last_read = [&](int r) { return min(r + 2, height - 1); };  // the row that was read last

  // Gradients at the pixels of row p from sums over its windows.
  const auto finish = [&](int p, int r, const T(&sums)[kSources][kPlanes][2]) {
    T total[2] = {0, 0};
    const Two<T> at_y = kept.reference(p);
#pragma unroll
    for (int i = 0; i < kSources; ++i) {
      const Two<T> at_x = kept.image(i, p), share = kept.share(i, p);
      T grad[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const T d = at_x.at[k] - at_y.at[k], l1 = images.weights.l1 * share.at[k];
        grad[k] = photometric_grad<T>(sums[i][0][k], sums[i][1][k], sums[i][2][k], l1, at_x.at[k], d);
        if constexpr (kBoth)
          total[k] += photometric_grad<T>(sums[i][0][k], sums[i][1][k], sums[i][3][k], l1, at_y.at[k], -d);
      }
      const int64_t to = in_warped + i * kChannels * pixels + int64_t(p - last_read(r)) * width;
      if (pair.own) store_pair<kUsual>(grad_warped + to, grad, second);
    }
    if constexpr (kBoth) {
      parts[of_groups + warp * 32] = {total[0], total[1]};
      __syncthreads();
      if (first == 0 && pair.own) {
        total[0] = total[1] = 0;
#pragma unroll 1
        for (int g = 0; g < sources; ++g) {
          const Two<T> part = parts[of_groups + (g * kChannels + channel) * 32];
          for (int k = 0; k < 2; ++k) total[k] += part.at[k];
        }
        store_pair<kUsual>(grad_reference + in_reference + int64_t(p - last_read(r)) * width, total, second);
      }
      __syncthreads();
    }
  };

  // Adds the pixels of row q to the windows' weights, whose errors and differences are those given.
  const auto weigh = [&](int q, const T(&errors)[kSources][2], const T(&d)[kSources][2], T(&weights)[kSources][2]) {
    row = row_of_parts - row;
#pragma unroll
    for (int i = 0; i < kSources; ++i) {
      Two<T> part;
      for (int k = 0; k < 2; ++k) part.at[k] = errors[i][k] + images.weights.l1 * abs<T>(d[i][k]);
      parts[row + ((first + i) * kChannels + channel) * 32] = part;
    }
    T upstream[2];
    const int64_t at = pair.image * pixels + int64_t(q) * width + max(pair.x, 0);
    load_pair<kUsual>(upstream, grad_error + at, second);
    const bool* usable = images.valid ? images.valid + int64_t(pair.image) * (sources - 1) * pixels + at : nullptr;
    __syncthreads();
    LeastOfPair<T> least;
    least.template find<kUsual>(parts + row, sources, usable, pixels, second);
    int chosen[2];
    for (int k = 0; k < 2; ++k) chosen[k] = is_nan(least.error[k]) ? -1 : least.source[k] - first;
#pragma unroll
    for (int i = 0; i < kSources; ++i) {
      const Two<T> share{chosen[0] == i ? upstream[0] : T(0), chosen[1] == i ? upstream[1] : T(0)};
      for (int k = 0; k < 2; ++k) weights[i][k] += share.at[k];
      kept.share(i, q) = share;
    }
  };

#pragma unroll 1
  for (int r = begin; r <= pair.bottom; ++r) {
    T planes[kSources][kPlanes][2] = {};
    if (r < height - 1) {
      take(r);
      const ReferenceWindows<T> of_y(y, next_y, images.weights.c2);
      const int step = r + 2 < height ? width : 0;  // the last row is not followed by another
      in_reference += step, in_warped += step;
      load_pair<kUsual>(next_y, images.reference + in_reference, second);
      SsimWindow<T> windows[kSources][2];
      T errors[kSources][2], d[kSources][2], weights[kSources][2] = {};
#pragma unroll
      for (int i = 0; i < kSources; ++i) {
        source[i].template windows<kLuminance>(next[i], of_y, images.weights, windows[i], d[i]);
        load_pair<kUsual>(next[i], image_at(i), second);
        for (int k = 0; k < 2; ++k) errors[i][k] = windows[i][k].error;
      }
      keep(r + 1);
      mirror(pair, width, errors);
      weigh(r, errors, d, weights);
      if (r == 2 || r == height - 3) {
        // The pixels of the border's rows are found in the windows of these.
#pragma unroll 1
        for (int q = 0; q < height; q += height - 1) {
          if (q == 0 ? r != 2 : r != height - 3) continue;
          const int64_t away = int64_t(q - last_read(r)) * width;
          T there[2];
          load_pair<kUsual>(there, images.reference + in_reference + away, second);
#pragma unroll
          for (int i = 0; i < kSources; ++i) {
            T here[2];
            load_pair<kUsual>(here, image_at(i) + away, second);
            for (int k = 0; k < 2; ++k) d[i][k] = here[k] - there[k];
          }
          weigh(q, errors, d, weights);
        }
        // Row 0 waited for its own error.
        if (r == 2 && pair.top == 0) finish(0, r, before);
      }
      gather_mirrored(pair, width, weights);
      bool spoiled = false;
#pragma unroll
      for (int i = 0; i < kSources; ++i)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const T weight = weights[i][k];
          planes[i][0][k] = weight * windows[i][k].alpha;
          planes[i][1][k] = weight * windows[i][k].beta;
          planes[i][2][k] = weight * windows[i][k].gamma;
          if constexpr (kBoth) planes[i][3][k] = weight * windows[i][k].gamma_y;
          spoiled |= is_nan(windows[i][k].error);
        }
      // What is NaN has the weight 0, and is rare.
      if (__any_sync(kWholeWarp, spoiled))
#pragma unroll
        for (int i = 0; i < kSources; ++i)
#pragma unroll
          for (int j = 0; j < kPlanes; ++j)
#pragma unroll
            for (int k = 0; k < 2; ++k)
              if (weights[i][k] == 0) planes[i][j][k] = 0;
    }
    T sums[kSources][kPlanes][2];
#pragma unroll
    for (int i = 0; i < kSources; ++i)
#pragma unroll
      for (int j = 0; j < kPlanes; ++j) {
        T here[2];
        Line<T>(planes[i][j]).sums(here);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          sums[i][j][k] = two_before[i][j][k] + here[k];
          two_before[i][j][k] = before[i][j][k] + here[k], before[i][j][k] = here[k];
        }
      }
    if (r > max(pair.top, 1)) finish(r - 1, r, sums);
  }
}

// Shared memory that bwd_strips takes.
template <typename T, bool kUsual> constexpr size_t bwd_bytes(int sources, bool both) {
  const int threads = 32 * kChannels * (kUsual ? 1 : sources);
  return (2 * 32 * kChannels * sources + (both ? threads : 0)) * sizeof(Two<T>) + KeptRows<T, kUsual>::bytes(threads);
}
// The smallest of the GPUs from 8.0 on have 99 KiB for a block.
static_assert(bwd_bytes<double, false>(kMaxGroups<double, false>, true) <= 99 * 1024);
static_assert(bwd_bytes<float, false>(kMaxGroups<float, false>, true) <= 99 * 1024);

template <int max_groups, typename Kernel, typename... Arguments>
void launch(Kernel kernel, const char* name, int64_t blocks, int groups, size_t bytes, const Where& where, Arguments... arguments) {
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

template <typename T, typename image_t>
Images<T, image_t> make_images(
    const Tensor& reference, const Tensor& warped, const Tensor& sources, const Tensor& valid,
    const PhotometricWeights<T>& weights) {
  return {reference.as<image_t>(), warped.as<image_t>(), sources.as<image_t>(), valid.as<bool>(), weights,
          Strips::of(reference.size[0], int(reference.size[2]), int(reference.size[3]), kStripRows), int(warped.size[1])};
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
    const size_t bytes = 2 * 2 * images.count * kChannels * 32 * sizeof(Two<T>);
    with_kind(
        images,
        [&](auto usual, auto luminance) {
          launch<kMaxGroups<T, usual>>(
              fwd_strips<T, image_t, usual, luminance>, "photometric_error_fwd", images.strips.blocks(),
              usual ? 1 : images.count, bytes, where, images, error.as<T>(), auto_mask.as<bool>());
        },
        error.as<T>(), auto_mask.as<bool>());
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
    const auto run = [&](auto usual, auto luminance, auto both) {
      launch<kMaxGroups<T, usual>>(
          bwd_strips<T, image_t, usual, luminance, both>, "photometric_error_bwd", images.strips.blocks(),
          usual ? 1 : images.count, bwd_bytes<T, usual>(images.count, both), where, images, grad_error.as<T>(),
          grad_warped.as<image_t>(), grad_reference.as<image_t>());
    };
    if (need_reference)
      with_kind(images, [&](auto, auto luminance) { run(std::false_type{}, luminance, std::true_type{}); });
    else
      with_kind(
          images, [&](auto usual, auto luminance) { run(usual, luminance, std::false_type{}); }, grad_error.as<T>(),
          grad_warped.as<image_t>());
  });
}

}  // namespace mcd::MCD_TARGET
