// Colour jitter of images of bytes, as mcd/ops/colour_jitter.py defines it.
#pragma once

#include "../common/bytes.h"
#include "../common/tensor.h"

namespace mcd::MCD_TARGET {

enum Kind { kBrightness, kContrast, kSaturation, kHue, kKinds };

template <typename V> struct Colour {
  V red, green, blue;
};
template <typename V> MCD_HD V grey(const Colour<V>& c) { return 0.299f * c.red + 0.587f * c.green + 0.114f * c.blue; }
template <typename V> MCD_HD V unit(V value) { return min<V>(max<V>(value, V{}), splat<V>(1)); }

// Turned by a share of the colour circle; value and chroma stay.
template <typename V> MCD_HD void turn_hue(Colour<V>& c, float shift) {
  const V value = max<V>(c.red, max<V>(c.green, c.blue)), least = min<V>(c.red, min<V>(c.green, c.blue));
  const V chroma = value - least;
  const Mask<V> is_red = value == c.red, is_green = value == c.green;
  const V ahead = select<V>(is_red, c.green, select<V>(is_green, c.blue, c.red));
  const V behind = select<V>(is_red, c.blue, select<V>(is_green, c.red, c.green));
  const V from = select<V>(is_red, V{}, select<V>(is_green, splat<V>(2), splat<V>(4)));
  // In sixths of the circle, red at 0.
  const V sixths = (ahead - behind) / select<V>(chroma > 0, chroma, splat<V>(1)) + from + 6 * shift;
  const auto channel = [&](float centre) {
    // Distance on the circle from where the channel is least; adding and taking away 1.5 · 2^23 rounds to a whole number.
    V away = sixths - centre;
    away -= 6 * ((away * (1.0f / 6) + 12582912.0f) - 12582912.0f);
    return value - chroma * unit<V>(2 - abs<V>(away));
  };
  c = {channel(3), channel(5), channel(1)};
}

// What is drawn for one item: the changes in their order, and how much of each; a negative one ends it.
struct Draws {
  int order[kKinds];
  float amount[kKinds];

  // row: factors by kind, then the order.
  MCD_HD explicit Draws(const float* row) {
    for (int i = 0; i < kKinds; ++i) {
      order[i] = int(row[kKinds + i]);
      amount[i] = row[order[i] < 0 ? 0 : order[i] & (kKinds - 1)];
    }
  }
  MCD_HD bool none() const { return order[0] < 0; }

  // The changes in their order, or those before contrast, which wants the mean of what they leave.
  template <typename V> MCD_HD void change(Colour<V>& c, bool before_contrast, float mean) const {
    for (int i = 0; i < kKinds; ++i) {
      const float f = amount[i];
      if (order[i] == kBrightness) {
        c = {unit<V>(c.red * f), unit<V>(c.green * f), unit<V>(c.blue * f)};
      } else if (order[i] == kContrast) {
        if (before_contrast) return;
        const float rest = (1 - f) * mean;
        c = {unit<V>(c.red * f + rest), unit<V>(c.green * f + rest), unit<V>(c.blue * f + rest)};
      } else if (order[i] == kSaturation) {
        const V rest = (1 - f) * grey(c);
        c = {unit<V>(c.red * f + rest), unit<V>(c.green * f + rest), unit<V>(c.blue * f + rest)};
      } else if (order[i] == kHue) {
        turn_hue(c, f);
      }
    }
  }
};

struct Jitter {
  const uint8_t* images;  // [items, frames, 3, plane]
  const float* draws;     // [items, 2 * kKinds]
  uint8_t* changed;
  int64_t items, frames, plane;

  MCD_HD Draws of(int64_t image) const { return Draws(draws + image / frames * 2 * kKinds); }

  template <typename V> MCD_HD Colour<V> read(int64_t image, int64_t at, int count) const {
    const uint8_t* from = images + image * 3 * plane + at;
    const float scale = 1.0f / 255;
    return {load_bytes<V>(from, count) * scale, load_bytes<V>(from + plane, count) * scale,
            load_bytes<V>(from + 2 * plane, count) * scale};
  }
  template <typename V> MCD_HD void write(int64_t image, int64_t at, const Colour<V>& c, int count) const {
    uint8_t* to = changed + image * 3 * plane + at;
    store_bytes<V>(to, c.red * 255 + 0.5f, count), store_bytes<V>(to + plane, c.green * 255 + 0.5f, count);
    store_bytes<V>(to + 2 * plane, c.blue * 255 + 0.5f, count);
  }
};

inline Jitter jitter_of(const Tensor& images, const Tensor& draws, const Tensor& changed) {
  return {images.as<const uint8_t>(), draws.as<const float>(), changed.as<uint8_t>(), images.size[0], images.size[1],
          images.size[3] * images.size[4]};
}

}  // namespace mcd::MCD_TARGET
