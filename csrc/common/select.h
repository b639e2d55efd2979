// Exact order statistics without sorting. Values become integers of the same order; the interval of integers that holds a
// rank is narrowed by histograms until few values are left in it. CUDA has the same in select.cuh, a block for each set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "lanes.h"

namespace mcd::MCD_TARGET {

template <typename V>
using Key = typename Lanes<V>::template of<std::conditional_t<sizeof(Scalar<V>) == 4, uint32_t, uint64_t>>;

// Unsigned integers in the order of the values; not for NaN. Zeros are equal and get one key: adding 0 makes -0 a 0.
template <typename V> MCD_HD Key<V> key_of(V value) {
  constexpr int top = 8 * sizeof(Scalar<V>) - 1;
  const auto bits = bit_cast<Key<V>>(V(value + Scalar<V>(0)));
  return bits ^ ((Key<V>{} - (bits >> top)) | (Scalar<Key<V>>(1) << top));
}
template <typename T> MCD_HD T value_of(Key<T> key) {
  constexpr int top = 8 * sizeof(T) - 1;
  return bit_cast<T>(key ^ (((key >> top) - 1) | (Key<T>(1) << top)));
}

// How far to shift so that [0, width] falls into at most 2^bits bins.
template <typename K> MCD_HD int bin_shift(K width, int bits) {
#ifdef __CUDA_ARCH__
  const int used = width == 0 ? 0 : 64 - __clzll(static_cast<long long>(width));
#else
  const int used = width == 0 ? 0 : 64 - __builtin_clzll(width);
#endif
  return used > bits ? used - bits : 0;
}

// The values of two neighbouring ranks.
template <typename T> struct Neighbours {
  T low, high;
};

// Where a quantile lies among `count` values.
struct QuantilePosition {
  int64_t rank;
  double fraction;  // of the way to the next rank

