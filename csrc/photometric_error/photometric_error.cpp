#include <cstring>

#include "../common/dispatch.h"
#include "../common/for_each.h"
#include "../operators.h"
#include "tile.h"

namespace mcd::MCD_TARGET {
namespace {

// Whole rows as far as possible: they are read in long runs, and repeat nothing at their ends.
constexpr int kTileHeight = 48, kTileWidth = 516;

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
  // The same past the caches.
  MCD_HD void stream(int64_t at, int columns, const T* from) const {
    if (is_16_bit()) return write(at, columns, from);
    T* to = static_cast<T*>(data) + at;
    each(columns, [&](int j, int count) {
      if (is_whole_pack(to + j, count))
        mcd::MCD_TARGET::stream(to + j, get<V>(from + j));
      else
        store(to + j, load<V>(from + j, count), count);
    });
  }
  // Asks for values that will be read soon. Not through with_type(): GCC drops calls of functions that do nothing else.
  MCD_HD void prefetch(int64_t at, int columns) const {
    const int64_t size = is_16_bit() ? 2 : sizeof(T);
    const char* first = static_cast<const char*>(data) + at * size;
    for (int64_t i = 0; i < columns * size; i += 64) __builtin_prefetch(first + i, 0, 2);
  }

 private:
  MCD_HD bool is_16_bit() const { return dtype == Dtype::bfloat16 || dtype == Dtype::float16; }
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

  template <bool kBoth> MCD_HD void load_reference(const PhotometricTile<T, kBoth>& errors, int64_t b, int y) const {
    for (int c = 0; c < 3; ++c)
      reference.read(start(errors.tile, 3 * b + c, y), errors.tile.columns(), errors.reference_row(y, c));
  }
  // Of every source; they become the tile's sources from the `first` on.
  template <bool kBoth>
  MCD_HD void load_images(
      const PhotometricTile<T, kBoth>& errors, const Rows<T>& from, int first, int64_t b, int y) const {
    for (int i = 0; i < sources_count; ++i)
      for (int c = 0; c < 3; ++c) {
        const int64_t at = start(errors.tile, 3 * (b * sources_count + i) + c, y);
        from.read(at, errors.tile.columns(), errors.image_row(first + i, y, c));
        if (y + 1 < height) from.prefetch(at + width, errors.tile.columns());
      }
  }
  template <bool kBoth>
  MCD_HD void load_warped(const PhotometricTile<T, kBoth>& errors, int first, int64_t b, int y) const {
    load_images(errors, warped, first, b, y);
    for (int i = 0; valid && i < sources_count; ++i) {
      T* usable = errors.usable_row(first + i, y);
      const bool* in = valid + start(errors.tile, b * sources_count + i, y);
      for (int j = 0; j < errors.tile.columns(); ++j) usable[j] = in[j] ? T(1) : T(0);
    }
  }

 private:
  // Where the tile's part of row y of a plane begins.
  MCD_HD int64_t start(const Tile& tile, int64_t plane, int y) const {
    return plane * pixels() + int64_t(y) * width + tile.first_column();
  }
};

template <typename T> struct FwdTile {
  Images<T> images;
  T* error;         // [B, H, W]
  bool* auto_mask;  // [B, H, W]

  MCD_HD void operator()(int64_t number) const {
    const int64_t b = number / images.tiling.count();
    const Tile tile = images.tiling.tile(int(number % images.tiling.count()));
    const int sources = images.sources_count, from = tile.first_column();
    Scratch<T> scratch(tile.columns(), PhotometricTile<T>::rows_needed(2 * sources) + 1);
    // The sources as they are, then warped.
    const PhotometricTile<T> errors(tile, images.weights, 2 * sources, scratch);
    T* identity = scratch.take(1);
    const auto load = [&](int y) {
      images.load_reference(errors, b, y);
      images.load_images(errors, images.sources, 0, b, y);
      images.load_warped(errors, sources, b, y);
    };
    const auto choose = [&](int q) {
      if (q < tile.top || q >= tile.bottom) return;
      errors.find_least(q, 0, sources, true);
      std::memcpy(identity, errors.least, errors.count * sizeof(T));
      errors.find_least(q, sources, sources, !images.valid);
      T* out = error + (b * images.height + q) * images.width + from;
      bool* mask = auto_mask + (b * images.height + q) * images.width + from;
      for (int j = tile.left - from; j < tile.right - from; ++j) {
        out[j] = errors.any[j] != 0 ? errors.least[j] : T(0);
        mask[j] = (errors.least[j] < identity[j]) & (errors.any[j] != 0);
      }
    };
    errors.template walk<false>(load, choose, [](int) {});
  }
};

template <typename T, bool kBoth> struct BwdTile {
  using V = Pack<T>;

  Images<T> images;
  const T* grad_error;     // [B, H, W]
  Rows<T> grad_warped;     // [B, S, 3, H, W]
  Rows<T> grad_reference;  // [B, 3, H, W] with kBoth
  bool streams;            // whether grad_warped is large

  MCD_HD void operator()(int64_t number) const {
    const int64_t b = number / images.tiling.count();
    const Tile tile = images.tiling.tile(int(number % images.tiling.count()));
    Scratch<T> scratch(tile.columns(), PhotometricTile<T, kBoth>::rows_needed(images.sources_count) + 7);
    const PhotometricTile<T, kBoth> errors(tile, images.weights, images.sources_count, scratch);
    T *upstream = scratch.take(1), *grads = scratch.take(6);
    const int from = tile.first_column(), begin = tile.left - from, columns = tile.right - tile.left;

    const auto load = [&](int y) {
      images.load_reference(errors, b, y);
      images.load_warped(errors, 0, b, y);
    };
    const auto choose = [&](int q) {
      errors.find_least(q, 0, images.sources_count, !images.valid);
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
        errors.find_gradients(int(i), p, [&](int c, int j, const V* grad) {
          put<V>(grads + c * errors.stride + j, grad[0]);
          if constexpr (kBoth) {
            T* total = grads + (3 + c) * errors.stride + j;
            put<V>(total, i == 0 ? grad[1] : get<V>(total) + grad[1]);
          }
        });
        for (int c = 0; c < 3; ++c) {
          const int64_t to = ((b * images.sources_count + i) * 3 + c) * images.pixels() + at;
          const T* grad = grads + c * errors.stride + begin;
          if (streams)
            grad_warped.stream(to, columns, grad);
          else
            grad_warped.write(to, columns, grad);
        }
      }
      if constexpr (kBoth)
        for (int c = 0; c < 3; ++c)
          grad_reference.write((b * 3 + c) * images.pixels() + at, columns, grads + (3 + c) * errors.stride + begin);
    };
    errors.template walk<true>(load, choose, finish);
    if (streams) finish_streaming();
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
    const bool streams = images.batch * images.sources_count * 3 * images.pixels() * int64_t(sizeof(T)) >= kStreamedBytes;
    if (need_reference)
      for_each_cpu(tiles, where.threads, BwdTile<T, true>{images, upstream, to_warped, to_reference, streams});
    else
      for_each_cpu(tiles, where.threads, BwdTile<T, false>{images, upstream, to_warped, to_reference, streams});
  });
}

}  // namespace mcd::MCD_TARGET
