// What band.cpp leaves for eigen.cpp.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace {

constexpr long BAND = 4, WIDTH = BAND + 1;  // diagonals below the main one; with it
// Vectors of columns that Q is applied to at once: their sums stay in registers.
constexpr int MOST_VECS = REGISTERS >= 32 ? 3 : 1;

// The rows of a matrix in LANES at a time are worked on in SHARES, whatever the number of threads: forth and back,
// since the later ones are longer.
constexpr long SHARES = 4;
inline long first_of(long turn, long share) {
    return (turn * SHARES + (turn % 2 ? SHARES - 1 - share : share)) * LANES;
}

// Where row i of n is in memory, which has room for a multiple of 64 rows: those of a share lie together, and the two
// shares that one of two threads has lie side by side. A processor fetches ahead of what is read, and would take rows
// from a thread that is writing to them.
inline long place_of(long i, long n) {
    constexpr long ROUND = SHARES * LANES;
    static_assert(64 % ROUND == 0, "band_rows in arguments.py");
    const long turn = i / ROUND, turns = (n + ROUND - 1) / ROUND, group = i % ROUND / LANES;
    const long share = turn % 2 ? SHARES - 1 - group : group, threads = 2;
    return ((share % threads * (SHARES / threads) + share / threads) * turns + turn) * LANES + i % LANES;
}

// Of the vector of the reflection that row i holds, of n.
inline long reflection_length(long i, long n) {
    const long p = i / BAND * BAND, rows = std::min(BAND, n - p);
    return std::max<long>(0, p - (rows - 1 - (i - p)));
}

// The T of I - V T V^T for one reflection more, the c-th: `along` holds the products of its vector with those before.
template <typename Number>
void add_reflection(Number (*t)[BAND], long c, float scale, const Number* along) {
    t[c][c] = scale;
    for (long m = 0; m < c; m++)
        for (long l = m; l < c; l++) t[m][c] -= scale * t[m][l] * along[l];
}

// Up to BAND reflections that follow each other, as I - V T V^T: the vectors are as long as `length` says, all of them
// as `shared`, and T is upper triangular.
struct Reflections {
    const float* v[BAND];
    long length[BAND], shared;
    float t[BAND][BAND] = {};

    Reflections() = default;
    // Those of rows p ... of what gruclip_band left, the last row's first.
    Reflections(const float* a, const float* scales, long n, long stride, long p) {
        const long rows = std::min(BAND, n - p);
        shared = reflection_length(p, n);
        for (long c = 0; c < BAND; c++) {
            const long i = p + std::max<long>(0, rows - 1 - c);
            v[c] = a + (place_of(p, n) + i - p) * stride;
            length[c] = c < rows ? reflection_length(i, n) : shared;
            if (c >= rows) continue;
            float along[BAND];
            for (long m = 0; m < c; m++) along[m] = dot(v[m], v[c], length[c]);
            add_reflection(t, c, scales[i], along);
        }
    }

    // Rows of VECS vectors each.
    template <int VECS>
    void apply(float* rows) const {
        constexpr long ROW = VECS * LANES;
        vec even[BAND][VECS] = {}, odd[BAND][VECS] = {}, along[BAND][VECS] = {};
        const auto add = [&](vec(*sums)[VECS], long j) __attribute__((always_inline)) {
            vec row[VECS];
#pragma GCC unroll 3
            for (int x = 0; x < VECS; x++) row[x] = in_register(load(rows + j * ROW + x * LANES));
#pragma GCC unroll 4
            for (int c = 0; c < BAND; c++) {
                const vec entry = splat(v[c][j]);
#pragma GCC unroll 3
                for (int x = 0; x < VECS; x++) sums[c][x] += entry * row[x];
            }
        };
        long j = 0;
        for (; j + 1 < shared; j += 2) add(even, j), add(odd, j + 1);
        if (j < shared) add(even, j);
        for (int x = 0; x < VECS; x++) {
            for (int c = 0; c < BAND; c++)
                for (j = shared; j < length[c]; j++) odd[c][x] += splat(v[c][j]) * load(rows + j * ROW + x * LANES);
            for (int m = 0; m < BAND; m++)
                for (int c = m; c < BAND; c++) along[m][x] += splat(t[m][c]) * (even[c][x] + odd[c][x]);
        }
        for (j = 0; j < shared; j++) {
            vec row[VECS];
#pragma GCC unroll 3
            for (int x = 0; x < VECS; x++) row[x] = load(rows + j * ROW + x * LANES);
#pragma GCC unroll 4
            for (int c = 0; c < BAND; c++) {
                const vec entry = splat(v[c][j]);
#pragma GCC unroll 3
                for (int x = 0; x < VECS; x++) row[x] -= entry * along[c][x];
            }
#pragma GCC unroll 3
            for (int x = 0; x < VECS; x++) store(rows + j * ROW + x * LANES, row[x]);
        }
        for (int c = 0; c < BAND; c++)
            for (j = shared; j < length[c]; j++)
                for (int x = 0; x < VECS; x++) {
                    float* at = rows + j * ROW + x * LANES;
                    store(at, load(at) - splat(v[c][j]) * along[c][x]);
                }
    }

    void apply(float* rows, long vecs) const {
        vecs == 1 ? apply<1>(rows) : vecs == 2 ? apply<2>(rows) : apply<3>(rows);
    }
};

}  // namespace
