// A tensor as the bindings hand it over: address, type, sizes. Always dense (row-major); null when it was None.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace mcd {

enum class Dtype { float32, float64, bfloat16, float16, int32, int64, boolean, int16, uint8 };

struct Tensor {
  void* data = nullptr;
  Dtype dtype = Dtype::float32;
  int dims = 0;
  int64_t size[6] = {};

  __attribute__((always_inline)) explicit operator bool() const { return dims > 0; }
  template <typename T> __attribute__((always_inline)) T* as() const { return static_cast<T*>(data); }
};

// Where an operator runs: on `threads` CPU threads, or on a CUDA stream of the current device.
struct Where {
  int threads;
  void* stream;
};

}  // namespace mcd
