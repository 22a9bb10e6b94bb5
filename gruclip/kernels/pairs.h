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
inline vec add_pairs(vec sum, vec x, vec y) { return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y); }

#else
constexpr bool HAS_PAIRS = false;

inline vec add_pairs(vec sum, vec x, vec y) {
    const uvec a = bits_of(x), b = bits_of(y);
    sum += from_bits(a << 16) * from_bits(b << 16);
    return sum + from_bits(a & 0xffff0000u) * from_bits(b & 0xffff0000u);
}

#endif

// multiply of panels.h for a block (pairs, ROWS) and a panel (pairs, VECS vectors).
template <int ROWS, int VECS>
void multiply_pairs(float* sums, long stride, const float* block, const float* panel, long pairs) {
    vec s[ROWS][VECS] = {};
    for (long k = 0; k < pairs; k++) {
        vec row[VECS];
#pragma GCC unroll 2
        for (int v = 0; v < VECS; v++) row[v] = load(panel + v * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; m++) {
            const vec element = splat(block[m]);
#pragma GCC unroll 2
            for (int v = 0; v < VECS; v++) s[m][v] = add_pairs(s[m][v], row[v], element);
        }
        panel += VECS * LANES;
        block += ROWS;
    }
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
        for (int v = 0; v < VECS; v++) store(sums + m * stride + v * LANES, s[m][v]);
}

}  // namespace
