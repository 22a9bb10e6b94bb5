// Products of bfloat16 in registers, where the processor has an instruction for two of them at once: an element of a
// factor is a pair, one above the other in the common dimension.
#pragma once

#include <cstdint>

#include "panels.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;

// sum plus, lane by lane, the two products of the pairs of x and y.
inline vec add_pairs(vec sum, vec x, vec y) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
}

// multiply of panels.h for a block (pairs, ROWS) and a panel (pairs, PANEL).
template <int ROWS>
void multiply_pairs(float* sums, long stride, const float* block, const float* panel, long pairs) {
    __m512 s[ROWS][2] = {};
    for (long k = 0; k < pairs; k++) {
        const auto left = (__m512bh)_mm512_loadu_ps(panel), right = (__m512bh)_mm512_loadu_ps(panel + LANES);
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; m++) {
            const auto element = (__m512bh)_mm512_set1_ps(block[m]);
            s[m][0] = _mm512_dpbf16_ps(s[m][0], left, element);
            s[m][1] = _mm512_dpbf16_ps(s[m][1], right, element);
        }
        panel += PANEL;
        block += ROWS;
    }
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; m++)
        for (int v = 0; v < 2; v++) _mm512_storeu_ps(sums + m * stride + v * LANES, s[m][v]);
}
#else
constexpr bool HAS_PAIRS = false;

inline vec add_pairs(vec sum, vec x, vec y) {
    const uvec a = bits_of(x), b = bits_of(y);
    sum += from_bits(a << 16) * from_bits(b << 16);
    return sum + from_bits(a & 0xffff0000u) * from_bits(b & 0xffff0000u);
}

template <int ROWS>
void multiply_pairs(float*, long, const float*, const float*, long) {}
#endif

}  // namespace
