// Sums by atomics whose result does not depend on their order: in 64-bit fixed point, scaled by the largest term.
//
//   clear_fixed_point(sum, size, terms, term_count, …);   finds the scale from what will be weighted and added
//   sum.add(index, value, sum.scale());                   |value| no larger than the largest of `terms`
//   read_fixed_point(sum, size, out, …);
//
// A term that is not finite makes the sum that it is added to NaN, and no other.
#pragma once

#include "for_each.h"
#include "lanes.h"

namespace mcd::MCD_TARGET {

struct FixedPoint {
  unsigned long long* sums;
  unsigned long long* largest;  // bits of the largest finite term's magnitude, as a double: they order like integers
  int64_t terms_per_sum;        // at most so many are added to one sum

  __device__ double scale() const {
    int exponent;
    frexp(__longlong_as_double(*largest), &exponent);
    return ldexp(1.0, min<int>(61 - (64 - __clzll(terms_per_sum)) - exponent, 1022));  // finite for the smallest, too
  }
  template <typename T> __device__ void add(int64_t index, T value, double scale) const {
    if (isfinite(value))
      atomicAdd(sums + index, static_cast<unsigned long long>(__double2ll_rn(double(value) * scale)));
    else
      atomicExch(sums + index, kSpoilt);
  }
  __device__ double read(int64_t index, double scale) const {
    const unsigned long long sum = sums[index];
    if ((sum + (1ull << 62)) >> 63) return nan<double>();
    return double(static_cast<long long>(sum)) / scale;
  }

 private:
  // Sums lie within about 2^61 of 0. What is added to a spoilt one leaves it as close to this, the farthest from 0.
  static constexpr unsigned long long kSpoilt = 1ull << 63;
};

template <typename Stored> struct LargestTerm {
  const Stored* terms;
  int64_t count;
  unsigned long long* largest;

  // Thread i of a whole number of warps; a warp sends one atomic.
  __device__ void operator()(int64_t i) const {
    using V = std::conditional_t<std::is_same_v<Stored, double>, double, float>;
    unsigned long long bits = 0;
    for (int64_t at = i * 8; at < (i + 1) * 8 && at < count; ++at) {
      const double size = fabs(double(load<V>(terms + at, 1)));
      const unsigned long long term = isfinite(size) ? __double_as_longlong(size) : 0;
      bits = bits < term ? term : bits;
    }
    for (int step = 16; step > 0; step /= 2) {
      const unsigned long long other = __shfl_xor_sync(0xffffffffu, bits, step);
      bits = bits < other ? other : bits;
    }
    if (threadIdx.x % 32 == 0) atomicMax(largest, bits);
  }
};

template <typename Stored> struct ReadFixedPoint {
  FixedPoint sum;
  Stored* out;

  __device__ void operator()(int64_t i) const {
    using V = std::conditional_t<std::is_same_v<Stored, double>, double, float>;
    store(out + i, V(sum.read(i, sum.scale())), 1);
  }
};

template <typename Stored>
void clear_fixed_point(
    const FixedPoint& sum, int64_t size, const Stored* terms, int64_t count, void* stream, const char* operator_name) {
  cudaMemsetAsync(sum.sums, 0, size * sizeof(*sum.sums), cudaStream_t(stream));
  cudaMemsetAsync(sum.largest, 0, sizeof(*sum.largest), cudaStream_t(stream));
  check_launch(operator_name);
  const int64_t threads = (count + 7) / 8;
  for_each_cuda((threads + 31) / 32 * 32, stream, operator_name, LargestTerm<Stored>{terms, count, sum.largest});
}

template <typename Stored>
void read_fixed_point(const FixedPoint& sum, int64_t size, Stored* out, void* stream, const char* operator_name) {
  for_each_cuda(size, stream, operator_name, ReadFixedPoint<Stored>{sum, out});
}

}  // namespace mcd::MCD_TARGET
