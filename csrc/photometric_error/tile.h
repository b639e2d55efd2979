// Photometric error on CPU: walks down the rows of a tile, with what the rows around need kept in ring buffers that stay
// in the cache. The images come row by row from whoever drives it, and are never stored whole.
#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#include "photometric_error.h"

namespace mcd::MCD_TARGET {

// Part of an image: pixels [top, bottom) × [left, right). Gradients there read windows one pixel beyond, which read
// images two pixels beyond.
struct Tile {
  int height, width;  // of the image
  int top, bottom, left, right;

  MCD_HD int first_row() const { return max(top - 2, 0); }
  MCD_HD int rows() const { return min(bottom + 2, height) - first_row(); }
  MCD_HD int first_window() const { return max(top - 1, 1); }
  MCD_HD int windows() const { return min(bottom + 1, height - 1) - first_window(); }
  MCD_HD int first_column() const { return max(left - 2, 0); }
  MCD_HD int columns() const { return min(right + 2, width) - first_column(); }
  MCD_HD bool at_left() const { return left == 0; }
  MCD_HD bool at_right() const { return right == width; }
};

// The same cut for any number of threads. Tiles are no smaller than 3/4 of the size asked for, unless the image is.
struct Tiling {
  int height, width, rows, columns;

  MCD_HD static Tiling of(int height, int width, int tile_height, int tile_width) {
    return {height, width, max(1, (height + tile_height / 2) / tile_height),
            max(1, (width + tile_width / 2) / tile_width)};
  }
  MCD_HD int count() const { return rows * columns; }
  MCD_HD Tile tile(int i) const {
    const int64_t row = i / columns, column = i % columns;
    return {height, width, int(row * height / rows), int((row + 1) * height / rows), int(column * width / columns),
            int((column + 1) * width / columns)};
  }
};

// Rows of scratch memory, each a whole number of the widest packs long, with room to read one element beyond each end.
template <typename T> class Scratch {
 public:
  static constexpr int kPadding = 16;

  MCD_HD Scratch(int columns, int rows) : stride_((columns + kPadding - 1) / kPadding * kPadding + 2 * kPadding) {
    data_ = static_cast<T*>(std::aligned_alloc(64, (size_t(rows) * stride_ * sizeof(T) + 63) / 64 * 64));
    if (!data_) throw std::bad_alloc();
  }
  Scratch(const Scratch&) = delete;
  MCD_HD ~Scratch() { std::free(data_); }

  MCD_HD int stride() const { return stride_; }
  // Columns in whole packs.
  MCD_HD int count() const { return stride_ - 2 * kPadding; }
  // The first of the next `rows` rows, which lie `stride` elements apart.
  MCD_HD T* take(int rows) {
    T* first = data_ + int64_t(taken_) * stride_ + kPadding;
    taken_ += rows;
    return first;
  }

 private:
  int stride_, taken_ = 0;
  T* data_;
};

template <typename V> MCD_HD V get(const Scalar<V>* row) { return load<V>(row, kLanes<V>); }
template <typename V> MCD_HD void put(Scalar<V>* row, V value) { store(row, value, kLanes<V>); }
// A row of packs where one of them lies: every lane, and its neighbours to the left and to the right.
template <typename V> struct Neighbours {
  V left, here, right;

  MCD_HD V sum() const { return left + here + right; }
  MCD_HD Steps<V> steps() const { return Steps<V>::of(left, here, right); }
};

// Loops run over `count` columns, which end after the tile's own: there they compute on rubbish that nobody reads.
// kBoth: gradients to the reference, too.
template <typename T, bool kBoth = false> struct PhotometricTile {
  using V = Pack<T>;
  static constexpr int kStep = kLanes<V>, kPlanes = kBoth ? 4 : 3;
  // A row lives until the fifth after it is made: rows 0 and H-1 find their SSIM two rows inside.
  static constexpr int kRing = 5, kWindowRing = 3;

  Tile tile;
  PhotometricWeights<T> weights;
  int sources, count;
  int64_t stride;
  T *reference, *statistics, *images, *usable, *share, *windows, *weights_of, *ssim, *least, *chosen, *any, *zeros, *ones;

  static MCD_HD int rows_needed(int sources) {
    return 3 * kRing + 18 + sources * (kRing * 5 + kWindowRing * (3 * kPlanes + 1) + 1) + 3 + 2;
  }
  MCD_HD PhotometricTile(const Tile& tile, const PhotometricWeights<T>& weights, int sources, Scratch<T>& scratch)
      : tile(tile), weights(weights), sources(sources), count(scratch.count()), stride(scratch.stride()) {
    reference = scratch.take(3 * kRing);
    statistics = scratch.take(18);
    images = scratch.take(3 * kRing * sources);
    usable = scratch.take(kRing * sources);
    share = scratch.take(kRing * sources);
    windows = scratch.take(3 * kPlanes * kWindowRing * sources);
    weights_of = scratch.take(kWindowRing * sources);
    ssim = scratch.take(sources);
    least = scratch.take(1), chosen = scratch.take(1), any = scratch.take(1);
    zeros = scratch.take(1), ones = scratch.take(1);
    for (int j = 0; j < count; ++j) zeros[j] = 0, ones[j] = 1;
  }

  // Channel c of the reference.
  MCD_HD T* reference_row(int y, int c) const { return reference + (y % kRing * 3 + c) * stride; }
  // Of the reference in the windows of the row at hand: mean (k = 0), spread (1), steps down their columns (2, 3) and
  // across the columns' means (4, 5).
  MCD_HD T* statistics_row(int c, int k) const { return statistics + (6 * c + k) * stride; }
  // Channel c of a source's image.
  MCD_HD T* image_row(int i, int y, int c) const { return images + ((i * kRing + y % kRing) * 3 + c) * stride; }
  // 1 where a source may be chosen, else 0.
  MCD_HD T* usable_row(int i, int y) const { return usable + (i * kRing + y % kRing) * stride; }
  // The part that a source's error at a pixel has in the loss.
  MCD_HD T* share_row(int i, int y) const { return share + (i * kRing + y % kRing) * stride; }
  // alpha, beta, gamma (k = 0, 1, 2) and with kBoth gamma_y of channel c of a source's windows.
  MCD_HD T* window_row(int i, int r, int c, int k) const {
    return windows + (((i * kWindowRing + r % kWindowRing) * 3 + c) * kPlanes + k) * stride;
  }
  // The part that a source's windows have in the loss.
  MCD_HD T* weight_row(int i, int r) const { return weights_of + (i * kWindowRing + r % kWindowRing) * stride; }
  MCD_HD T* ssim_row(int i) const { return ssim + i * stride; }

  // Calls use(j, around) for every pack of a row with n quantities and their neighbours, which make(j, values) finds in the
  // pack at j. They stay in registers.
  template <int n, typename Make, typename Use> MCD_HD void slide(const Make& make, const Use& use) const {
    V before[n] = {}, here[n], after[n];
    Neighbours<V> around[n];
    make(0, here);
    for (int j = 0; j < count; j += kStep) {
      for (int k = 0; k < n; ++k) after[k] = V{};
      if (j + kStep < count) make(j + kStep, after);
      for (int k = 0; k < n; ++k) {
        around[k] = {lane_before(before[k], here[k]), here[k], lane_after(here[k], after[k])};
        before[k] = here[k], here[k] = after[k];
      }
      use(j, around);
    }
  }

  MCD_HD Steps<V> steps_at(const T* before, int j) const { return {get<V>(before + j), get<V>(before + stride + j)}; }
  MCD_HD void keep_steps(T* before, int j, const Steps<V>& steps) const {
    put<V>(before + j, steps.before), put<V>(before + stride + j, steps.after);
  }

  MCD_HD void find_statistics(int r) const {
    for (int c = 0; c < 3; ++c) {
      const T *y0 = reference_row(r - 1, c), *y1 = reference_row(r, c), *y2 = reference_row(r + 1, c);
      T *means = statistics_row(c, 0), *spreads = statistics_row(c, 1);
      T *in_columns = statistics_row(c, 2), *across = statistics_row(c, 4);
      slide<2>(
          [&](int j, V* values) {
            const V here = get<V>(y1 + j);
            const auto steps = Steps<V>::of(get<V>(y0 + j), here, get<V>(y2 + j));
            keep_steps(in_columns, j, steps);
            values[0] = here + steps.to_mean(), values[1] = steps.spread();
          },
          [&](int j, const Neighbours<V>* around) {
            const auto steps = around[0].steps();
            keep_steps(across, j, steps);
            put<V>(means + j, around[0].here + steps.to_mean());
            put<V>(spreads + j, around[1].sum() + 3 * steps.spread());
          });
    }
  }

  // SSIM of a source in the windows of row r, and what its gradient needs.
  template <bool kLuminance, bool kGrad> MCD_HD void find_windows(int i, int r) const {
    T* error = ssim_row(i);
    for (int c = 0; c < 3; ++c) {
      const T *x0 = image_row(i, r - 1, c), *x1 = image_row(i, r, c), *x2 = image_row(i, r + 1, c);
      const T *y1 = reference_row(r, c), *mean_y = statistics_row(c, 0), *spread_y = statistics_row(c, 1);
      const T *in_columns = statistics_row(c, 2), *across = statistics_row(c, 4);
      T *alpha = window_row(i, r, c, 0), *beta = alpha + stride, *gamma = beta + stride;
      slide<3>(
          [&](int j, V* values) {
            const V here = get<V>(x1 + j);
            const auto of_x = Steps<V>::of(get<V>(x0 + j), here, get<V>(x2 + j)), of_d = of_x - steps_at(in_columns, j);
            values[0] = of_x.spread();
            values[1] = of_d.spread(), values[2] = here - get<V>(y1 + j) + of_d.to_mean();
          },
          [&](int j, const Neighbours<V>* around) {
            const auto of_d = around[2].steps(), of_x = steps_at(across, j) + of_d;
            const Moments<V> y{get<V>(mean_y + j), get<V>(spread_y + j)};
            const Moments<V> d{around[2].here + of_d.to_mean(), around[1].sum() + 3 * of_d.spread()};
            const Moments<V> x{y.mean + d.mean, around[0].sum() + 3 * of_x.spread()};
            const SsimWindow<V> window =
                ssim_window<kLuminance, V>(x.mean, y.mean, d, x.spread + y.spread + weights.c2, weights);
            put<V>(error + j, c == 0 ? window.error : get<V>(error + j) + window.error);
            if constexpr (kGrad) {
              // A window that is NaN will weigh nothing.
              const Mask<V> spoiled = is_nan(window.error);
              put<V>(alpha + j, select<V>(spoiled, V{}, window.alpha));
              put<V>(beta + j, select<V>(spoiled, V{}, window.beta));
              put<V>(gamma + j, select<V>(spoiled, V{}, window.gamma));
              if constexpr (kBoth) put<V>(gamma + stride + j, select<V>(spoiled, V{}, window.gamma_y));
            }
          });
    }
    const int last = tile.columns() - 1;
    if (tile.at_left()) error[0] = error[2];
    if (tile.at_right()) error[last] = error[last - 2];
  }

  // The least error over `number` sources from the `first` on at pixel row q, whose SSIM is that of the windows found last:
  // `least`, the source `chosen` for it, and 1 in `any` where there is one to choose.
  MCD_HD void find_least(int q, int first, int number, bool all_usable) const {
    const V infinity = splat<V>(T(__builtin_inff()));
    for (int i = first; i < first + number; ++i) {
      const T *x0 = image_row(i, q, 0), *x1 = image_row(i, q, 1), *x2 = image_row(i, q, 2);
      const T *y0 = reference_row(q, 0), *y1 = reference_row(q, 1), *y2 = reference_row(q, 2);
      const T *error = ssim_row(i), *ok = all_usable ? ones : usable_row(i, q);
      for (int j = 0; j < count; j += kStep) {
        const V l1 = abs<V>(get<V>(x0 + j) - get<V>(y0 + j)) + abs<V>(get<V>(x1 + j) - get<V>(y1 + j)) +
                     abs<V>(get<V>(x2 + j) - get<V>(y2 + j));
        const V usable = get<V>(ok + j);
        const V candidate = select<V>(usable != 0, get<V>(error + j) + weights.l1 * l1, infinity);
        if (i == first) {
          put<V>(least + j, candidate);
          put<V>(chosen + j, splat<V>(T(first)));
          put<V>(any + j, usable);
          continue;
        }
        const V before = get<V>(least + j);
        const Mask<V> take = (candidate < before) | is_nan(candidate);
        put<V>(least + j, select<V>(take, candidate, before));
        put<V>(chosen + j, select<V>(take, splat<V>(T(i)), get<V>(chosen + j)));
        put<V>(any + j, max<V>(usable, get<V>(any + j)));
      }
    }
  }

  // What the windows of row r weigh: the shares of the pixels that find their SSIM in them, those of their own row, of rows
  // mirrored into it (or zeros), and of mirrored columns.
  MCD_HD void weigh_windows(int i, int r, const T* from_top, const T* from_bottom) const {
    const int last = tile.columns() - 1;
    const T* own = share_row(i, r);
    T* weight = weight_row(i, r);
    for (int j = 0; j < count; j += kStep)
      put<V>(weight + j, get<V>(own + j) + get<V>(from_top + j) + get<V>(from_bottom + j));
    if (tile.at_left()) weight[2] += weight[0];
    if (tile.at_right()) weight[last - 2] += weight[last];
    if (tile.at_left()) weight[0] = 0;
    for (int j = last; tile.at_right() && j < count; ++j) weight[j] = 0;
  }

  // Calls use(c, j, grad) with the gradient of the loss to channel c of source i at pixels of row p; with kBoth grad[1] is
  // that to the reference.
  template <typename Use> MCD_HD void find_gradients(int i, int p, const Use& use) const {
    const T* share = share_row(i, p);
    for (int c = 0; c < 3; ++c) {
      const T *weight[3], *plane[3];
      int64_t step[3];
      for (int k = 0; k < 3; ++k) {
        const int r = p - 1 + k;
        const bool exists = r >= 1 && r <= tile.height - 2;
        weight[k] = exists ? weight_row(i, r) : zeros, plane[k] = exists ? window_row(i, r, c, 0) : zeros;
        step[k] = exists ? stride : 0;
      }
      const T *x = image_row(i, p, c), *y = reference_row(p, c);
      slide<kPlanes>(
          [&](int j, V* values) {
            const V above = get<V>(weight[0] + j), here = get<V>(weight[1] + j), below = get<V>(weight[2] + j);
            for (int k = 0; k < kPlanes; ++k)
              values[k] = above * get<V>(plane[0] + k * step[0] + j) + here * get<V>(plane[1] + k * step[1] + j) +
                          below * get<V>(plane[2] + k * step[2] + j);
          },
          [&](int j, const Neighbours<V>* around) {
            const V alpha = around[0].sum(), beta = around[1].sum(), gamma = around[2].sum();
            const V l1 = weights.l1 * get<V>(share + j), at_x = get<V>(x + j), at_y = get<V>(y + j), d = at_x - at_y;
            V grad[2];
            grad[0] = photometric_grad<V>(alpha, beta, gamma, l1, at_x, d);
            if constexpr (kBoth) grad[1] = photometric_grad<V>(alpha, beta, around[3].sum(), l1, at_y, -d);
            use(c, j, grad);
          });
    }
  }

  // Walks down the tile. `produce(y)` makes row y of the reference and of every source's image; `choose(q)` may find
  // the least errors of pixel row q, and with kGrad sets the shares; `finish(p)` may then find the gradients of row p.
  template <bool kGrad, typename Produce, typename Choose, typename Finish>
  MCD_HD void walk(const Produce& produce, const Choose& choose, const Finish& finish) const {
    const int height = tile.height, last_row = tile.first_row() + tile.rows() - 1;
    int next = tile.first_row(), finished = tile.top;
    for (int r = tile.first_window(); r < tile.first_window() + tile.windows(); ++r) {
      for (; next <= min(r + 2, last_row); ++next) produce(next);
      const bool from_top = r == 2 && tile.top == 0, from_bottom = r == height - 3 && tile.bottom == height;
      find_statistics(r);
      for (int i = 0; i < sources; ++i)
        if (weights.luminance)
          find_windows<true, kGrad>(i, r);
        else
          find_windows<false, kGrad>(i, r);
      const int rows[3] = {r, from_top ? 0 : -1, from_bottom ? height - 1 : -1};
      for (const int q : rows)
        if (q >= 0) choose(q);
      if constexpr (kGrad) {
        for (int i = 0; i < sources; ++i)
          weigh_windows(i, r, from_top ? share_row(i, 0) : zeros, from_bottom ? share_row(i, height - 1) : zeros);
        // Row 0 has a part in the windows of row 2.
        const int ready = r == height - 2 ? height : r < 2 ? 0 : r;
        for (; finished < min(ready, tile.bottom); ++finished) finish(finished);
      }
    }
  }
};

}  // namespace mcd::MCD_TARGET
