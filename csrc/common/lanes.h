// The number type of formulas. A formula is a template over V: a scalar on CUDA, a pack of scalars (a GCC vector, one pixel
// in each lane) on CPU. Written with select() in place of branches it compiles to the same arithmetic on both.
#pragma once

#include <type_traits>
#include <utility>

#include "host_device.h"

#if defined(__SSE2__) && !defined(__CUDACC__)
#include <immintrin.h>
#define MCD_X86
#ifdef __AVX512F__
#define MCD_AVX512
#endif
#endif

namespace mcd::MCD_TARGET {

// ---- types: Scalar<V>, Int<V> (int32 lanes), Mask<V> (what a comparison of V gives), kLanes<V>

template <typename T, int kBytes> struct PackOf {
  typedef T type __attribute__((vector_size(kBytes)));
};

template <typename V, bool is_scalar = std::is_arithmetic_v<V>> struct Lanes {
  using scalar = V;
  static constexpr int count = 1;
  template <typename T> using of = T;
};
template <typename V> struct Lanes<V, false> {
  using scalar = std::decay_t<decltype(std::declval<V>()[0])>;
  static constexpr int count = sizeof(V) / sizeof(scalar);
  template <typename T> using of = typename PackOf<T, count * sizeof(T)>::type;
};

// The widest pack that the processor computes with.
#if defined(__AVX512F__)
template <typename T> using Pack = typename PackOf<T, 64>::type;
#elif defined(__AVX2__)
template <typename T> using Pack = typename PackOf<T, 32>::type;
#else
template <typename T> using Pack = typename PackOf<T, 16>::type;
#endif

template <typename V> using Scalar = typename Lanes<V>::scalar;
template <typename V> using Int = typename Lanes<V>::template of<int32_t>;
template <typename V> using Mask = decltype(std::declval<V>() < std::declval<V>());
template <typename V> constexpr int kLanes = Lanes<V>::count;

// ---- arithmetic

template <typename V> MCD_HD V splat(Scalar<V> value) { return V{} + value; }
template <typename V> MCD_HD V select(Mask<V> mask, V a, V b) { return mask ? a : b; }
// Of numbers that compare as neither less nor greater, such as NaN, `a`.
template <typename V> MCD_HD V min(V a, V b) {
#ifdef MCD_AVX512
  // GCC makes a comparison and a choice of what follows.
  if constexpr (std::is_same_v<V, Pack<float>>) return _mm512_maskz_min_ps(0xffff, b, a);
#endif
  return select<V>(b < a, b, a);
}
template <typename V> MCD_HD V max(V a, V b) {
#ifdef MCD_AVX512
  if constexpr (std::is_same_v<V, Pack<float>>) return _mm512_maskz_max_ps(0xffff, b, a);
#endif
  return select<V>(a < b, b, a);
}
template <typename V> MCD_HD V abs(V a) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_floating_point_v<V>) return fabs(a);  // a part of the instruction that takes it
#endif
  if constexpr (kLanes<V> == 1) {
    return a < 0 ? -a : a;
  } else {
    using Bits = Mask<V>;
    return bit_cast<V>(bit_cast<Bits>(a) & ~(Scalar<Bits>(1) << (8 * sizeof(Scalar<V>) - 1)));
  }
}
// On CUDA within a unit of the last place; there a division takes ten instructions.
template <typename V> MCD_HD V reciprocal(V a) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_same_v<V, float>) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
    return result;
  }
#endif
  return 1 / a;
}
template <typename V> MCD_HD Mask<V> is_nan(V a) { return a != a; }
template <typename V> MCD_HD Mask<V> is_finite(V a) { return a - a == 0; }
template <typename V> MCD_HD V nan() { return splat<V>(Scalar<V>(__builtin_nanf(""))); }

// Lane-wise conversion, towards zero where it narrows.
template <typename To, typename V> MCD_HD To convert(V value) {
  if constexpr (kLanes<V> == 1)
    return To(value);
  else
    return __builtin_convertvector(value, To);
}
// A comparison of Int<V> as the mask of V, whose lanes may be wider.
template <typename V> MCD_HD Mask<V> as_mask(Mask<Int<V>> mask) {
  if constexpr (kLanes<V> == 1)
    return mask;
  else
    return __builtin_convertvector(mask, Mask<V>);
}
// 0, 1, 2, … in the lanes.
template <typename V> MCD_HD V iota() {
  V lanes{};
  if constexpr (kLanes<V> > 1)
    for (int i = 0; i < kLanes<V>; ++i) lanes[i] = Scalar<V>(i);
  return lanes;
}
// The sum of all lanes, in a fixed order.
template <typename V> MCD_HD Scalar<V> sum(V value) {
  if constexpr (kLanes<V> == 1) {
    return value;
  } else {
    Scalar<V> total = value[0];
    for (int i = 1; i < kLanes<V>; ++i) total += value[i];
    return total;
  }
}

// ---- storage types: 16-bit ones by bit operations, which vectorise everywhere

