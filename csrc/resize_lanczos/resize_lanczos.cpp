// Images of bytes at another size, as Pillow's Lanczos resize gives them to the bit: weights of 22 binary places, rows first,
// bytes in between. On CPU alone; a pack holds as many rows, then as many columns.
#include "../common/buffer.h"
#include "../common/bytes.h"
#include "../common/for_each.h"
#include "../operators.h"

namespace mcd::MCD_TARGET {
namespace {

constexpr int kBits = 22;
using V = Pack<float>;
using Wide = Int<V>;
constexpr int kPack = kLanes<V>;

// Weights of each output place: `first` of what it reads, how many it reads, and of each its weight.
struct Taps {
  const int32_t *first, *count, *weight;
  int64_t most;

  explicit Taps(const Tensor& bounds, const Tensor& weights)
      : first(bounds.as<const int32_t>()), count(first + bounds.size[1]), weight(weights.as<const int32_t>()),
        most(weights.size[1]) {}
};

// A pack of rows [width, 3] at a time: turned so that a pack has one place of each, then back to a plane for each channel.
struct ResizeRows {
  const uint8_t* image;
  uint8_t* planes;  // [3, height, new_width]
  Taps taps;
  int64_t height, width, new_width;

  MCD_HD void operator()(int64_t block) const {
    const int64_t row = block * kPack, rows = min<int64_t>(kPack, height - row);
    Buffer<uint8_t> turned(width * 3 * kPack);
    constexpr int64_t kNear = 256;  // places of which all rows stay in the nearest cache
    for (int64_t begin = 0; begin < width * 3; begin += kNear)
      for (int64_t r = 0; r < rows; ++r) {
        const uint8_t* from = image + (row + r) * width * 3;
        for (int64_t at = begin; at < min<int64_t>(begin + kNear, width * 3); ++at) turned[at * kPack + r] = from[at];
      }
    for (int64_t x = 0; x < new_width; ++x) {
      const int32_t* weight = taps.weight + x * taps.most;
      const uint8_t* from = turned.get() + int64_t(taps.first[x]) * 3 * kPack;
      Wide total[3] = {Wide{} + (1 << (kBits - 1)), Wide{} + (1 << (kBits - 1)), Wide{} + (1 << (kBits - 1))};
      for (int k = 0; k < taps.count[x]; ++k, from += 3 * kPack)
        for (int c = 0; c < 3; ++c) total[c] += load_bytes<Wide>(from + c * kPack, kPack) * weight[k];
      for (int c = 0; c < 3; ++c) {
        uint8_t levels[kPack];
        store_bytes<Wide>(levels, total[c] >> kBits, kPack);
        uint8_t* to = planes + (c * height + row) * new_width + x;
        for (int64_t r = 0; r < rows; ++r) to[r * new_width] = levels[r];
      }
    }
  }
};

struct ResizeColumns {
  const uint8_t* planes;  // [3, height, width]
  uint8_t* resized;       // [3, new_height, width]
  Taps taps;
  int64_t height, new_height, width;

  MCD_HD void operator()(int64_t i) const {
    const int64_t plane = i / new_height, y = i % new_height;
    const int32_t* weight = taps.weight + y * taps.most;
    const uint8_t* from = planes + (plane * height + taps.first[y]) * width;
    for (int64_t x = 0; x < width; x += kPack) {
      const int count = int(min<int64_t>(kPack, width - x));
      Wide total = Wide{} + (1 << (kBits - 1));
      for (int k = 0; k < taps.count[y]; ++k)
        total += load_bytes<Wide>(from + k * width + x, count) * weight[k];
      store_bytes<Wide>(resized + i * width + x, total >> kBits, count);
    }
  }
};

}  // namespace

void resize_lanczos_fwd(
    const Tensor& image, const Tensor& column_bounds, const Tensor& column_weights, const Tensor& row_bounds,
    const Tensor& row_weights, const Tensor& resized, const Tensor& between, const Where& where) {
  const int64_t height = image.size[0], width = image.size[1], new_height = resized.size[1], new_width = resized.size[2];
  for_each_cpu((height + kPack - 1) / kPack, where.threads, ResizeRows{
      image.as<const uint8_t>(), between.as<uint8_t>(), Taps(column_bounds, column_weights), height, width, new_width});
  for_each_cpu(3 * new_height, where.threads, ResizeColumns{
      between.as<const uint8_t>(), resized.as<uint8_t>(), Taps(row_bounds, row_weights), height, new_height, new_width});
}

}  // namespace mcd::MCD_TARGET
