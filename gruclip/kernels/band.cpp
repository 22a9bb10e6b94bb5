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
constexpr long ROWS_FOR_THREADS = 160;  // rows: below, starting a thread takes longer

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

// Vectors of a row that are worked on while they are in registers, and in the first-level cache.
constexpr int TILE = 3, CHUNK = 4 * TILE;

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

// sums (BAND, COUNT vectors) += x^T A for `rows` rows of A, with the numbers of the rows at x.
template <int COUNT>
void add_down(float* sums, const float* a, const float* x, long stride, long rows) {
    vec s[BAND][COUNT];
    load_rows(s, sums, stride);
    for (long r = 0; r < rows; r++, a += stride) {
        vec e[COUNT];
#pragma GCC unroll 4
        for (int c = 0; c < COUNT; c++) e[c] = in_register(load(a + c * LANES));
#pragma GCC unroll 4
        for (long k = 0; k < BAND; k++)
#pragma GCC unroll 4
            for (int c = 0; c < COUNT; c++) s[k][c] += splat(x[k * stride + r]) * e[c];
    }
    store_rows(sums, s, stride);
}

// sums (rows, BAND, a vector each) = A x lane by lane, for `count` vectors of `rows` rows, a multiple of BAND.
void multiply_across(vec (*sums)[BAND], const float* a, const float* x, long stride, long rows, long count) {
    for (long r = 0; r < rows; r += BAND, a += BAND * stride) {
        vec s[BAND][BAND] = {};
        for (long j = 0; j < count * LANES; j += LANES) {
            vec along[BAND];
#pragma GCC unroll 4
            for (long k = 0; k < BAND; k++) along[k] = in_register(load(x + k * stride + j));
#pragma GCC unroll 4
            for (long i = 0; i < BAND; i++) {
                const vec e = in_register(load(a + i * stride + j));
#pragma GCC unroll 4
                for (long k = 0; k < BAND; k++) s[i][k] += e * along[k];
            }
        }
        std::memcpy(sums + r, s, sizeof s);
    }
}

// A share of the rows of A (n, n), of which the lower half is there: A -= v w^T + w v^T and, with what results,
// sums (BAND, n) += A x, for BAND vectors v, w and x each, `stride` apart as the rows of A are; n a multiple of BAND.
void update_and_multiply(float* a, float* sums, const float* v, const float* w, const float* x, long stride, long n,
                         long share) {
    ivec lane;
    for (int l = 0; l < LANES; l++) lane[l] = l;
    for (long turn = 0, first = share * LANES; first < n; turn++) {
        float* group = a + first * stride;
        const long rows = std::min<long>(LANES, n - first);
        vec across[LANES][BAND] = {};
        for (long j = 0; j <= first; j += CHUNK * LANES) {
            // The last vector is that of the diagonal.
            const long before = (first - j) / LANES, left = std::min<long>(CHUNK, before);
            const long count = std::min<long>(CHUNK, before + 1);
            for (long r = 0; r < rows; r += BAND)
                for (long c = 0; c < count; c += TILE) {
                    const long at = j + c * LANES, row = first + r;
                    (count - c >= TILE ? update<TILE>
                     : count - c == 2  ? update<2>
                                       : update<1>)(group + r * stride + at, v + row, w + row, v + at, w + at, stride);
                }
            for (long c = 0; c < left; c += TILE) {
                const long at = j + c * LANES;
                (left - c >= TILE ? add_down<TILE>
                 : left - c == 2  ? add_down<2>
                                  : add_down<1>)(sums + at, group + at, x + first, stride, rows);
            }
        }
        multiply_across(across, group, x, stride, rows, first / LANES);
        // At the diagonal, up to it, which counts once.
        for (long r = 0; r < rows; r++) {
            const vec e = load(group + r * stride + first);
            const int diagonal = static_cast<int>(r);
            const vec below = select(lane < diagonal, e, vec{}), whole = select(lane <= diagonal, e, vec{});
            for (long k = 0; k < BAND; k++) {
                float* down = sums + k * stride + first;
                store(down, load(down) + splat(x[k * stride + first + r]) * below);
                across[r][k] += load(x + k * stride + first) * whole;
            }
        }
        for (long k = 0; k < BAND; k++) {
            vec mine[LANES];
#pragma GCC unroll 16
            for (long r = 0; r < LANES; r++) mine[r] = across[r][k];
            float* down = sums + k * stride + first;
            store(down, load(down) + totals(mine, LANES));
        }
        first = ((turn + 1) * SHARES + (turn % 2 ? share : SHARES - 1 - share)) * LANES;
    }
}

// Rows of a (n, n) up to the vector of the diagonal = those of matrix over its largest number, which is returned; 1
// where that is zero.
double scaled(float* a, const float* matrix, long n, long stride, long down, int threads) {
    float largest = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(max : largest)
    for (long i = 0; i < n; i++) {
        vec most = {};
        for (long j = 0; j <= i; j += LANES) {
            const vec row = load(matrix + i * down + j, std::min<long>(LANES, i + 1 - j));
            most = row > most ? row : (-row > most ? -row : most);
        }
        for (int lane = 0; lane < LANES; lane++) largest = std::max(largest, most[lane]);
    }
    if (!(largest > 0)) largest = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < n; i++)
        for (long j = 0; j <= i; j += LANES)
            store(a + i * stride + j, load(matrix + i * down + j, std::min<long>(LANES, i + 1 - j)) / largest);
    return largest;
}

}  // namespace

extern "C" {

// Q^T A Q = B for a symmetric matrix = size A (n, n), rows `down` apart, of which the lower half is read; `size` is its
// largest number, since squares are taken. Row i of `a` (n, stride), n + 16 floats or more, then begins with the vector
// of a reflection with the factor scales[i], and Q is their product, the last row's first. B (i, i - d) is band[i, d]
// for d = 0 ... BAND.
void gruclip_band(float* a, double* band, float* scales, double* size, const float* matrix, long n, long stride,
                  long down, int threads) {
    *size = scaled(a, matrix, n, stride, down, n < ROWS_FOR_THREADS ? 1 : threads);
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
            add_reflection(t, c, scales[i], along);
        }
        if (p < ROWS_FOR_THREADS) threads = 1;
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