template <typename V, typename U> MCD_HD V from_bfloat16(U bits) { return bit_cast<V>(bits << 16); }
template <typename V, typename U> MCD_HD V from_float16(U bits) {
  const U magnitude = (bits & 0x7fff) << 13;
  const V scaled = bit_cast<V>(magnitude) * 0x1p112f;  // moves the exponent; subnormals come out right
  const U finite = bit_cast<U>(scaled), special = magnitude | 0x7f800000u;
  return bit_cast<V>(select<U>(magnitude >= (0x7c00u << 13), special, finite) | ((bits & 0x8000) << 16));
}
// To nearest, ties to even.
template <typename U, typename V> MCD_HD U to_bfloat16(V value) {
  const U bits = bit_cast<U>(value);
  return select<U>((bits & 0x7fffffff) > 0x7f800000u, U{} + 0x7fc0u, (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
template <typename U, typename V> MCD_HD U to_float16(V value) {
  const U bits = bit_cast<U>(value), magnitude = bits & 0x7fffffff;
  const U normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 moves a subnormal's bits into place and rounds them.
  const U subnormal = bit_cast<U>(bit_cast<V>(magnitude) + 0.5f) - 0x3f000000u;
  const U finite = select<U>(magnitude < (113u << 23), subnormal, normal);
  const U large = select<U>(magnitude > 0x7f800000u, U{} + 0x7e00u, U{} + 0x7c00u);
  return select<U>(magnitude >= 0x477ff000u, large, finite) | ((bits >> 16) & 0x8000);
}

// ---- memory. `count` < kLanes at the end of a row: further lanes are 0 on reading and dropped on writing.

template <typename T> MCD_HD T read_lanes(const void* from, int count) {
#ifdef __CUDACC__
  return *static_cast<const T*>(from);  // by its type: nvcc makes single bytes of a copy
#else
  T value;
  if (count >= kLanes<T>) {
    __builtin_memcpy(&value, from, sizeof(T));
  } else {
    T in_memory{};
    __builtin_memcpy(&in_memory, from, count * sizeof(Scalar<T>));
    value = in_memory;
  }
  return value;
#endif
}
template <typename T> MCD_HD void write_lanes(void* to, T value, int count) {
#ifdef __CUDACC__
  *static_cast<T*>(to) = value;
#else
  if (count >= kLanes<T>) {
    __builtin_memcpy(to, &value, sizeof(T));
  } else {
    const T in_memory = value;  // a copy, so that `value` itself may stay in a register
    __builtin_memcpy(to, &in_memory, count * sizeof(Scalar<T>));
  }
#endif
}

template <typename V, typename Stored> MCD_HD V load(const Stored* from, int count) {
  if constexpr (kLanes<V> == 1) {
    if constexpr (std::is_same_v<Stored, bfloat16>) return from_bfloat16<V>(uint32_t(from->bits));
    else if constexpr (std::is_same_v<Stored, float16>) return from_float16<V>(uint32_t(from->bits));
    else return V(*from);
  } else if constexpr (sizeof(Stored) == 2) {
    using Bits = typename Lanes<V>::template of<uint32_t>;
    const auto bits = convert<Bits>(read_lanes<typename Lanes<V>::template of<uint16_t>>(from, count));
    if constexpr (std::is_same_v<Stored, bfloat16>) return from_bfloat16<V>(bits);
    else return from_float16<V>(bits);
  } else {
    static_assert(std::is_same_v<Stored, Scalar<V>>, "a pack is loaded from its own scalars or 16-bit images");
    return read_lanes<V>(from, count);
  }
}
template <typename V, typename Stored> MCD_HD void store(Stored* to, V value, int count) {
  using Bits = typename Lanes<V>::template of<uint32_t>;
  using Short = typename Lanes<V>::template of<uint16_t>;
  if constexpr (std::is_same_v<Stored, bfloat16>) write_lanes(to, convert<Short>(to_bfloat16<Bits>(value)), count);
  else if constexpr (std::is_same_v<Stored, float16>) write_lanes(to, convert<Short>(to_float16<Bits>(value)), count);
  else write_lanes(to, value, count);
}

// Past the caches, to whole packs of memory: a large output is then not read before it is written. finish_streaming() makes
// sure that other threads see it.
template <typename V> MCD_HD void stream(Scalar<V>* to, V value) {
#ifdef MCD_X86
#ifdef MCD_AVX512
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bit_cast<__m512i>(value));
#endif
#ifdef __AVX2__
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bit_cast<__m256i>(value));
#endif
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(to), bit_cast<__m128i>(value));
#endif
  store(to, value, kLanes<V>);
}
MCD_HD void finish_streaming() {
#ifdef MCD_X86
  _mm_sfence();
#endif
}
template <typename T> MCD_HD bool is_whole_pack(const T* at, int count) {
  return count == kLanes<Pack<T>> && reinterpret_cast<uintptr_t>(at) % sizeof(Pack<T>) == 0;
}
// Outputs of a call from which on it is worth while: what is read next would not find them in a cache.
constexpr int64_t kStreamedBytes = 16 << 20;

