// The reflections that make some rows of a symmetric matrix those of a band, for band.cpp.
#pragma once

#include <cmath>

#include "arrays.h"
#include "band.h"

namespace {

// Sums of squares in float32 that are taken for zero: below, they lose their digits. The entries of A are near 1.
constexpr double LEAST_SQUARE = 1e-30;
constexpr long PAIR = SHARES / 2;  // the sums of shares i and i + PAIR meet
constexpr int TILE = 3;            // vectors of a row that are worked on while they are in registers

// BAND rows of COUNT vectors each, `stride` apart in memory, to registers and back.
template <int COUNT>
[[gnu::always_inline]] inline void load_rows(vec (&rows)[BAND][COUNT], const float* from, long stride) {
#pragma GCC unroll 4
    for (long r = 0; r < BAND; r++)
#pragma GCC unroll 4
        for (int c = 0; c < COUNT; c++) rows[r][c] = load(from + r * stride + c * LANES);
}
template <int COUNT>
[[gnu::always_inline]] inline void store_rows(float* to, const vec (&rows)[BAND][COUNT], long stride) {
#pragma GCC unroll 4
    for (long r = 0; r < BAND; r++)
#pragma GCC unroll 4
        for (int c = 0; c < COUNT; c++) store(to + r * stride + c * LANES, rows[r][c]);
}

// BAND rows at `a`, COUNT vectors of them: a -= v w^T + w v^T, with the numbers of the rows at v and w.
template <int COUNT>
void update(float* a, const float* v, const float* w, const float* along_v, const float* along_w, long stride) {
    vec e[BAND][COUNT];
    load_rows(e, a, stride);
    for (long k = 0; k < BAND; k++, v += stride, w += stride, along_v += stride, along_w += stride)
        for (const auto& [at, along] : {std::pair{v, along_w}, std::pair{w, along_v}}) {
            vec x[COUNT];
#pragma GCC unroll 4
            for (int c = 0; c < COUNT; c++) x[c] = in_register(load(along + c * LANES));
#pragma GCC unroll 4
            for (long r = 0; r < BAND; r++)
#pragma GCC unroll 4
                for (int c = 0; c < COUNT; c++) e[r][c] -= splat(at[r]) * x[c];
        }
    store_rows(a, e, stride);
}

// The same for `count` vectors from `left` on.
void update_strip(float* rows, const float* v, const float* w, long first, long left, long count, long stride) {
    for (long c = 0; c < count; c += TILE) {
        const long at = left + c * LANES;
        (count - c >= TILE ? update<TILE>
         : count - c == 2  ? update<2>
                           : update<1>)(rows + at, v + first, w + first, v + at, w + at, stride);
    }
}

// The reflections of BAND rows, and what a thread of the reduction has of them. Every thread makes them for itself, the
// same bits: to hand them over would take longer.
struct Panel {
    const long stride, n;
    const bool writes;  // the band and the factors: one thread does
    const Array memory;
    // (BAND, stride) each: v and w of the last panel, x of this one, and a place for the rows of A that it is made of.
    // Whole vectors are worked on: in the last one that is read, what is beyond the end of v, w or x is zero, and of a
    // row finite.
    float *v, *w, *x, *const place;
    float* rows = place;  // where these are
    float t[BAND][BAND];  // Q = I - x t x^T

    Panel(long stride, long n, bool writes)
        : stride(stride),
          n(n),
          writes(writes),
          memory(zeros(4 * BAND * stride)),
          v(memory.get()),
          w(v + BAND * stride),
          x(w + BAND * stride),
          place(x + BAND * stride) {}

    // From `count` rows of A from row p on, less v w^T + w v^T: the vectors in x, and as they are kept in `rows`, which
    // are those of A themselves for a thread that is `alone`.
    void reflect(double* band, float* scales, float* a, long p, long count, bool alone) {
        float* theirs = a + place_of(p, n) * stride;
        rows = alone ? theirs : place;
        for (long r = 0; !alone && r < count; r++)
            std::memcpy(rows + r * stride, theirs + r * stride, (p + count) * sizeof(float));
        // There are fewer in the first panel only, which no other precedes.
        if (count == BAND) update_strip(rows, v, w, p, 0, (p + count + LANES - 1) / LANES, stride);
        for (long r = 0; writes && r < count; r++)
            for (long c = 0; c <= r; c++) band[(p + r) * WIDTH + r - c] = rows[r * stride + p + c];
        if (p == 0) return;
        std::memset(x, 0, BAND * stride * sizeof(float));
        std::fill(&t[0][0], &t[0][0] + BAND * BAND, 0.0f);
        for (long c = 0; c < count; c++) reflect_row(band, scales, p, c, count);
    }

