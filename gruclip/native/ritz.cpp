// What Rayleigh-Ritz does to tall thin matrices, for gruclip/spectral/ritz.py: each is a few microseconds of work, for
// which a dozen calls of a library take ten times as long. All matrices are row-major.

#include <cmath>
#include <vector>

#include "panels.h"

namespace {

// matrix (rows, columns) transposed.
template <typename Number>
std::vector<Number> turn(const float* matrix, long rows, long columns) {
    std::vector<Number> turned(rows * columns);
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++) turned[j * rows + i] = matrix[i * columns + j];
    return turned;
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

}  // namespace

extern "C" {

// columns (n, count), count <= n - others: in place an orthonormal basis of their part that is orthogonal to `against`
// (n, others), orthonormal itself. Gram and Schmidt's method, each column until nothing more comes off; where a column
// has no part of its own, one of pseudo-random numbers takes its place. NaN where that comes to nothing.
void gruclip_orthonormalise(float* columns, const float* against, long n, long count, long others) {
    constexpr double LOST = 1e-5, SETTLED = 0.7;
    constexpr int MOST_ROUNDS = 30;
    std::vector<float> mine = turn<float>(columns, n, count), theirs = turn<float>(against, n, others);
    unsigned long state = 1;
    for (long c = 0; c < count; c++) {
        float* x = mine.data() + c * n;
        // First to a size whose square is a float32 number.
        float largest = 0;
        for (long i = 0; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
        if (largest > 0)
            for (long i = 0; i < n; i++) x[i] /= largest;
        double least = LOST * std::sqrt(dot(x, x, n)), before = HUGE_VAL;
        for (int round = 0;; round++) {
            for (long k = 0; k < others; k++) subtract(x, &theirs[k * n], dot(x, &theirs[k * n], n), n);
            for (long k = 0; k < c; k++) subtract(x, &mine[k * n], dot(x, &mine[k * n], n), n);
            const double left = std::sqrt(dot(x, x, n));
            if (!(left <= HUGE_VAL) || round == MOST_ROUNDS) {
                std::fill(columns, columns + n * count, NAN);
                return;
            }
            if (left <= least) {
                for (long i = 0; i < n; i++) {
                    x[i] = static_cast<float>(static_cast<long>(next_bits(state)) >> 11) * 0x1p-52f;
                }
                least = 0, before = HUGE_VAL;
                continue;
            }
            for (long i = 0; i < n; i++) x[i] *= static_cast<float>(1 / left);
            if (left > SETTLED * before) break;
            before = 1;
        }
    }
    for (long i = 0; i < n; i++)
        for (long c = 0; c < count; c++) columns[i * count + c] = mine[c * n + i];
}

// gram (q, q) = image^T image for image (m, q), summed in double precision.
void gruclip_gram(double* gram, const float* image, long m, long q, int threads) {
    constexpr long WORTH_A_THREAD = 1000000;  // products of numbers
    const std::vector<double> turned = turn<double>(image, m, q);
    if (m * q * q < WORTH_A_THREAD) threads = 1;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
    for (long a = 0; a < q; a++)
        for (long b = a; b < q; b++)
            gram[a * q + b] = gram[b * q + a] = dot(turned.data() + a * m, turned.data() + b * m, m);
}

// The triplets with `values` (k) that the columns of turns (q, k), any layout, make of a basis of q columns (n, q), its
// image (m, q) and what comes back of that (n, q): left (m, k) = image turns / values, right (n, k) = columns turns,
// residual (n, k) = back turns / values - right values, and sizes (k), the norms of the residual's columns.
void gruclip_ritz_triplets(float* left, float* right, float* residual, double* sizes, const float* columns,
                           const float* image, const float* back, const double* turns, const double* values, long m,
                           long n, long q, long k, long down, long across) {
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
    multiply_thin(left, image, scaled.get(), m, q, k);
    multiply_thin(right, columns, turn.get(), n, q, k);
    multiply_thin(residual, back, scaled.get(), n, q, k);
    std::fill(sizes, sizes + k, 0.0);
    for (long i = 0; i < n; i++)
        for (long j = 0; j < k; j++) {
            float& entry = residual[i * k + j];
            entry -= right[i * k + j] * factors[j];
            sizes[j] += double(entry) * entry;
        }
    for (long j = 0; j < k; j++) sizes[j] = std::sqrt(sizes[j]);
}

// Chebyshev's recurrence on columns x (n, count) in the range of I - right right^T, right (n, p) orthonormal, given
// product (n, count) = W^T W x: next = factor (scale (I - right right^T) product - x) - before, with the scale and the
// factor in `numbers`. `before` may be null. largest: the largest norm of a column of it.
void gruclip_chebyshev(float* next, double* largest, const float* product, const float* x, const float* before,
                       const float* right, const double* numbers, long n, long count, long p) {
    const float scale = static_cast<float>(numbers[0]), factor = static_cast<float>(numbers[1]);
    const long width = parts(count, LANES) * LANES;
    const Array inside = zeros(p * width), row = zeros(width);
    std::vector<double> sizes(count);
    for (long i = 0; i < n; i++) {
        std::memcpy(row.get(), product + i * count, count * sizeof(float));
        for (long k = 0; k < p; k++)
            for (long c = 0; c < width; c += LANES) {
                float* sum = inside.get() + k * width + c;
                store(sum, load(sum) + splat(right[i * p + k]) * load(row.get() + c));
            }
    }
    for (long i = 0; i < n; i++) {
        std::memcpy(row.get(), product + i * count, count * sizeof(float));
        for (long k = 0; k < p; k++)
            for (long c = 0; c < width; c += LANES)
                store(row.get() + c, load(row.get() + c) - splat(right[i * p + k]) * load(inside.get() + k * width + c));
        for (long c = 0; c < count; c++) {
            const float value = factor * (row[c] * scale - x[i * count + c]) - (before ? before[i * count + c] : 0.0f);
            next[i * count + c] = value;
            sizes[c] += double(value) * value;
        }
    }
    *largest = 0;
    for (double size : sizes)
        if (!(size <= *largest)) *largest = size;
    *largest = std::sqrt(*largest);
    for (double size : sizes)
        if (size != size) *largest = size;
}

}  // extern "C"
