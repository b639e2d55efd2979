#include "../common/dispatch.h"
#include "../operators.h"
#include "errors.cuh"

namespace mcd::MCD_TARGET {
namespace {

template <typename T, typename image_t, bool kUsual, bool kLuminance, bool kBoth>
__global__ void __launch_bounds__(kMaxThreads<T, kUsual>, kBlocks<T, kUsual, 5>)
    bwd_strips(Images<T, image_t> images, const T* grad_error, image_t* grad_warped, image_t* grad_reference) {
  extern __shared__ double shared[];
  constexpr int kSources = kGroup<kUsual>, kPlanes = kBoth ? 4 : 3;  // alpha, beta, gamma, gamma_y
  const int height = images.strips.height, width = images.strips.width, sources = kUsual ? kUsualSources : images.count;
  const int lane = int(threadIdx.x % 32), warp = int(threadIdx.x / 32);
  const int channel = warp % kChannels, first = kUsual ? 0 : warp / kChannels;
  const PairOfColumns pair(images.strips, blockIdx.x);
  const int second = kUsual || pair.x + 1 < width ? 1 : 0;
  auto* parts = reinterpret_cast<Two<T>*>(shared) + lane;  // [2, sources, channels, 32] as in the forward pass
  const int row_of_parts = sources * kChannels * 32;
  // There, with kBoth: [groups, channels, 32], gradients to the reference.
  auto* of_groups = parts + 2 * row_of_parts;
  // Then the gradients of the first row until its own error is known, [sources, and with kBoth one more, threads].
  auto* of_first_row = of_groups - lane + (kBoth ? int(blockDim.x) : 0) + threadIdx.x;

  const int begin = max(pair.top - 1, 1);
  const int64_t pixels = images.pixels(), at_first = int64_t(begin - 1) * width + max(pair.x, 0);
  // Where the row lies that was read last.
  int64_t in_reference = (int64_t(pair.image) * kChannels + channel) * pixels + at_first;
  int64_t in_warped = ((int64_t(pair.image) * sources + first) * kChannels + channel) * pixels + at_first;
  const auto image_at = [&](int i) { return images.warped + in_warped + i * kChannels * pixels; };

  // Of the rows above, at hand and below: the reference, d = x - y, and gradients that lack windows of rows to come.
  T y_above[2], y_here[2], y_below[2], d_above[kSources][2], d_here[kSources][2], d_below[kSources][2];
  T y_next[2], next[kSources][2];
  T grad_above[kSources][2] = {}, grad_here[kSources][2] = {}, grad_below[kSources][2] = {};
  T to_y_above[2] = {}, to_y_here[2] = {}, to_y_below[2] = {};
  const auto load_row = [&] {
    load_pair<kUsual>(y_next, images.reference + in_reference, second);
#pragma unroll
    for (int i = 0; i < kSources; ++i) load_pair<kUsual>(next[i], image_at(i), second);
  };
  // Takes the row that was read as the one below.
  const auto take = [&] {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      y_below[k] = y_next[k];
#pragma unroll
      for (int i = 0; i < kSources; ++i) d_below[i][k] = next[i][k] - y_next[k];
    }
  };
  const auto shift = [&] {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      y_above[k] = y_here[k], y_here[k] = y_below[k];
      to_y_above[k] = to_y_here[k], to_y_here[k] = to_y_below[k];
#pragma unroll
      for (int i = 0; i < kSources; ++i) {
        d_above[i][k] = d_here[i][k], d_here[i][k] = d_below[i][k];
        grad_above[i][k] = grad_here[i][k], grad_here[i][k] = grad_below[i][k];
      }
    }
  };
  const auto move = [&](int step) { in_reference += step, in_warped += step; };
  load_row(), take(), shift(), move(width), load_row(), take(), shift(), move(width), load_row();

  int row = 0;
  const auto last_read = [&](int r) { return min(r + 2, height - 1); };  // the row that was read last

