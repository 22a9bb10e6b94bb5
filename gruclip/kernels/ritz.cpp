// What Rayleigh-Ritz does to tall thin matrices, for gruclip/spectral/subspace.py: each is a few microseconds of work,
// for which a dozen calls of a library take ten times as long. All matrices are row-major.

#include <cmath>
#include <vector>

#include "panels.h"
#include "thin.h"

namespace {

constexpr long WORTH_A_THREAD = 1000000;  // products of numbers: below, starting a thread takes longer

// How far apart columns of n numbers are kept: by a power of two they would drive each other out of the cache.
inline long apart(long n) { return n + 16; }

// The columns of matrix (rows, columns), one after the other.
template <typename Number>
void turn(const float* matrix, long rows, long columns, Number* turned) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++) turned[j * apart(rows) + i] = matrix[i * columns + j];
}

// The same, and zeros up to `most` of them.
template <typename Number>
std::vector<Number> turn(const float* matrix, long rows, long columns, long most) {
    std::vector<Number> turned(apart(rows) * most);
    turn(matrix, rows, columns, turned.data());
    return turned;
}

void turn_back(float* matrix, long columns, const float* turned, long rows, long count) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < count; j++) matrix[i * columns + j] = turned[j * apart(rows) + i];
}

// Columns of n numbers one after the other, `others` of them orthonormal: in place an orthonormal basis of the part of
// the `count` that follow that is orthogonal to these. Gram and Schmidt's method, each column until nothing more comes
// off; where a column has no part of its own, one of pseudo-random numbers takes its place. False where that comes to
// nothing.
bool orthonormalise(float* all, long n, long others, long count) {
    constexpr double LOST = 1e-5, SETTLED = 0.7;
    constexpr int MOST_ROUNDS = 30;
    const long stride = apart(n);
    unsigned long state = 1;
    for (long c = others; c < others + count; c++) {
        float* x = all + c * stride;
        // First to a size whose square is a float32 number.
        float largest = 0;
        for (long i = 0; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
        if (largest > 0)
            for (long i = 0; i < n; i++) x[i] /= largest;
        double least = LOST * std::sqrt(dot(x, x, n)), before = HUGE_VAL;
        for (int round = 0;; round++) {
            for (long k = 0; k < c; k++) {
                const float* other = all + k * stride;
                subtract(x, other, dot(x, other, n), n);
            }
            const double left = std::sqrt(dot(x, x, n));
            if (!(left <= HUGE_VAL) || round == MOST_ROUNDS) return false;
            if (left <= least) {
                for (long i = 0; i < n; i++)
                    x[i] = static_cast<float>(static_cast<long>(next_bits(state)) >> 11) * 0x1p-52f;
                least = 0, before = HUGE_VAL;
                continue;
            }
            for (long i = 0; i < n; i++) x[i] *= static_cast<float>(1 / left);
            if (left > SETTLED * before) break;
            before = 1;
        }
    }
    return true;
}

// result (rows, width) = matrix (rows, depth) times `panels` (depth, width), packed.
void multiply_thin(float* result, const float* matrix, const float* panels, long rows, long depth, long width) {
    for (long left = 0; left < width; left += PANEL, panels += depth * PANEL) {
        const long used = std::min<long>(PANEL, width - left);
        for (long first = 0; first < rows; first += BLOCK) {
            float sums[BLOCK * PANEL];
            const long high = std::min<long>(BLOCK, rows - first);
            multiply_rows<BLOCK, false>(sums, PANEL, matrix + first * depth, depth, 1, panels, high, depth);
            for (long i = 0; i < high; i++)
                std::memcpy(result + (first + i) * width + left, sums + i * PANEL, used * sizeof(float));
        }
    }
}

// gram (q, q) = image^T image for image (m, q), summed in double precision.
void gram_matrix(double* gram, const float* image, long m, long q, int threads) {
    constexpr long TILE = 4, WIDE = 3;  // products that are summed at once, so that a column is read a few times only
    const long stride = apart(m);
    const std::vector<double> turned = turn<double>(image, m, q, parts(q, TILE * WIDE) * TILE * WIDE);
    if (m * q * q < WORTH_A_THREAD) threads = 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long a = 0; a < q; a += TILE)
        for (long b = 0; b < a + TILE; b += WIDE) {
            dvec sums[TILE][WIDE] = {};
            double rest[TILE][WIDE] = {};
            const double *x = &turned[a * stride], *y = &turned[b * stride];
            long i = 0;
            for (; i + DOUBLES <= m; i += DOUBLES)
#pragma GCC unroll 4
                for (long c = 0; c < WIDE; c++) {
                    const dvec along = load(y + c * stride + i);
#pragma GCC unroll 4
                    for (long r = 0; r < TILE; r++) sums[r][c] += load(x + r * stride + i) * along;
                }
            for (; i < m; i++)
                for (long r = 0; r < TILE; r++)
                    for (long c = 0; c < WIDE; c++) rest[r][c] += x[r * stride + i] * y[c * stride + i];
            for (long r = a; r < std::min(a + TILE, q); r++)
                for (long c = b; c < std::min(b + WIDE, r + 1); c++)
                    gram[r * q + c] = gram[c * q + r] = total(sums[r - a][c - b]) + rest[r - a][c - b];
        }
}

