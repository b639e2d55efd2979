// Images of bytes: packs of them in the wide lanes that are computed in, and back. GCC takes single bytes out of a register
// where it is left to convert them.
#pragma once

#include "lanes.h"

namespace mcd::MCD_TARGET {

// A byte in each lane of V (float, or int32); `count` as in read_lanes().
template <typename V> MCD_HD V load_bytes(const uint8_t* from, int count) {
  // maskz: without it GCC 12 warns of its own header.
  if constexpr (kLanes<V> == 1) {
    return V(*from);
  } else {
#ifdef __AVX2__
    if (count == kLanes<V>) {
#ifdef MCD_AVX512
      const auto wide = _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
      const auto wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#endif
      return convert<V>(bit_cast<Int<V>>(wide));
    }
#endif
    return convert<V>(convert<Int<V>>(read_lanes<typename Lanes<V>::template of<uint8_t>>(from, count)));
  }
}

// Of numbers in [-32768, 32767]: those beyond a byte become 0 or 255.
template <typename V> MCD_HD void store_bytes(uint8_t* to, V value, int count) {
  if constexpr (kLanes<V> == 1) {
    *to = uint8_t(min<V>(max<V>(value, 0), 255));
  } else {
    using Bytes = typename Lanes<V>::template of<uint8_t>;
    const auto whole = convert<Int<V>>(value);
#if defined(MCD_AVX512)
    const auto wide = _mm512_maskz_max_epi32(0xffff, bit_cast<__m512i>(whole), _mm512_setzero_si512());
    write_lanes(to, bit_cast<Bytes>(_mm512_maskz_cvtusepi32_epi8(0xffff, wide)), count);
#elif defined(__AVX2__)
    const auto wide = bit_cast<__m256i>(whole);
    const auto half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    write_lanes(to, bit_cast<Bytes>(_mm_cvtsi128_si64(_mm_packus_epi16(half, half))), count);
#else
    using I = Int<V>;
    const I low = select<I>(whole < 0, I{}, whole);
    write_lanes(to, convert<Bytes>(select<I>(low > 255, I{} + 255, low)), count);
#endif
  }
}

}  // namespace mcd::MCD_TARGET