  // Writes the gradients at the pixels of row p, whose differences are those given.
  const auto write = [&](int p, int r, const T(&grads)[kSources][2], const T(&to_y)[2], const T(&d)[kSources][2]) {
    const int64_t away = int64_t(p - last_read(r)) * width;
    T total[2] = {to_y[0] + T(0), to_y[1] + T(0)};
#pragma unroll
    for (int i = 0; i < kSources; ++i) {
      T grad[2];
      // A pixel that is NaN has no part in any gradient; what is 0 is made +0.
      for (int k = 0; k < 2; ++k) grad[k] = is_nan(d[i][k]) ? T(0) : grads[i][k] + T(0);
      if (pair.own) store_pair<kUsual>(grad_warped + in_warped + i * kChannels * pixels + away, grad, second);
    }
    if constexpr (kBoth) {
      of_groups[warp * 32] = {total[0], total[1]};
      __syncthreads();
      if (first == 0 && pair.own) {
        total[0] = total[1] = 0;
#pragma unroll 1
        for (int g = 0; g < sources; ++g) {
          const Two<T> part = of_groups[(g * kChannels + channel) * 32];
          for (int k = 0; k < 2; ++k) total[k] += part.at[k];
        }
        store_pair<kUsual>(grad_reference + in_reference + away, total, second);
      }
      __syncthreads();
    }
  };
  // Adds what a pixel's own |d|, weighted by `share`, gives to its gradients.
  const auto add_sign = [&](T share, T d, T& grad, T& to_y) {
    const T l1 = images.weights.l1 * share, sign = d > 0 ? l1 : d < 0 ? -l1 : T(0);
    grad += sign, to_y -= sign;
  };

  // Adds the pixels of row q to the windows' weights, whose errors and differences are those given.
  const auto weigh = [&](int q, const T(&errors)[kSources][2], const T(&d)[kSources][2], T(&weights)[kSources][2],
                         T(&shares)[kSources][2]) {
    row = row_of_parts - row;
#pragma unroll
    for (int i = 0; i < kSources; ++i) {
      Two<T> part;
      for (int k = 0; k < 2; ++k)
        part.at[k] = images.weights.ssim * errors[i][k] + images.weights.l1 * abs<T>(d[i][k]);
      parts[row + ((first + i) * kChannels + channel) * 32] = part;
    }
    T upstream[2];
    const int64_t at = pair.image * pixels + int64_t(q) * width + max(pair.x, 0);
    load_pair<kUsual>(upstream, grad_error + at, second);
    const bool* usable = images.valid ? images.valid + int64_t(pair.image) * (sources - 1) * pixels + at : nullptr;
    __syncthreads();
    LeastOfPair<T> least;
    least.template find<kUsual>(parts + row, sources, usable, pixels, second);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int chosen = is_nan(least.error[k]) ? -1 : least.source[k] - first;
#pragma unroll
      for (int i = 0; i < kSources; ++i) {
        shares[i][k] = chosen == i ? upstream[k] : T(0);
        weights[i][k] += shares[i][k];
      }
    }
  };

  T of_last_row[kSources][2] = {};  // the shares of its pixels