// The inverse of the upper triangular R with R^T R = gram (q, q), in float; false where rounding leaves none to speak
// of. Of columns of equal size: `gram` is changed.
bool inverse_root(float* inverse, double* gram, long q) {
    constexpr double LOST = 1e-11;
    for (long j = 0; j < q; j++) {
        double* row = gram + j * q;
        for (long i = 0; i < j; i++)
            for (long k = j; k < q; k++) row[k] -= gram[i * q + j] * gram[i * q + k];
        if (!(row[j] > LOST)) return false;
        const double root = std::sqrt(row[j]);
        for (long k = j; k < q; k++) row[k] /= root;
    }
    std::vector<double> column(q);
    std::fill(inverse, inverse + q * q, 0.0f);
    for (long j = 0; j < q; j++) {
        std::fill(column.begin(), column.end(), 0.0);
        column[j] = 1 / gram[j * q + j];
        for (long k = j - 1; k >= 0; k--) {
            double sum = 0;
            for (long i = k + 1; i <= j; i++) sum += gram[k * q + i] * column[i];
            column[k] = -sum / gram[k * q + k];
        }
        for (long k = 0; k <= j; k++) inverse[k * q + j] = static_cast<float>(column[k]);
    }
    return true;
}

// columns (n, count): in place an orthonormal basis of the same spans by two Cholesky factorisations of X^T X, as
// Yamamoto et al. ("Roundoff error analysis of the CholeskyQR2 algorithm", 2015); false, and columns as they were,
// where they are too nearly dependent for that.
bool by_cholesky(float* columns, long n, long count, int threads) {
    const long width = parts(count, PANEL) * PANEL;
    std::vector<double> gram(count * count), sizes(count);
    std::vector<float> inverse(count * count), made(columns, columns + n * count), before(n * count);
    for (int round = 0; round < 2; round++) {
        gram_matrix(gram.data(), made.data(), n, count, threads);
        for (long j = 0; j < count; j++) {
            if (!(gram[j * count + j] > 0 && gram[j * count + j] < HUGE_VAL)) return false;
            sizes[j] = 1 / std::sqrt(gram[j * count + j]);
            if (!(sizes[j] > 1e-30 && sizes[j] < 1e30)) return false;
        }
        for (long i = 0; i < count; i++)
            for (long j = 0; j < count; j++) gram[i * count + j] *= sizes[i] * sizes[j];
        if (!inverse_root(inverse.data(), gram.data(), count)) return false;
        const Array panels = zeros(count * width);
        for (long i = 0; i < count; i++)
            for (long j = i; j < count; j++)
                panels[(j / PANEL * count + i) * PANEL + j % PANEL] =
                    static_cast<float>(inverse[i * count + j] * sizes[i]);
        before.swap(made);
#pragma omp parallel for schedule(static) num_threads(n * count * count < WORTH_A_THREAD ? 1 : threads)
        for (long first = 0; first < n; first += 8 * BLOCK)
            multiply_thin(made.data() + first * count, before.data() + first * count, panels.get(),
                          std::min<long>(8 * BLOCK, n - first), count, count);
    }
    std::copy(made.begin(), made.end(), columns);
    return true;
}

// rows (n, count) less their part in the span of the orthonormal columns of right (n, p).
void take_off(float* rows, const float* right, long n, long count, long p, int threads) {
    constexpr long SHARES = 8;
    const long width = parts(count, LANES) * LANES;
    const Array inside = zeros(SHARES * p * width);
    if (n * count * p < WORTH_A_THREAD / 2) threads = 1;
#pragma omp parallel num_threads(threads)
    {
        const Array row = zeros(width);
#pragma omp for schedule(static)
        for (long share = 0; share < SHARES; share++)
            for (long i = n * share / SHARES; i < n * (share + 1) / SHARES; i++) {
                std::memcpy(row.get(), rows + i * count, count * sizeof(float));
                float* sum = inside.get() + share * p * width;
                for (long k = 0; k < p; k++, sum += width)
                    for (long c = 0; c < width; c += LANES)
                        store(sum + c, load(sum + c) + splat(right[i * p + k]) * load(row.get() + c));
            }
#pragma omp for schedule(static)
        for (long k = 0; k < p * width; k += LANES)
            for (long share = 1; share < SHARES; share++)
                store(inside.get() + k, load(inside.get() + k) + load(inside.get() + share * p * width + k));
#pragma omp for schedule(static)
        for (long i = 0; i < n; i++) {
            std::memcpy(row.get(), rows + i * count, count * sizeof(float));
            for (long k = 0; k < p; k++)
                for (long c = 0; c < width; c += LANES)
                    store(row.get() + c,
                          load(row.get() + c) - splat(right[i * p + k]) * load(inside.get() + k * width + c));
            std::memcpy(rows + i * count, row.get(), count * sizeof(float));
        }
    }
}

}  // namespace

