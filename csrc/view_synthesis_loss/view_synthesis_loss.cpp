#include <memory>
#include <vector>

#include "../common/for_each.h"
#include "../operators.h"
#include "tile.h"

namespace mcd::MCD_TARGET {
namespace {

// A tile's rows are to stay in the second-level cache, and what it does twice at its edges is to be little.
constexpr int kTileHeight = 48, kTileWidth = 172;

template <typename T, typename image_t> struct PackRow {
  const image_t* images;  // [images, 3, H, W]
  PackedImages<T> packed;

  MCD_HD void operator()(int64_t row) const {
    const int height = packed.height, width = packed.width;
    const int64_t image = row / (height + 1), y = min<int64_t>(row % (height + 1), height - 1);
    const int64_t plane = int64_t(height) * width;
    const image_t* in = images + image * 3 * plane + y * width;
    T* out = packed.data + row * packed.row_size();
#pragma omp simd
    for (int x = 0; x < width; ++x) {
      out[4 * x] = load<T>(in + x, 1);
      out[4 * x + 1] = load<T>(in + plane + x, 1);
      out[4 * x + 2] = load<T>(in + 2 * plane + x, 1);
      out[4 * x + 3] = 0;
    }
    for (int k = 0; k < 4; ++k) out[4 * width + k] = out[4 * width - 4 + k];
  }
};

template <typename T, typename image_t> struct ConvertRow {
  const image_t* in;
  T* out;
  int width;

  MCD_HD void operator()(int64_t row) const {
    for (int x = 0; x < width; x += kLanes<Pack<T>>) {
      const int count = min(width - x, kLanes<Pack<T>>);
      store(out + row * width + x, load<Pack<T>>(in + row * width + x, count), count);
    }
  }
};

// What the tiles leave behind, each its own part.
template <typename T> struct TileResults {
  Tiling tiling;
  double* sums;              // [B · tiles, scales, 2 + S · kCameraSums]
  T* small_grads;            // [B · tiles, small_size]
  int64_t slot[kMaxScales];  // where a scale's region begins there
  int64_t small_size;

  MCD_HD double* sums_of(const ViewSynthesisParams<T>& p, int64_t tile, int s) const {
    return sums + (tile * p.scale_count + s) * (2 + p.sources * kCameraSums);
  }
  MCD_HD T* small_grad_of(int64_t tile, int s) const { return small_grads + tile * small_size + slot[s]; }
};

template <typename T> struct RunTile {
  ViewSynthesisParams<T> p;
  TileResults<T> results;
  PackedImages<T> packed;  // the sources of samples [first, …)
  const T* reference;      // [B, 3, H, W] from sample `first`
  int64_t first;

  MCD_HD void operator()(int64_t task) const {
    const int64_t local = task / results.tiling.count(), number = first * results.tiling.count() + task;
    const Tile tile = results.tiling.tile(int(task % results.tiling.count()));
    Scratch<T> scratch(tile.columns(), LossTile<T>::rows_needed(p, tile));
    Scratch<int32_t> integers(tile.columns(), 3);
    const T* sources = packed.data + local * p.sources * packed.image_size();
    LossTile<T> loss(
        p, tile, first + local, reference + local * 3 * p.pixels(), sources, packed, scratch, integers);
    loss.find_identity();

    const std::unique_ptr<Camera<T>[]> cameras(new Camera<T>[p.sources]);
    for (int i = 0; i < p.sources; ++i) cameras[i] = p.camera(first + local, i);
    for (int s = 0; s < p.scale_count; ++s)
      loss.find_scale(cameras.get(), s, results.sums_of(p, number, s), results.small_grad_of(number, s));
  }
};

// Gradients of sample b's cameras and smaller depths, from those of its tiles.
template <typename T> struct FinishSample {
  ViewSynthesisParams<T> p;
  TileResults<T> results;
  const T* coefficients;  // [scales]
  T *grad_K, *grad_T;     // [B, 3, 3], [B, S, 4, 4]

  MCD_HD void operator()(int64_t b) const {
    for (int k = 0; k < 9; ++k) grad_K[9 * b + k] = 0;
    for (int i = 0; i < p.sources; ++i) {
      double grad_A[9] = {}, grad_b[3] = {};
      const double no_motion[9] = {};
      for (int s = 0; s < p.scale_count; ++s)
        for (int tile = 0; tile < results.tiling.count(); ++tile) {
          const double* sums = results.sums_of(p, b * results.tiling.count() + tile, s) + 2 + i * kCameraSums;
          for (int k = 0; k < 3; ++k) {
            grad_A[3 * k] += coefficients[s] * sums[kSumX + k];
            grad_A[3 * k + 1] += coefficients[s] * sums[kSumY + k];
            grad_A[3 * k + 2] += coefficients[s] * sums[kSumOne + k];
            grad_b[k] += coefficients[s] * sums[kSumB + k];
          }
        }
      const int64_t camera = b * p.sources + i;
      T to_K[9];
      camera_grad(
          load_pose(p.K + 9 * b, p.T_src_ref + 16 * camera), grad_A, grad_b, no_motion, to_K, grad_T + 16 * camera);
      for (int k = 0; k < 9; ++k) grad_K[9 * b + k] += to_K[k];
    }
    for (int s = 0; s < p.scale_count; ++s) {
      const DepthScale<T>& scale = p.scales[s];
      if (p.full(s)) continue;
      T* grad = scale.grad + b * scale.height * scale.width;
      for (int k = 0; k < scale.height * scale.width; ++k) grad[k] = 0;
      for (int tile = 0; tile < results.tiling.count(); ++tile) {
        const SmallRegion region = SmallRegion::of(results.tiling.tile(tile), scale);
        const T* part = results.small_grad_of(b * results.tiling.count() + tile, s);
        for (int row = 0; row < region.height; ++row)
          for (int column = 0; column < region.width; ++column)
            grad[(region.top + row) * scale.width + region.left + column] += part[row * region.width + column];
      }
    }
  }
};

// The gradient to motion: every scale's, times its coefficient.
template <typename T> struct FinishMotionRow {
  const T *parts, *coefficients;  // [scales, rows, W], [scales]
  T* grad_motion;                 // [rows, W]
  int64_t rows;
  int scale_count, width;

  MCD_HD void operator()(int64_t row) const {
    T* out = grad_motion + row * width;
    for (int s = 0; s < scale_count; ++s) {
      const T* in = parts + (s * rows + row) * width;
      const T coefficient = coefficients[s];
      const bool first = s == 0;
#pragma omp simd
      for (int x = 0; x < width; ++x) out[x] = (first ? T(0) : out[x]) + coefficient * in[x];
    }
  }
};

template <typename T> Tiling tiling_of(const ViewSynthesisParams<T>& p) {
  return Tiling::of(p.height, p.width, kTileHeight, kTileWidth);
}

// Tiles of every sample; the sources of a few samples at a time are packed before, while the cache holds them.
template <typename T, typename image_t>
void run_tiles(
    const ViewSynthesisParams<T>& p, const image_t* reference, const image_t* sources, const TileResults<T>& results,
    int threads) {
  const int64_t tiles = results.tiling.count();
  const int64_t group = max<int64_t>(1, min<int64_t>(p.batch, (threads + tiles - 1) / tiles));
  PackedImages<T> packed{nullptr, p.height, p.width};
  const std::unique_ptr<T[]> packed_data(new T[group * p.sources * packed.image_size() + 8]);
  packed.data = packed_data.get();
  std::unique_ptr<T[]> converted;
  if constexpr (!std::is_same_v<T, image_t>) converted.reset(new T[group * 3 * p.pixels()]);
  for (int64_t first = 0; first < p.batch; first += group) {
    const int64_t samples = min<int64_t>(group, p.batch - first);
    for_each_cpu(
        samples * p.sources * (p.height + 1), threads,
        PackRow<T, image_t>{sources + first * p.sources * 3 * p.pixels(), packed});
    const image_t* images = reference + first * 3 * p.pixels();
    const T* real = nullptr;
    if constexpr (std::is_same_v<T, image_t>) {
      real = images;
    } else {
      for_each_cpu(samples * 3 * p.height, threads, ConvertRow<T, image_t>{images, converted.get(), p.width});
      real = converted.get();
    }
    for_each_cpu(samples * tiles, threads, RunTile<T>{p, results, packed, real, first});
  }
}

}  // namespace

void view_synthesis_loss_fwd(
    const Tensor& reference, const Tensor& sources, const std::vector<Tensor>& depths, const Tensor& K,
    const Tensor& T_src_ref, const Tensor& motion, const std::vector<double>& scale_weights, bool mask_invalid,
    double ssim_weight, double l1_weight, double c1, double c2, bool need_grad, bool need_motion, const Tensor& loss,
    const Tensor& losses, const Tensor& auto_mask, const std::vector<Tensor>& grad_depths, const Tensor& grad_K,
    const Tensor& grad_T, const Tensor& grad_motion, const Tensor& coefficients, const Tensor& motion_parts,
    const Tensor&, const Tensor&, const Where& where) {
  dispatch(K.dtype, reference.dtype, [&](auto scalar, auto image) {
    using T = decltype(scalar);
    using image_t = decltype(image);
    const auto p = view_synthesis_params<T>(
        reference, sources, depths, K, T_src_ref, motion, mask_invalid, ssim_weight, l1_weight, c1, c2, need_grad,
        need_motion, auto_mask, grad_depths, motion_parts);
    TileResults<T> results{tiling_of(p), nullptr, nullptr, {}, 0};
    for (int s = 0; s < p.scale_count; ++s) {
      results.slot[s] = results.small_size;
      int64_t largest = 0;
      for (int tile = 0; tile < results.tiling.count() && !p.full(s); ++tile) {
        const SmallRegion region = SmallRegion::of(results.tiling.tile(tile), p.scales[s]);
        largest = max<int64_t>(largest, int64_t(region.height) * region.width);
      }
      results.small_size += largest;
    }
    const int64_t tiles = p.batch * results.tiling.count();
    const std::unique_ptr<double[]> sums(new double[tiles * p.scale_count * (2 + p.sources * kCameraSums)]());
    const std::unique_ptr<T[]> small_grads(new T[tiles * results.small_size]);
    results.sums = sums.get(), results.small_grads = small_grads.get();
    run_tiles(p, reference.as<image_t>(), sources.as<image_t>(), results, where.threads);

    double total = 0;
    for (int s = 0; s < p.scale_count; ++s) {
      double sum = 0, pixels = 1e-10 * double(max<int64_t>(p.batch * p.pixels(), 1));
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const double* part = results.sums_of(p, tile, s);
        sum += part[0], pixels += part[1];
      }
      losses.as<T>()[s] = T(sum / pixels);
      coefficients.as<T>()[s] = T(scale_weights[s] / pixels);
      total += scale_weights[s] * sum / pixels;
    }
    *loss.as<T>() = T(total);
    if (!need_grad) return;
    for_each_cpu(
        p.batch, where.threads,
        FinishSample<T>{p, results, coefficients.as<T>(), grad_K.as<T>(), grad_T.as<T>()});
    if (need_motion) {
      const int64_t rows = p.batch * p.sources * 2 * p.height;
      for_each_cpu(
          rows, where.threads,
          FinishMotionRow<T>{p.motion_grads, coefficients.as<T>(), grad_motion.as<T>(), rows, p.scale_count, p.width});
    }
  });
}

}  // namespace mcd::MCD_TARGET