    // The c-th of them, from row count - 1 - c, which keeps what is right of `size` numbers.
    void reflect_row(double* band, float* scales, long p, long c, long count) {
        const long r = count - 1 - c, i = p + r, size = p - c, last = (p - 1) / LANES * LANES;
        float *row = rows + r * stride, *mine = x + c * stride, scale = 0, inverse = 0;
        ivec lane;
        for (int l = 0; l < LANES; l++) lane[l] = l;
        // Rows and vectors end in the same LANES numbers.
        const int corner_lane = static_cast<int>(size - 1 - last);
        const vec end = select(lane < corner_lane, load(row + last), vec{});
        vec squares = end * end, more = {};
        long j = 0;
        for (; j + LANES < last; j += 2 * LANES) {
            squares += load(row + j) * load(row + j);
            more += load(row + j + LANES) * load(row + j + LANES);
        }
        if (j < last) squares += load(row + j) * load(row + j);
        const double rest = size > 1 ? total(squares + more) : 0, corner = row[size - 1];
        double kept = corner;
        if (rest > LEAST_SQUARE) {
            kept = std::copysign(std::sqrt(rest + corner * corner), -corner);
            scale = static_cast<float>((kept - corner) / kept);
            inverse = static_cast<float>(1 / (corner - kept));
        }
        if (writes) {
            scales[i] = scale;
            band[i * WIDTH + i - size + 1] = kept;
            for (j = size; j < p; j++) band[i * WIDTH + i - j] = row[j];
        }
        // The products with the rows that are left, and with the vectors before it; of fewer rows than BAND, which has
        // no last vector, with zeros.
        const float* others[BAND - 1];
        for (long m = 0; m < BAND - 1; m++)
            others[m] = m < r ? rows + m * stride : m < r + c ? x + (m - r) * stride : x + (BAND - 1) * stride;
        vec products[BAND - 1] = {};
        const auto add = [&](long at, vec entries) __attribute__((always_inline)) {
            store(mine + at, entries);
#pragma GCC unroll 4
            for (long m = 0; m < BAND - 1; m++) products[m] += load(others[m] + at) * entries;
        };
        for (j = 0; j < last; j += LANES) add(j, load(row + j) * inverse);
        add(last, select(lane == corner_lane, splat(scale != 0), end * inverse));
        float along[BAND];
        for (long m = 0; m < BAND - 1; m++) along[m] = total(products[m]);
        for (long m = 0; m < r; m++) {
            float* other = rows + m * stride;
            const float factor = scale * along[m];
            for (j = 0; j <= last; j += LANES) store(other + j, load(other + j) - factor * load(mine + j));
        }
        std::memcpy(row, mine, size * sizeof(float));
        add_reflection(t, c, scale, along + r);
    }

    // Given A x of p rows as two sums, or as four of which i and i + PAIR go together: A x t = z in w, then
    // w = z - x (t^T x^T z) / 2; and x takes the place of v.
    void follow(const float* sums, bool paired, long p) {
        vec products[BAND * BAND] = {};
        for (long j = 0; j < p; j += LANES) {
            vec sum[BAND], z[BAND];
#pragma GCC unroll 4
            for (long k = 0; k < BAND; k++) {
                vec pair[PAIR];
                for (long i = 0; i < PAIR; i++) {
                    const float* part = sums + (i * BAND + k) * stride + j;
                    pair[i] = paired ? load(part) : load(part) + load(part + PAIR * BAND * stride);
                }
                sum[k] = pair[0] + pair[1];
            }
#pragma GCC unroll 4
            for (long c = BAND - 1; c >= 0; c--) {
                z[c] = vec{};
#pragma GCC unroll 4
                for (long m = 0; m <= c; m++) z[c] += sum[m] * splat(t[m][c]);
                store(w + c * stride + j, z[c]);
            }
#pragma GCC unroll 4
            for (long m = 0; m < BAND; m++)
#pragma GCC unroll 4
                for (long c = 0; c < BAND; c++) products[m * BAND + c] += load(x + m * stride + j) * z[c];
        }
        float half[BAND][BAND] = {};  // of t^T x^T z
        for (long m = 0; m < BAND; m++)
            for (long c = 0; c < BAND; c++) {
                const float along = total(products[m * BAND + c]) / 2;
                for (long i = m; i < BAND; i++) half[i][c] += t[m][i] * along;
            }
        for (long j = 0; j < p; j += LANES) {
            vec mine[BAND];
#pragma GCC unroll 4
            for (long i = 0; i < BAND; i++) mine[i] = load(x + i * stride + j);
#pragma GCC unroll 4
            for (long c = 0; c < BAND; c++) {
                vec z = load(w + c * stride + j);
#pragma GCC unroll 4
                for (long i = 0; i < BAND; i++) z -= splat(half[i][c]) * mine[i];
                store(w + c * stride + j, z);
            }
        }
        std::swap(v, x);
    }
};

}  // namespace