extern "C" {

// columns (n, count), count <= n - others: in place an orthonormal basis of their part that is orthogonal to `against`
// (n, others), orthonormal itself. NaN where that comes to nothing.
void gruclip_orthonormalise(float* columns, const float* against, long n, long count, long others, int threads) {
    if (others == 0 && by_cholesky(columns, n, count, threads)) return;
    std::vector<float> all = turn<float>(against, n, others, others + count);
    float* mine = &all[others * apart(n)];
    turn(columns, n, count, mine);
    if (orthonormalise(all.data(), n, others, count)) turn_back(columns, count, mine, n, count);
    else columns[0] = NAN;
}

// gram (q, q) = image^T image for image (m, q), summed in double precision.
void gruclip_gram(double* gram, const float* image, long m, long q, int threads) {
    gram_matrix(gram, image, m, q, threads);
}

// The triplets with `values` (k) that the columns of turns (q, k), any layout, make of a basis of q columns (n, q), its
// image (m, q) and what comes back of that (n, q): left (m, k) = image turns / values, right (n, k) = columns turns,
// residual (n, k) = back turns / values - right values, and sizes (k), the norms of the residual's columns.
void gruclip_ritz_triplets(float* left, float* right, float* residual, double* sizes, const float* columns,
                           const float* image, const float* back, const double* turns, const double* values, long m,
                           long n, long q, long k, long down, long across, int threads) {
    constexpr long ROWS = 32 * BLOCK;
    const long width = parts(k, PANEL) * PANEL;
    const Array turn = zeros(q * width), scaled = zeros(q * width);  // panel by panel
    std::vector<float> factors(values, values + k);
    for (long i = 0; i < q; i++)
        for (long j = 0; j < k; j++) {
            const double y = turns[i * down + j * across];
            const long at = (j / PANEL * q + i) * PANEL + j % PANEL;
            turn[at] = static_cast<float>(y);
            scaled[at] = static_cast<float>(y / std::max(values[j], 1e-300));
        }
    const long shares = parts(std::max(m, n), ROWS);
    std::vector<double> squares(shares * k);
    if (m * q * k < WORTH_A_THREAD) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long share = 0; share < shares; share++) {
        const long first = share * ROWS;
        if (first < m)
            multiply_thin(left + first * k, image + first * q, scaled.get(), std::min(ROWS, m - first), q, k);
        if (first >= n) continue;
        const long rows = std::min(ROWS, n - first);
        float *mine = right + first * k, *rest = residual + first * k;
        multiply_thin(mine, columns + first * q, turn.get(), rows, q, k);
        multiply_thin(rest, back + first * q, scaled.get(), rows, q, k);
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < k; j++) {
                float& entry = rest[i * k + j];
                entry -= mine[i * k + j] * factors[j];
                squares[share * k + j] += double(entry) * entry;
            }
    }
    // One order whatever the number of threads.
    std::fill(sizes, sizes + k, 0.0);
    for (long share = 0; share < shares; share++)
        for (long j = 0; j < k; j++) sizes[j] += squares[share * k + j];
    for (long j = 0; j < k; j++) sizes[j] = std::sqrt(sizes[j]);
}

// So many `steps` of Chebyshev's recurrence T_(k + 1) = 2 S T_k - T_(k - 1), S = scale A - I, for A = (I - P) W^T W
// (I - P), W (m, n) with rows `down` apart and P = right right^T, right (n, p) orthonormal: x (n, count), in the range
// of I - P, holds T_k of what it began as, `before` T_(k - 1), which is not read where k = 0. largest: the norm of the
// largest column of x then.
void gruclip_chebyshev(float* x, float* before, double* largest, const float* weight, const float* right,
                       const double* scale, long m, long n, long count, long p, long k, long steps, long down,
                       int threads) {
    const Array image = allocate(m * count), product = allocate(n * count);
    float *now = x, *last = before;
    for (long step = 0; step < steps; step++) {
        gruclip_there_and_back(image.get(), product.get(), weight, now, m, n, count, down, threads);
        if (p > 0) take_off(product.get(), right, n, count, p, threads);
        const float factor = k + step == 0 ? 1.0f : 2.0f, stretch = factor * static_cast<float>(*scale);
        if (k + step == 0)
            for (long i = 0; i < n * count; i++) last[i] = product[i] * stretch - now[i];
        else
            for (long i = 0; i < n * count; i++) last[i] = product[i] * stretch - factor * now[i] - last[i];
        std::swap(now, last);
    }
    if (now != x) std::swap_ranges(x, x + n * count, before);
    std::vector<double> sizes(count);
    for (long i = 0; i < n; i++)
        for (long c = 0; c < count; c++) sizes[c] += double(x[i * count + c]) * x[i * count + c];
    *largest = 0;
    for (double size : sizes)
        if (!(size <= *largest)) *largest = size;
    *largest = std::sqrt(*largest);
    for (double size : sizes)
        if (size != size) *largest = size;
}

}  // extern "C"
