// What lets one source compile as C++ for a CPU and as CUDA.
//
// Everything in csrc/ is compiled several times, each time into a namespace of its own, MCD_TARGET: `cuda` by nvcc, and by
// the C++ compiler `baseline`, `avx2` and `avx512` (setup.py gives flags and name). bindings.cpp chooses at run time.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MCD_TARGET cuda
#define MCD_HD __host__ __device__ __forceinline__
#else
// Inlined by force: an inline function kept as a symbol could be called from another target's code.
#define MCD_HD inline __attribute__((always_inline))
#endif

namespace mcd::MCD_TARGET {

// Storage types of images; arithmetic is in float.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <typename To, typename From> MCD_HD To bit_cast(From value) { return __builtin_bit_cast(To, value); }

}  // namespace mcd::MCD_TARGET