  MCD_HD QuantilePosition(double quantile, int64_t count, bool linear) {
    const double position = quantile * double(count - 1);
    rank = int64_t(position);
    fraction = linear ? position - double(rank) : 0.0;
  }
  template <typename T> MCD_HD T between(Neighbours<T> found) const {
    // Equal neighbours may be infinite, and what lies above a rank that is met exactly must not be read.
    if (fraction == 0 || found.low == found.high) return found.low;
    const T weight = T(fraction), step = found.high - found.low;
    return weight < T(0.5) ? found.low + weight * step : found.high - step * (1 - weight);
  }
};

// What one pass over a set of values finds.
template <typename V> struct Summary {
  using Double = typename Lanes<V>::template of<double>;
  Double sum{};
  V least = splat<V>(Scalar<V>(__builtin_inff())), largest = -splat<V>(Scalar<V>(__builtin_inff()));
  V poison{};  // NaN where one was among them

  MCD_HD void add(V value, Mask<V> taken) {
    sum += convert<Double>(select<V>(taken, value, V{}));
    least = select<V>(taken & (value < least), value, least);
    largest = select<V>(taken & (value > largest), value, largest);
    poison = select<V>(taken & is_nan(value), value, poison);
  }
};

#ifndef __CUDACC__
template <typename V> struct SummaryOfLanes {
  double sum;
  Scalar<V> least, largest;
  bool poisoned = false;

  MCD_HD explicit SummaryOfLanes(const Summary<V>& lanes)
      : sum(mcd::MCD_TARGET::sum(lanes.sum)), least(lanes.least[0]), largest(lanes.largest[0]) {
    for (int i = 0; i < kLanes<V>; ++i) {
      least = min(least, lanes.least[i]);
      largest = max(largest, lanes.largest[i]);
      poisoned |= is_nan(lanes.poison[i]);
    }
  }
};

template <typename M> MCD_HD bool any(M mask) {
  const auto words = bit_cast<typename PackOf<uint64_t, sizeof(M)>::type>(mask);
  uint64_t found = 0;
  for (size_t i = 0; i < sizeof(M) / 8; ++i) found |= words[i];
  return found != 0;
}

// Ranks of the values that `read(i, count, &taken)` -> V takes, i in [0, size). They lie in [least, largest], none is NaN.
template <typename V, typename Read> class Selection {
  using T = Scalar<V>;
  using K = Key<T>;

 public:
  MCD_HD Selection(const Read& read, int64_t size, int64_t taken, T least, T largest)
      : read_(read), size_(size), taken_(taken), lowest_(key_of(least)), width_(key_of(largest) - key_of(least)) {}

  // The values of `rank` < taken and, if `with_next`, of the rank above it where there is one.
  MCD_HD Neighbours<T> find(int64_t rank, bool with_next) {
    K low = lowest_, width = width_;
    int64_t below = 0, inside = taken_;
    while (inside > kFew && width > 0) {
      const int shift = bin_shift(width, kBits);
      const bool first_round = inside == taken_;
      if (!first_round || !has_first_round_) count(low, width, shift);
      has_first_round_ = first_round;
      int bin = 0;
      while (below + bins_[bin] <= rank) below += bins_[bin++];
      inside = bins_[bin];
      const K start = K(bin) << shift;
      low += start;
      width = min<K>(width - start, (K(1) << shift) - 1);
    }
    const int64_t end = below + inside;
    with_next = with_next && rank + 1 < taken_;
    Neighbours<T> found{value_of<T>(low), value_of<T>(low)};
    if (width > 0) {
      K few[kFew];
      const int count = collect(low, width, few);
      found.low = value_of<T>(of_rank(few, count, int(rank - below)));
      if (with_next && rank + 1 < end) found.high = value_of<T>(of_rank(few, count, int(rank + 1 - below)));
    }
    if (with_next && rank + 1 == end) found.high = value_of<T>(least_above(low + width));
    return found;
  }

 private:
  static constexpr int kBits = 10, kBins = 1 << kBits, kCopies = 4, kFew = 256;
  static constexpr int kStride = kBins + kLanes<V>;  // what is not in the interval is counted behind the bins

  // Neighbouring values tend to fall into one bin; copies keep an increment from waiting for the one before.
  MCD_HD void count(K low, K width, int shift) {
    for (int& bin : bins_) bin = 0;
    for (int64_t i = 0; i < size_; i += kLanes<V>) {
      Mask<V> taken;
      const auto key = key_of(read(i, &taken)) - low;
      const auto outside = iota<Key<V>>() + K(kBins);
      const auto bin = convert<Int<V>>(select<Key<V>>(taken & (key <= width), key >> shift, outside));
      for (int lane = 0; lane < kLanes<V>; ++lane) ++bins_[lane % kCopies * kStride + bin[lane]];
    }
    for (int copy = 1; copy < kCopies; ++copy)
      for (int bin = 0; bin < kBins; ++bin) bins_[bin] += bins_[copy * kStride + bin];
  }

  MCD_HD int collect(K low, K width, K* few) const {
    int count = 0;
    for (int64_t i = 0; i < size_; i += kLanes<V>) {
      Mask<V> taken;
      const auto key = key_of(read(i, &taken));
      const auto inside = taken & (key - low <= width);
      if (!any(inside)) continue;
      for (int lane = 0; lane < kLanes<V>; ++lane)
        if (inside[lane]) few[count++] = key[lane];
    }
    return count;
  }

  static MCD_HD K of_rank(const K* few, int count, int rank) {
    for (int i = 0; i < count; ++i) {
      int less = 0, equal = 0;
      for (int j = 0; j < count; ++j) less += few[j] < few[i], equal += few[j] == few[i];
      if (less <= rank && rank < less + equal) return few[i];
    }
    return 0;
  }

  MCD_HD K least_above(K limit) const {
    auto least = Key<V>{} - 1;
    for (int64_t i = 0; i < size_; i += kLanes<V>) {
      Mask<V> taken;
      const auto key = key_of(read(i, &taken));
      least = select<Key<V>>(taken & (key > limit) & (key < least), key, least);
    }
    K result = least[0];
    for (int lane = 1; lane < kLanes<V>; ++lane) result = min<K>(result, least[lane]);
    return result;
  }

  MCD_HD V read(int64_t i, Mask<V>* taken) const { return read_(i, int(min<int64_t>(kLanes<V>, size_ - i)), taken); }

  const Read& read_;
  int64_t size_, taken_;
  K lowest_, width_;
  bool has_first_round_ = false;
  int bins_[kCopies * kStride];
};
#endif

}  // namespace mcd::MCD_TARGET
