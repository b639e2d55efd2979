// Instance masks as ragged pixels (mcd/instances.py), and the values under them.
#pragma once

#include <cstdint>

#include "lanes.h"
#include "tensor.h"

namespace mcd::MCD_TARGET {

struct InstanceView {
  const int32_t* pixel;   // [P], ascending within an instance
  const int32_t* offset;  // [N + 1]
  const int32_t* frame;   // [N]
  int64_t count;          // N

  MCD_HD int64_t size(int64_t n) const { return offset[n + 1] - offset[n]; }

  // The instance of the i-th of all pixels.
  MCD_HD int64_t instance_of(int64_t i) const {
    int64_t low = 0, high = count - 1;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (offset[middle] <= i)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }

  // Where the pixels of instance n that are not below `first` begin, in [offset[n], offset[n + 1]].
  MCD_HD int64_t lower_bound(int64_t n, int64_t first) const {
    int64_t begin = offset[n], end = offset[n + 1];
    while (begin < end) {
      const int64_t middle = (begin + end) / 2;
      if (pixel[middle] < first)
        begin = middle + 1;
      else
        end = middle;
    }
    return begin;
  }
};

inline InstanceView view_instances(const Tensor& pixel, const Tensor& offset, const Tensor& frame) {
  return {pixel.as<int32_t>(), offset.as<int32_t>(), frame.as<int32_t>(), frame.size[0]};
}

// The lanes below `count`.
template <typename V> MCD_HD Mask<V> first_lanes(int count) { return as_mask<V>(iota<Int<V>>() < Int<V>{} + count); }

// The values of one instance: neighbours in memory, or found in an image through its pixels.
template <typename T> struct OwnValues {
  const T* values;
  template <typename V> MCD_HD V at(int64_t i, int count) const { return load<V>(values + i, count); }
};
template <typename T> struct ImageValues {
  const T* image;
  const int32_t* pixel;
  template <typename V> MCD_HD V at(int64_t i, int count) const {
    return gather<V>(image, load<Int<V>>(pixel + i, count));
  }
};

#ifndef __CUDACC__
// body(n) for each instance: every thread gets neighbours with about the same number of pixels. As for for_each_cpu, what
// `body` writes for n must depend on n alone.
template <typename Body> void for_each_instance_cpu(const InstanceView& instances, int threads, const Body& body) {
  const int64_t count = instances.count, pixels = instances.offset[count];
  const int64_t shares = threads < count ? threads : count;
  // The first instance of a share: the one before which that part of the pixels lies.
  const auto first = [&](int64_t share) {
    int64_t low = 0, high = share < shares ? count : 0;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (instances.offset[middle] < pixels * share / shares)
        low = middle + 1;
      else
        high = middle;
    }
    return share < shares ? low : count;
  };
#pragma omp parallel for num_threads(int(shares)) schedule(static, 1) if (shares > 1)
  for (int64_t share = 0; share < shares; ++share)
    for (int64_t n = first(share), end = first(share + 1); n < end; ++n) body(n);
}
#endif

}  // namespace mcd::MCD_TARGET
