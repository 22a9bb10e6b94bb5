// Reflections make a dense symmetric matrix one of BAND diagonals on either side of the main one, in a pass over it for
// every BAND rows that both updates it and multiplies by it. A tridiagonal matrix takes a pass for every row, which is
// twice the time.

#include "band.h"

#include <cmath>

#include "panels.h"

namespace {

// Sums of squares in float32 that are taken for zero: below, they lose their digits. The entries of A are near 1.
constexpr double LEAST_SQUARE = 1e-30;
constexpr long SHARES = 4;            // of a product's sums, whatever the number of threads
constexpr long WORTH_A_THREAD = 160;  // rows: below, starting a thread takes longer

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

// A share of the rows of A (n, n), of which the lower half is there: A -= v w^T + w v^T and, with what results,
// sums (BAND, n) += A x, for BAND vectors v, w and x each, `stride` apart as the rows of A are.
void update_and_multiply(float* a, float* sums, const float* v, const float* w, const float* x, long stride, long n,
                         long share) {
    constexpr long ROWS = 2;
    ivec lane;
    for (int l = 0; l < LANES; l++) lane[l] = l;
    for (long first = share * LANES; first < n; first += SHARES * LANES)
        for (long row = first; row < std::min<long>(first + LANES, n); row += ROWS) {
            vec at_v[BAND][ROWS], at_w[BAND][ROWS], at_x[BAND][ROWS], across[BAND][ROWS] = {};
            for (long k = 0; k < BAND; k++)
                for (long r = 0; r < ROWS; r++) {
                    at_v[k][r] = splat(v[k * stride + row + r]);
                    at_w[k][r] = splat(w[k * stride + row + r]);
                    at_x[k][r] = splat(x[k * stride + row + r]);
                }
            float* place = a + row * stride;
            const auto step = [&](long j, bool diagonal) __attribute__((always_inline)) {
                vec e[ROWS], below[ROWS];
#pragma GCC unroll 2
                for (long r = 0; r < ROWS; r++) e[r] = load(place + r * stride + j);
#pragma GCC unroll 4
                for (long k = 0; k < BAND; k++) {
                    const vec along_v = load(v + k * stride + j), along_w = load(w + k * stride + j);
#pragma GCC unroll 2
                    for (long r = 0; r < ROWS; r++) {
                        e[r] -= at_v[k][r] * along_w;
                        e[r] -= at_w[k][r] * along_v;
                    }
                }
#pragma GCC unroll 2
                for (long r = 0; r < ROWS; r++) {
                    store(place + r * stride + j, e[r]);
                    below[r] = e[r];
                    if (!diagonal) continue;
                    // Up to the diagonal, which counts once.
                    below[r] = select(lane < static_cast<int>(row + r - first), e[r], vec{});
                    e[r] = select(lane <= static_cast<int>(row + r - first), e[r], vec{});
                }
#pragma GCC unroll 4
                for (long k = 0; k < BAND; k++) {
                    const vec along = load(x + k * stride + j);
                    vec down = load(sums + k * stride + j);
#pragma GCC unroll 2
                    for (long r = 0; r < ROWS; r++) {
                        across[k][r] += e[r] * along;
                        down += below[r] * at_x[k][r];
                    }
                    store(sums + k * stride + j, down);
                }
            };
            for (long j = 0; j < first; j += LANES) step(j, false);
            step(first, true);
            for (long k = 0; k < BAND; k++)
                for (long r = 0; r < ROWS; r++) sums[k * stride + row + r] += total(across[k][r]);
        }
}

}  // namespace

extern "C" {

// Q^T A Q = B for a symmetric A (n, n), rows `stride` apart, n + 16 floats or more, of which the lower half is read and
// written over: row i begins then with the vector of a reflection with the factor scales[i], and Q is their product, the
// last row's first. B (i, i - d) is band[i, d] for d = 0 ... BAND.
void gruclip_band(float* a, double* band, float* scales, long n, long stride, int threads) {
    const Array memory = zeros((3 + SHARES) * BAND * stride);
    float *v = memory.get(), *w = v + BAND * stride, *x = w + BAND * stride, *sums = x + BAND * stride;
    std::fill(band, band + n * WIDTH, 0.0);
    std::fill(scales, scales + n, 0.0f);
    for (long p = (n - 1) / BAND * BAND; p >= 0; p -= BAND) {
        const long rows = std::min(BAND, n - p);
        for (long r = 0; r < rows; r++) {
            float* row = a + (p + r) * stride;
            update_row(row, v, w, stride, p + r, p + r + 1);
            for (long c = 0; c <= r; c++) band[(p + r) * WIDTH + r - c] = row[p + c];
        }
        if (p == 0) break;
        std::memset(x, 0, BAND * stride * sizeof(float));
        double t[BAND][BAND] = {};
        for (long c = 0; c < rows; c++) {
            const long i = p + rows - 1 - c, size = p - c;
            float *row = a + i * stride, *mine = x + c * stride;
            const double rest = size > 1 ? dot(row, row, size - 1) : 0, corner = row[size - 1];
            double kept = corner;
            if (rest > LEAST_SQUARE) {
                kept = std::copysign(std::sqrt(rest + corner * corner), -corner);
                scales[i] = static_cast<float>((kept - corner) / kept);
                const float inverse = static_cast<float>(1 / (corner - kept));
                for (long j = 0; j < size - 1; j++) mine[j] = row[j] * inverse;
                mine[size - 1] = 1;
                for (float* other = a + p * stride; other < row; other += stride)
                    subtract(other, mine, scales[i] * dot(other, mine, size), size);
            }
            band[i * WIDTH + i - size + 1] = kept;
            for (long j = size; j < p; j++) band[i * WIDTH + i - j] = row[j];
            std::memcpy(row, mine, size * sizeof(float));
            // Q = I - x t x^T
            double along[BAND];
            for (long m = 0; m < c; m++) along[m] = dot(x + m * stride, mine, size);
            t[c][c] = scales[i];
            for (long m = 0; m < c; m++)
                for (long l = m; l < c; l++) t[m][c] -= scales[i] * t[m][l] * along[l];
        }
        if (p < WORTH_A_THREAD) threads = 1;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
        for (long share = 0; share < SHARES; share++) {
            float* mine = sums + share * BAND * stride;
            for (long k = 0; k < BAND; k++) std::memset(mine + k * stride, 0, (p + LANES) * sizeof(float));
            update_and_multiply(a, mine, v, w, x, stride, p, share);
        }
        // A x t = z in w, then w = z - x (t^T x^T z) / 2.
        for (long j = 0; j < p; j += LANES) {
            vec sum[BAND];
            for (long k = 0; k < BAND; k++) {
                sum[k] = load(sums + k * stride + j);
                for (long share = 1; share < SHARES; share++) sum[k] += load(sums + (share * BAND + k) * stride + j);
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
}

}  // extern "C"
