#include <cstring>

#include "../common/dispatch.h"
#include "../common/for_each.h"
#include "../operators.h"
#include "tile.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kTileHeight = 48, kTileWidth = 172;

// Images of any storage type. A switch in every row costs nothing, all of the code for each type minutes of compiling.
template <typename T> struct Rows {
  using V = Pack<T>;
  void* data;
  Dtype dtype;

  // `columns` values from the `at`-th on.
  MCD_HD void read(int64_t at, int columns, T* to) const {
    with_type([&](const auto* image) {
      each(columns, [&](int j, int count) { store(to + j, load<V>(image + at + j, count), count); });
    });
  }
  MCD_HD void write(int64_t at, int columns, const T* from) const {
    with_type([&](auto* image) {
      each(columns, [&](int j, int count) { store(image + at + j, load<V>(from + j, count), count); });
    });
  }

 private:
  template <typename F> static MCD_HD void each(int columns, const F& f) {
    for (int j = 0; j < columns; j += kLanes<V>) f(j, min(kLanes<V>, columns - j));
  }
  template <typename F> MCD_HD void with_type(const F& f) const {
    if constexpr (sizeof(T) == 4) {
      if (dtype == Dtype::bfloat16) return f(static_cast<bfloat16*>(data));
      if (dtype == Dtype::float16) return f(static_cast<float16*>(data));
    }
    f(static_cast<T*>(data));
  }
};
template <typename T> Rows<T> rows_of(const Tensor& images) { return {images.data, images.dtype}; }

template <typename T> struct Images {
  Rows<T> reference, warped, sources;  // [B, 3, H, W], [B, S, 3, H, W] twice
  const bool* valid;                   // [B, S, H, W] or null
  PhotometricWeights<T> weights;
  Tiling tiling;
  int64_t batch;
  int sources_count, height, width;

  MCD_HD int64_t pixels() const { return int64_t(height) * width; }

  template <bool kBoth> MCD_HD void load_reference(const PhotometricTile<T, kBoth>& errors, int64_t b) const {
    const Tile& tile = errors.tile;
    for (int y = tile.first_row(); y < tile.first_row() + tile.rows(); ++y)
      for (int c = 0; c < 3; ++c)
        reference.read(
            ((b * 3 + c) * height + y) * width + tile.first_column(), tile.columns(), errors.reference_row(y, c));
    errors.find_statistics();
  }
  template <bool kBoth>
  MCD_HD void load_images(const PhotometricTile<T, kBoth>& errors, const Rows<T>& from, int64_t b, int y) const {
    const Tile& tile = errors.tile;
    for (int64_t i = 0; i < sources_count; ++i)
      for (int c = 0; c < 3; ++c)
        from.read(
            (((b * sources_count + i) * 3 + c) * height + y) * width + tile.first_column(), tile.columns(),
            errors.image_row(i, y, c));
  }
  template <bool kBoth> MCD_HD void load_warped(const PhotometricTile<T, kBoth>& errors, int64_t b, int y) const {
    load_images(errors, warped, b, y);
    for (int64_t i = 0; valid && i < sources_count; ++i) {
      T* usable = errors.usable_row(i, y);
      const bool* in = valid + ((b * sources_count + i) * height + y) * width + errors.tile.first_column();
      for (int j = 0; j < errors.tile.columns(); ++j) usable[j] = in[j] ? T(1) : T(0);
    }
  }
};

template <typename T> struct FwdTile {
  Images<T> images;
  T* error;         // [B, H, W]
  bool* auto_mask;  // [B, H, W]

  MCD_HD void operator()(int64_t number) const {
    const int64_t b = number / images.tiling.count();
    const Tile tile = images.tiling.tile(int(number % images.tiling.count()));
    Scratch<T> scratch(
        tile.columns(), PhotometricTile<T>::rows_needed(tile, images.sources_count) + tile.rows());
    const PhotometricTile<T> errors(tile, images.weights, images.sources_count, scratch);
    T* identity = scratch.take(tile.rows());
    const auto identity_row = [&](int q) { return identity + (q - tile.first_row()) * errors.stride; };
    images.load_reference(errors, b);
    errors.template walk<false>(
        true, [&](int y) { images.load_images(errors, images.sources, b, y); },
        [&](int q) { std::memcpy(identity_row(q), errors.least, errors.count * sizeof(T)); }, [](int) {});
    errors.template walk<false>(
        !images.valid, [&](int y) { images.load_warped(errors, b, y); },
        [&](int q) {
          if (q < tile.top || q >= tile.bottom) return;
          const int from = tile.first_column();
          T* out = error + (b * images.height + q) * images.width + from;
          bool* mask = auto_mask + (b * images.height + q) * images.width + from;
          const T* bar = identity_row(q);
          for (int j = tile.left - from; j < tile.right - from; ++j) {
            out[j] = errors.any[j] != 0 ? errors.least[j] : T(0);
            mask[j] = (errors.least[j] < bar[j]) & (errors.any[j] != 0);
          }
        },
        [](int) {});
  }
};

