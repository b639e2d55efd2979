// From the dtypes of tensors to C++ types.
#pragma once

#include "host_device.h"
#include "tensor.h"

namespace mcd::MCD_TARGET {

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

}  // namespace mcd::MCD_TARGET
