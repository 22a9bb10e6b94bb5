// Vectors of float as the compiler's own type, as wide as the processor's registers, and what is computed on them.
#pragma once

#include <algorithm>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int ivec __attribute__((vector_size(LANES * sizeof(int))));
// And of double.
constexpr int DOUBLES = LANES / 2;
typedef double dvec __attribute__((vector_size(DOUBLES * sizeof(double))));
typedef long lvec __attribute__((vector_size(DOUBLES * sizeof(long))));
// The same at any address.
typedef double loose_dvec __attribute__((vector_size(DOUBLES * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef float loose_vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

inline vec load(const float* p) { return *reinterpret_cast<const loose_vec*>(p); }
inline dvec load(const double* p) { return *reinterpret_cast<const loose_dvec*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<loose_vec*>(p) = v; }
inline vec splat(float x) { return x - vec{}; }

// The same value, which the compiler then keeps in a register; it would rather load it again for each of its uses.
inline vec in_register(vec v) {
#if defined(__x86_64__)
    asm("" : "+x"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

// The first `count` lanes; the others are zero and are not touched.
inline vec load(const float* p, int count) {
    if (count >= LANES) return load(p);
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_loadu_ps((1u << count) - 1, p);  // where memcpy is a call
#else
    vec v = {};
    std::memcpy(&v, p, count * sizeof(float));
    return v;
#endif
}
inline void store(float* p, vec v, int count) {
    if (count >= LANES) return store(p, v);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (1u << count) - 1, (__m512)v);
#else
    std::memcpy(p, &v, count * sizeof(float));
#endif
}

// Lanes `From` of a and b, one after the other.
template <int... From>
inline vec shuffled(vec a, vec b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, From...);
#else
    return __builtin_shuffle(a, b, ivec{From...});
#endif
}

// The sums of the halves of each group of 2 HALF lanes of a, then of b.
template <int HALF, int... Lane>
inline vec folded(vec a, vec b, std::integer_sequence<int, Lane...>) {
    constexpr auto from = [](int lane) {
        constexpr int groups = LANES / (2 * HALF);
        const int group = lane / HALF;
        return group / groups * LANES + group % groups * 2 * HALF + lane % HALF;
    };
    return shuffled<from(Lane)...>(a, b) + shuffled<from(Lane) + HALF...>(a, b);
}

// The sums of the lanes of `count` vectors, which are written over, in the first `count` lanes, LANES / count times.
template <int HALF = LANES / 2>
inline vec totals(vec* v, int count) {
    if constexpr (HALF > 0) {
        const int half = count > 1 ? count / 2 : 1;
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            v[i] = folded<HALF>(v[2 * i % count], v[(2 * i + 1) % count], std::make_integer_sequence<int, LANES>());
        return totals<HALF / 2>(v, half);
    } else return v[0];
}

inline float total(vec v) { return totals(&v, 1)[0]; }

inline double total(dvec v) {
    double sum = 0;
    for (int lane = 0; lane < DOUBLES; lane++) sum += v[lane];
    return sum;
}

// Pseudo-random bits, from Knuth's linear congruence.
inline unsigned long next_bits(unsigned long& state) {
    return state = state * 6364136223846793005ul + 1442695040888963407ul;
}

inline float dot(const float* a, const float* b, long n) {
    constexpr int CHAINS = 4;  // sums that do not wait for each other
    vec sums[CHAINS] = {};
    long i = 0;
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES)
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; c++) sums[c] += load(a + i + c * LANES) * load(b + i + c * LANES);
    for (; i < n; i += LANES) {
        const int lanes = std::min<long>(LANES, n - i);
        sums[0] += load(a + i, lanes) * load(b + i, lanes);
    }
    return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

inline double dot(const double* a, const double* b, long n) {
    constexpr int CHAINS = 16;
    double sums[CHAINS] = {}, sum = 0;
    long i = 0;
    for (; i + CHAINS <= n; i += CHAINS)
        for (int c = 0; c < CHAINS; c++) sums[c] += a[i + c] * b[i + c];
    for (; i < n; i++) sum += a[i] * b[i];
    for (double part : sums) sum += part;
    return sum;
}

inline vec select(ivec mask, vec yes, vec no) { return mask ? yes : no; }

// exp(x) within 2 units in the last place; 0 below -87.3, and the largest power that is finite above 88.
// NaN stays NaN.
inline vec exp(vec x) {
    const vec low = splat(-87.33f), high = splat(88.0f);
    const ivec underflow = x < low;
    x = select(x > high, high, select(underflow, low, x));
    // x = k log 2 + f with |f| <= log(2) / 2; adding and taking away 1.5 2^23 rounds to a whole number.
    const vec shift = splat(12582912.0f);
    const vec k = (x * 1.44269504f + shift) - shift;
    vec f = x - k * 0.693359375f;
    f = f + k * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    const vec e = p * f * f + f + 1.0f;
    const ivec power = (__builtin_convertvector(k, ivec) + 127) << 23;
    vec scale;
    std::memcpy(&scale, &power, sizeof scale);
    return select(underflow, vec{}, e * scale);
}

inline vec sigmoid(vec x) { return 1.0f / (1.0f + exp(-x)); }

// tanh(x), near zero by a polynomial, so that small values keep their relative precision.
inline vec tanh(vec x) {
    const vec size = select(x < vec{}, -x, x);
    const vec far = 1.0f - 2.0f / (exp(size + size) + 1.0f);
    const vec s = x * x;
    vec p = splat(-5.70498872745e-3f);
    p = p * s + 2.06390887954e-2f;
    p = p * s - 5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s - 3.33332819422e-1f;
    const vec near = p * s * x + x;
    return select(size < splat(0.625f), near, select(x < vec{}, -far, far));
}

typedef unsigned uvec __attribute__((vector_size(LANES * sizeof(unsigned))));

inline uvec bits_of(vec x) {
    uvec bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline vec from_bits(uvec bits) {
    vec x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// To the nearest bfloat16, ties to even; NaN stays NaN, whatever half of it tells it from infinity.
inline vec round_to_bf16(vec x) {
    const uvec bits = bits_of(x);
    const vec nearest = from_bits((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
    return select(x == x, nearest, from_bits((bits | 0x00400000u) & 0xffff0000u));
}

// A bfloat16 and a vector of them: the upper half of a float's bits.
typedef unsigned short bf16;
typedef bf16 bvec __attribute__((vector_size(LANES * sizeof(bf16))));

inline bvec to_bf16(vec x) { return __builtin_convertvector(bits_of(round_to_bf16(x)) >> 16, bvec); }

inline vec load(const bf16* p, int count) {
    bvec v = {};
    // A size that the compiler knows needs no call.
    if (count >= LANES) std::memcpy(&v, p, sizeof v);
    else std::memcpy(&v, p, count * sizeof(bf16));
    return from_bits(__builtin_convertvector(v, uvec) << 16);
}
inline vec load(const bf16* p) { return load(p, LANES); }
inline void store(bf16* p, vec v, int count) {
    const bvec rounded = to_bf16(v);
    if (count >= LANES) std::memcpy(p, &rounded, sizeof rounded);
    else std::memcpy(p, &rounded, count * sizeof(bf16));
}
inline void store(bf16* p, vec v) { store(p, v, LANES); }