template <typename T, bool kBoth> struct BwdTile {
  using V = Pack<T>;

  Images<T> images;
  const T* grad_error;     // [B, H, W]
  Rows<T> grad_warped;     // [B, S, 3, H, W]
  Rows<T> grad_reference;  // [B, 3, H, W] with kBoth

  MCD_HD void operator()(int64_t number) const {
    const int64_t b = number / images.tiling.count();
    const Tile tile = images.tiling.tile(int(number % images.tiling.count()));
    Scratch<T> scratch(tile.columns(), PhotometricTile<T, kBoth>::rows_needed(tile, images.sources_count) + 7);
    const PhotometricTile<T, kBoth> errors(tile, images.weights, images.sources_count, scratch);
    T *upstream = scratch.take(1), *grads = scratch.take(6);
    const int from = tile.first_column(), begin = tile.left - from, columns = tile.right - tile.left;
    images.load_reference(errors, b);

    const auto choose = [&](int q) {
      const T* in = grad_error + (b * images.height + q) * images.width + from;
      std::memcpy(upstream, in, tile.columns() * sizeof(T));
      for (int j = 0; j < errors.count; j += kLanes<V>) {
        const V chosen = get<V>(errors.chosen + j);
        const Mask<V> counts = (get<V>(errors.any + j) != 0) & (get<V>(errors.least + j) == get<V>(errors.least + j));
        const V grad = select<V>(counts, get<V>(upstream + j), V{});
        for (int i = 0; i < images.sources_count; ++i)
          put<V>(errors.share_row(i, q) + j, select<V>(chosen == T(i), grad, V{}));
      }
    };
    const auto finish = [&](int p) {
      const int64_t at = int64_t(p) * images.width + tile.left;
      for (int64_t i = 0; i < images.sources_count; ++i) {
        errors.find_gradients(int(i), p, [&](int j, const V* grad) {
          for (int c = 0; c < 3; ++c) put<V>(grads + c * errors.stride + j, grad[c]);
          if constexpr (kBoth)
            for (int c = 3; c < 6; ++c) {
              T* total = grads + c * errors.stride + j;
              put<V>(total, i == 0 ? grad[c] : get<V>(total) + grad[c]);
            }
        });
        for (int c = 0; c < 3; ++c)
          grad_warped.write(
              ((b * images.sources_count + i) * 3 + c) * images.pixels() + at, columns,
              grads + c * errors.stride + begin);
      }
      if constexpr (kBoth)
        for (int c = 0; c < 3; ++c)
          grad_reference.write((b * 3 + c) * images.pixels() + at, columns, grads + (3 + c) * errors.stride + begin);
    };
    errors.template walk<true>(!images.valid, [&](int y) { images.load_warped(errors, b, y); }, choose, finish);
  }
};

template <typename T>
Images<T> make_images(
    const Tensor& reference, const Tensor& warped, const Tensor& sources, const Tensor& valid,
    const PhotometricWeights<T>& weights) {
  const int height = int(reference.size[2]), width = int(reference.size[3]);
  return {rows_of<T>(reference), rows_of<T>(warped), rows_of<T>(sources), valid.as<bool>(), weights,
          Tiling::of(height, width, kTileHeight, kTileWidth), reference.size[0], int(warped.size[1]), height, width};
}

}  // namespace

void photometric_error_fwd(
    const Tensor& reference, const Tensor& warped, const Tensor& sources, const Tensor& valid, double ssim_weight,
    double l1_weight, double c1, double c2, const Tensor& error, const Tensor& auto_mask, const Where& where) {
  dispatch(error.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const auto images =
        make_images<T>(reference, warped, sources, valid, photometric_weights<T>(ssim_weight, l1_weight, c1, c2));
    for_each_cpu(
        images.batch * images.tiling.count(), where.threads,
        FwdTile<T>{images, error.as<T>(), auto_mask.as<bool>()});
  });
}

void photometric_error_bwd(
    const Tensor& grad_error, const Tensor& reference, const Tensor& warped, const Tensor& valid, double ssim_weight,
    double l1_weight, double c1, double c2, bool need_reference, const Tensor& grad_warped,
    const Tensor& grad_reference, const Where& where) {
  dispatch(grad_error.dtype, [&](auto scalar) {
    using T = decltype(scalar);
    const auto images =
        make_images<T>(reference, warped, Tensor{}, valid, photometric_weights<T>(ssim_weight, l1_weight, c1, c2));
    const int64_t tiles = images.batch * images.tiling.count();
    const T* upstream = grad_error.as<T>();
    const auto to_warped = rows_of<T>(grad_warped), to_reference = rows_of<T>(grad_reference);
    if (need_reference)
      for_each_cpu(tiles, where.threads, BwdTile<T, true>{images, upstream, to_warped, to_reference});
    else
      for_each_cpu(tiles, where.threads, BwdTile<T, false>{images, upstream, to_warped, to_reference});
  });
}

}  // namespace mcd::MCD_TARGET
