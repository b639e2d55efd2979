// Scratch memory of a task.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace mcd::MCD_TARGET {

// `size` zeros. Not std::unique_ptr, whose destructor, kept as a symbol, could be called from another target's code.
template <typename T> class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(new T[size]()) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { delete[] data_; }

  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

}  // namespace mcd::MCD_TARGET
