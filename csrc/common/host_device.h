// What lets one source compile as C++ for a CPU and as CUDA: the inline attribute, and the scalar types of images.
#pragma once

#include <cmath>
#include <cstdint>

// Everything that a loop body calls must carry MCD_HD: on CPU it has to be inlined into the loop, whose copies for
// AVX2 and AVX-512 (for_each.h) would otherwise call baseline code.
#ifdef __CUDACC__
#define MCD_HD __host__ __device__ __forceinline__
#else
#define MCD_HD inline __attribute__((always_inline))
#endif

namespace mcd {

template <typename T> MCD_HD T min(T a, T b) { return b < a ? b : a; }
template <typename T> MCD_HD T max(T a, T b) { return a < b ? b : a; }
template <typename T> MCD_HD bool is_nan(T a) { return a != a; }
template <typename T> MCD_HD bool is_finite(T a) { return a - a == T(0); }
template <typename T> MCD_HD T quiet_nan() { return T(__builtin_nanf("")); }

// Storage types of images; arithmetic is in float. Bit operations, so that loops over them vectorise everywhere.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <typename To, typename From> MCD_HD To bit_cast(From value) { return __builtin_bit_cast(To, value); }

template <typename T> MCD_HD T load(float value) { return T(value); }
template <typename T> MCD_HD T load(double value) { return T(value); }
template <typename T> MCD_HD T load(bfloat16 value) { return T(bit_cast<float>(uint32_t(value.bits) << 16)); }
template <typename T> MCD_HD T load(float16 value) {
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13;
  const float scaled = bit_cast<float>(magnitude) * 0x1p112f;  // moves the exponent; subnormals come out right
  const uint32_t special = magnitude | 0x7f800000;
  const uint32_t bits = magnitude >= (0x7c00u << 13) ? special : bit_cast<uint32_t>(scaled);
  return T(bit_cast<float>(bits | uint32_t(value.bits & 0x8000) << 16));
}

// Rounds to nearest, ties to even.
template <typename T> MCD_HD void store(float* to, T value) { *to = float(value); }
template <typename T> MCD_HD void store(double* to, T value) { *to = double(value); }
template <typename T> MCD_HD void store(bfloat16* to, T value) {
  const uint32_t bits = bit_cast<uint32_t>(float(value));
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to->bits = uint16_t(is_nan(value) ? 0x7fc0 : rounded);
}
template <typename T> MCD_HD void store(float16* to, T value) {
  const uint32_t bits = bit_cast<uint32_t>(float(value)), magnitude = bits & 0x7fffffff;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Adding 0.5 shifts a subnormal's bits into place, rounding as it does so.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t large = magnitude > 0x7f800000 ? 0x7e00u : 0x7c00u;
  to->bits = uint16_t((magnitude >= 0x477ff000u ? large : finite) | (bits >> 16 & 0x8000));
}

}  // namespace mcd