template <typename V> MCD_HD void store_mask(bool* to, Mask<V> mask, int count) {
  if constexpr (kLanes<V> == 1)
    *to = mask;
  else
    write_lanes(to, convert<typename Lanes<V>::template of<uint8_t>>(mask & 1), count);
}
template <typename V> MCD_HD Mask<V> load_mask(const bool* from, int count) {
  if constexpr (kLanes<V> == 1)
    return *from;
  else
    return as_mask<V>(convert<Int<V>>(read_lanes<typename Lanes<V>::template of<uint8_t>>(from, count)) != 0);
}

// One index for each lane, in memory: there a gather finds each in one load, while taking them out of a register's lanes
// costs more than the gather itself.
template <typename V> struct Indices {
  int32_t at[kLanes<V>];

  MCD_HD explicit Indices(Int<V> index) { __builtin_memcpy(at, &index, sizeof(at)); }
  MCD_HD const int32_t* in_memory() const {
    const int32_t* address = at;
#ifndef __CUDACC__
    asm volatile("" : "+r"(address));  // else the compiler sees through the copy, or keeps all lanes in registers
#endif
    return address;
  }
};

// One stored value at each index.
template <typename V, typename Stored> MCD_HD V gather(const Stored* from, const Indices<V>& index) {
  if constexpr (kLanes<V> == 1) {
    return load<V>(from + index.at[0], 1);
  } else {
    V value{};
    const int32_t* at = index.in_memory();
    for (int i = 0; i < kLanes<V>; ++i) value[i] = load<Scalar<V>>(from + at[i], 1);
    return value;
  }
}
template <typename V, typename Stored> MCD_HD V gather(const Stored* from, Int<V> index) {
  return gather<V>(from, Indices<V>(index));
}

// Neighbours: from[index] and from[index + 1].
template <typename V> struct Pair {
  V left, right;
};
#ifndef __CUDACC__
template <typename Word> MCD_HD Word read_word(const void* from) {
  Word word;
  __builtin_memcpy(&word, from, sizeof(Word));
  return word;
}
#ifdef __clang__
#define MCD_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MCD_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Mask<decltype(a)>{__VA_ARGS__})
#endif
// A pair of floats is read as one word: half as many loads, which are what a gather costs.
template <typename V, int... i>
MCD_HD Pair<V> gather_words(const float* from, const Indices<V>& index, std::integer_sequence<int, i...>) {
  constexpr int half = kLanes<V> / 2;
  using Words = typename PackOf<int64_t, sizeof(V)>::type;
  const int32_t* at = index.in_memory();
  const V low = bit_cast<V>(Words{read_word<int64_t>(from + at[i])...});
  const V high = bit_cast<V>(Words{read_word<int64_t>(from + at[half + i])...});
  return {MCD_SHUFFLE(low, high, 2 * i..., kLanes<V> + 2 * i...),
          MCD_SHUFFLE(low, high, (2 * i + 1)..., (kLanes<V> + 2 * i + 1)...)};
}

// `here` moved by a lane: each becomes its neighbour before or after it, across packs that lie next to each other.
template <typename V, int... i> MCD_HD V shift_in(V before, V here, std::integer_sequence<int, i...>) {
  return MCD_SHUFFLE(before, here, kLanes<V> - 1 + i...);
}
template <typename V, int... i> MCD_HD V shift_out(V here, V after, std::integer_sequence<int, i...>) {
  return MCD_SHUFFLE(here, after, 1 + i...);
}
template <typename V> MCD_HD V lane_before(V before, V here) {
#ifdef MCD_AVX512
  // GCC makes a slower instruction of the shuffle.
  if constexpr (std::is_same_v<V, Pack<float>>)
    return V(_mm512_maskz_alignr_epi32(0xffff, __m512i(here), __m512i(before), 15));
#endif
  return shift_in(before, here, std::make_integer_sequence<int, kLanes<V>>{});
}
template <typename V> MCD_HD V lane_after(V here, V after) {
#ifdef MCD_AVX512
  if constexpr (std::is_same_v<V, Pack<float>>)
    return V(_mm512_maskz_alignr_epi32(0xffff, __m512i(after), __m512i(here), 1));
#endif
  return shift_out(here, after, std::make_integer_sequence<int, kLanes<V>>{});
}
#endif
template <typename V, typename Stored> MCD_HD Pair<V> gather_pair(const Stored* from, const Indices<V>& index) {
#ifndef __CUDACC__
  if constexpr (kLanes<V> > 1 && std::is_same_v<Stored, float>)
    return gather_words<V>(from, index, std::make_integer_sequence<int, kLanes<V> / 2>{});
  if constexpr (kLanes<V> > 1 && sizeof(Stored) == 2) {
    typename Lanes<V>::template of<uint32_t> words{};
    const int32_t* at = index.in_memory();
    for (int i = 0; i < kLanes<V>; ++i) words[i] = read_word<uint32_t>(from + at[i]);
    if constexpr (std::is_same_v<Stored, bfloat16>)
      return {from_bfloat16<V>(words & 0xffff), from_bfloat16<V>(words >> 16)};
    else
      return {from_float16<V>(words & 0xffff), from_float16<V>(words >> 16)};
  }
#endif
  return {gather<V>(from, index), gather<V>(from + 1, index)};
}

}  // namespace mcd::MCD_TARGET
