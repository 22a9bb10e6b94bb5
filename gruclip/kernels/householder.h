// The reflections that make some rows of a symmetric matrix those of a band, for band.cpp.
#pragma once

#include <cmath>

#include "arrays.h"
#include "band.h"

namespace {

// Sums of squares in float32 that are taken for zero: below, they lose their digits. The entries of A are near 1.
constexpr double LEAST_SQUARE = 1e-30;
constexpr long SHARES = 4, PAIR = 2;  // of a product's sums, whatever the number of threads: i and i + PAIR meet

// Row i of A, up to column `end`: row -= v[row] w + w[row] v for BAND pairs of vectors, `stride` apart. Beyond
// the diagonal what is in the matrix is never read.
void update_row(float* a, const float* v, const float* w, long stride, long i, long end) {
    for (long j = 0; j < end; j += LANES) {
        vec sum = load(a + j);
        for (long k = 0; k < BAND * stride; k += stride)
            sum -= splat(v[k + i]) * load(w + k + j) + splat(w[k + i]) * load(v + k + j);
        store(a + j, sum);
    }
}

// The reflections of BAND rows, and what a thread of the reduction has of them. Every thread makes them for itself, the
// same bits: to hand them over would take longer.
struct Panel {
    const long stride;
    const bool writes;  // the band and the factors: one thread does
    const Array memory;
    // (BAND, stride) each: v and w of the last panel, x of this one, and a place for the rows of A that it is made of.
    float *v, *w, *x, *const place;
    float* rows = place;   // where these are
    double t[BAND][BAND];  // Q = I - x t x^T

    Panel(long stride, bool writes)
        : stride(stride),
          writes(writes),
          memory(zeros(4 * BAND * stride)),
          v(memory.get()),
          w(v + BAND * stride),
          x(w + BAND * stride),
          place(x + BAND * stride) {}

    // From `count` rows of A from row p on, less v w^T + w v^T: the vectors in x, and as they are kept in `rows`, which
    // are those of A themselves for a thread that is `alone`.
    void reflect(double* band, float* scales, float* a, long p, long count, bool alone) {
        rows = alone ? a + p * stride : place;
        for (long r = 0; r < count; r++) {
            float* row = rows + r * stride;
            if (!alone) std::memcpy(row, a + (p + r) * stride, (p + count) * sizeof(float));
            update_row(row, v, w, stride, p + r, p + r + 1);
            for (long c = 0; writes && c <= r; c++) band[(p + r) * WIDTH + r - c] = row[p + c];
        }
        if (p == 0) return;
        std::memset(x, 0, BAND * stride * sizeof(float));
        std::fill(&t[0][0], &t[0][0] + BAND * BAND, 0.0);
        for (long c = 0; c < count; c++) {
            const long r = count - 1 - c, i = p + r, size = p - c;
            float *row = rows + r * stride, *mine = x + c * stride, scale = 0;
            const double rest = size > 1 ? dot(row, row, size - 1) : 0, corner = row[size - 1];
            double kept = corner;
            if (rest > LEAST_SQUARE) {
                kept = std::copysign(std::sqrt(rest + corner * corner), -corner);
                scale = static_cast<float>((kept - corner) / kept);
                const float inverse = static_cast<float>(1 / (corner - kept));
                for (long j = 0; j < size - 1; j++) mine[j] = row[j] * inverse;
                mine[size - 1] = 1;
                for (float* other = rows; other < row; other += stride)
                    subtract(other, mine, scale * dot(other, mine, size), size);
            }
            if (writes) {
                scales[i] = scale;
                band[i * WIDTH + i - size + 1] = kept;
                for (long j = size; j < p; j++) band[i * WIDTH + i - j] = row[j];
            }
            std::memcpy(row, mine, size * sizeof(float));
            double along[BAND];
            for (long m = 0; m < c; m++) along[m] = dot(x + m * stride, mine, size);
            add_reflection(t, c, scale, along);
        }
    }

    // Given A x of p rows as two sums, or as four of which i and i + PAIR go together: A x t = z in w, then
    // w = z - x (t^T x^T z) / 2; and x takes the place of v.
    void follow(const float* sums, bool paired, long p) {
        for (long j = 0; j < p; j += LANES) {
            vec sum[BAND], pair[PAIR];
            for (long k = 0; k < BAND; k++) {
                for (long i = 0; i < PAIR; i++) {
                    const float* part = sums + (i * BAND + k) * stride + j;
                    pair[i] = paired ? load(part) : load(part) + load(part + PAIR * BAND * stride);
                }
                sum[k] = pair[0] + pair[1];
            }
            for (long c = BAND - 1; c >= 0; c--) {
                vec z = {};
                for (long m = 0; m <= c; m++) z += sum[m] * splat(static_cast<float>(t[m][c]));
                store(w + c * stride + j, z);
            }
        }
        double along[BAND][BAND];
        for (long m = 0; m < BAND; m++)
            for (long c = 0; c < BAND; c++) along[m][c] = dot(x + m * stride, w + c * stride, p);
        for (long c = 0; c < BAND; c++)
            for (long i = 0; i < BAND; i++) {
                double half = 0;
                for (long m = 0; m <= i; m++) half += 0.5 * t[m][i] * along[m][c];
                subtract(w + c * stride, x + i * stride, static_cast<float>(half), p);
            }
        std::swap(v, x);
    }
};

}  // namespace
