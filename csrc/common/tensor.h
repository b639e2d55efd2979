// A tensor as the bindings hand it over: address, type, sizes. Always dense (row-major); null when it was None.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "host_device.h"

namespace mcd {

enum class Dtype { float32, float64, bfloat16, float16, int32, int64, boolean };

struct Tensor {
  void* data = nullptr;
  Dtype dtype = Dtype::float32;
  int dims = 0;
  int64_t size[6] = {};

  explicit operator bool() const { return data != nullptr; }
  template <typename T> T* as() const { return static_cast<T*>(data); }
};

// Where an operator runs: on `threads` CPU threads, or on a CUDA stream of a device.
struct Where {
  int device = -1;  // < 0: CPU
  void* stream = nullptr;
  int threads = 1;

  bool cuda() const { return device >= 0; }
};

// Calls f(real{}) with the C++ type of a real tensor.
template <typename F> void dispatch(Dtype real, F f) {
  if (real == Dtype::float32) return f(float{});
  if (real == Dtype::float64) return f(double{});
  throw std::invalid_argument("expected a float32 or float64 tensor");
}

// Calls f(real{}, image{}): images have the real type or, beside float, one of 16 bits.
template <typename F> void dispatch(Dtype real, Dtype image, F f) {
  if (real == Dtype::float64 && image == Dtype::float64) return f(double{}, double{});
  if (real != Dtype::float32) throw std::invalid_argument("expected float32, or float64 for all tensors");
  if (image == Dtype::float32) return f(float{}, float{});
  if (image == Dtype::bfloat16) return f(float{}, bfloat16{});
  if (image == Dtype::float16) return f(float{}, float16{});
  throw std::invalid_argument("expected a float32, bfloat16 or float16 image");
}

#ifdef MCD_WITH_CUDA
constexpr bool with_cuda = true;
#else
constexpr bool with_cuda = false;
#endif

}  // namespace mcd