#pragma unroll 1
  for (int r = begin; r <= pair.bottom; ++r) {
    if (r < height - 1) {
      take();
      move(r + 2 < height ? width : 0);  // the last row is not followed by another
      load_row();
      const ReferenceWindows<T> y(y_above, y_here, y_below, images.weights.c2);
      WindowsOfPair<T> windows[kSources];
      T errors[kSources][2], weights[kSources][2] = {}, shares[kSources][2];
      bool spoiled = false;
#pragma unroll
      for (int i = 0; i < kSources; ++i) {
        windows[i].template find<kLuminance>(d_above[i], d_here[i], d_below[i], y, images.weights);
        for (int k = 0; k < 2; ++k) errors[i][k] = windows[i].error[k], spoiled |= is_nan(errors[i][k]);
      }
      mirror(pair, width, errors);
      weigh(r, errors, d_here, weights, shares);
#pragma unroll
      for (int i = 0; i < kSources; ++i)
        for (int k = 0; k < 2; ++k) add_sign(shares[i][k], d_here[i][k], grad_here[i][k], to_y_here[k]);
      if (r == 2 || r == height - 3) {
        // The pixels of the border's rows are found in the windows of these.
#pragma unroll 1
        for (int q = 0; q < height; q += height - 1) {
          if (q == 0 ? r != 2 : r != height - 3) continue;
          const int64_t away = int64_t(q - last_read(r)) * width;
          T there[2], d[kSources][2];
          load_pair<kUsual>(there, images.reference + in_reference + away, second);
#pragma unroll
          for (int i = 0; i < kSources; ++i) {
            T here[2];
            load_pair<kUsual>(here, image_at(i) + away, second);
            for (int k = 0; k < 2; ++k) d[i][k] = here[k] - there[k];
          }
          weigh(q, errors, d, weights, shares);
          if (q > 0) {
            for (int i = 0; i < kSources; ++i)
              for (int k = 0; k < 2; ++k) of_last_row[i][k] = shares[i][k];
          } else if (pair.top == 0) {
            // Row 0 waited for its own error.
            T grads[kSources][2], to_y[2] = {};
            if constexpr (kBoth)
              for (int k = 0; k < 2; ++k) to_y[k] = of_first_row[kSources * int(blockDim.x)].at[k];
            for (int i = 0; i < kSources; ++i)
              for (int k = 0; k < 2; ++k) {
                grads[i][k] = of_first_row[i * int(blockDim.x)].at[k];
                add_sign(shares[i][k], d[i][k], grads[i][k], to_y[k]);
              }
            write(0, r, grads, to_y, d);
          }
        }
      }
      gather_mirrored(pair, width, weights);
      if (__any_sync(kWholeWarp, spoiled)) {
        stay_a_branch();
        // What is NaN has the weight 0, and is rare.
        for (int i = 0; i < kSources; ++i)
          for (int k = 0; k < 2; ++k)
            if (weights[i][k] == 0)
              windows[i].alpha[k] = windows[i].beta[k] = windows[i].gamma[k] = windows[i].gamma_y[k] = 0;
      }
#pragma unroll
      for (int i = 0; i < kSources; ++i) {
        T planes[kPlanes][2], sums[kPlanes][2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const T weight = weights[i][k] * (3 * images.weights.ssim);
          planes[0][k] = weight * windows[i].alpha[k], planes[1][k] = weight * windows[i].beta[k];
          planes[2][k] = weight * windows[i].gamma[k];
          if constexpr (kBoth) planes[3][k] = weight * windows[i].gamma_y[k];
        }
#pragma unroll
        for (int j = 0; j < kPlanes; ++j) Line<T>(planes[j]).sums(sums[j]);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const T a = sums[0][k], b = sums[1][k], g = sums[2][k];
          grad_above[i][k] = add_windows(grad_above[i][k], a, b, g, d_above[i][k], y_above[k]);
          grad_here[i][k] = add_windows(grad_here[i][k], a, b, g, d_here[i][k], y_here[k]);
          grad_below[i][k] = -g + a * d_below[i][k] - b * y_below[k];
          if constexpr (kBoth) {
            // A pixel that is NaN has no part.
            const auto add = [&](T d, T y, T& to) { to += is_nan(d) ? T(0) : -(a + b) * d - b * y - sums[3][k]; };
            if (i == 0) to_y_below[k] = 0;
            add(d_above[i][k], y_above[k], to_y_above[k]), add(d_here[i][k], y_here[k], to_y_here[k]);
            add(d_below[i][k], y_below[k], to_y_below[k]);
          }
        }
        if (r == height - 2)
          for (int k = 0; k < 2; ++k) add_sign(of_last_row[i][k], d_below[i][k], grad_below[i][k], to_y_below[k]);
      }
    }
    if (r == 1) {
      for (int i = 0; i < kSources; ++i) of_first_row[i * int(blockDim.x)] = {grad_above[i][0], grad_above[i][1]};
      if constexpr (kBoth) of_first_row[kSources * int(blockDim.x)] = {to_y_above[0], to_y_above[1]};
    }
    if (r > max(pair.top, 1)) write(r - 1, r, grad_above, to_y_above, d_above);
    shift();
  }
}

// Shared memory that bwd_strips takes.
template <typename T, bool kUsual> constexpr size_t bwd_bytes(int sources, bool both) {
  const int threads = 32 * kChannels * (kUsual ? 1 : sources);
  return (2 * 32 * kChannels * sources + threads * (kGroup<kUsual> + (both ? 2 : 0))) * sizeof(Two<T>);
}
// The smallest of the GPUs from 8.0 on have 99 KiB for a block.
static_assert(bwd_bytes<double, false>(kMaxGroups<double, false>, true) <= 99 * 1024);
static_assert(bwd_bytes<float, false>(kMaxGroups<float, false>, true) <= 99 * 1024);

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
          launch_strips<kMaxGroups<T, usual>>(
              error_strips<T, image_t, usual, luminance, true>, "photometric_error_fwd", images.strips.blocks(),
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
      launch_strips<kMaxGroups<T, usual>>(
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
