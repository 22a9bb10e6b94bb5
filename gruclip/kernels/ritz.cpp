// What Rayleigh-Ritz does to tall thin matrices, for gruclip/spectral/subspace.py: each is a few microseconds of work,
// for which a dozen calls of a library take ten times as long. All matrices are row-major.

#include <cmath>
#include <vector>

#include "tall.h"
#include "thin.h"

namespace {

// The row of the one that is all of each column of turns (q, q), any layout; empty where they are anything else.
std::vector<long> permutation(const double* turns, long q, long down, long across) {
    std::vector<long> order(q, -1);
    for (long j = 0; j < q; j++) {
        for (long i = 0; i < q; i++) {
            const double y = turns[i * down + j * across];
            if (y == 0) continue;
            if (y != 1 || order[j] >= 0) return {};
            order[j] = i;
        }
        if (order[j] < 0) return {};
    }
    return order;
}

}  // namespace

extern "C" {

// The triplets with `values` (q) that the columns of turns (q, q), any layout, make of a basis (n, q), its image (m, q)
// and what comes back of that (n, q): left (m, q) = image turns / values, right (n, q) = columns turns, residual (n, q)
// = back turns / values - right values, and sizes (q), the norms of the residual's columns.
void gruclip_ritz_triplets(float* left, float* right, float* residual, double* sizes, const float* columns,
                           const float* image, const float* back, const double* turns, const double* values, long m,
                           long n, long q, long down, long across, int threads) {
    constexpr long ROWS = 32 * BLOCK;
    const std::vector<long> order = permutation(turns, q, down, across);
    const long width = parts(q, PANEL) * PANEL;
    const Array turn = zeros(q * width), scaled = zeros(q * width);  // panel by panel
    std::vector<float> factors(values, values + q), inverse(q);
    for (long j = 0; j < q; j++) inverse[j] = static_cast<float>(1 / std::max(values[j], 1e-300));
    for (long i = 0; i < q; i++)
        for (long j = 0; j < q; j++) {
            const double y = turns[i * down + j * across];
            const long at = (j / PANEL * q + i) * PANEL + j % PANEL;
            turn[at] = static_cast<float>(y);
            scaled[at] = static_cast<float>(y / std::max(values[j], 1e-300));
        }
    const long shares = parts(std::max(m, n), ROWS);
    std::vector<double> squares(shares * q);
    if (m * q * q < WORTH_A_THREAD) threads = 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long share = 0; share < shares; share++) {
        const long first = share * ROWS;
        if (!order.empty()) {
            for (long i = first; i < std::min(first + ROWS, m); i++)
                for (long j = 0; j < q; j++) left[i * q + j] = image[i * q + order[j]] * inverse[j];
            for (long i = first; i < std::min(first + ROWS, n); i++)
                for (long j = 0; j < q; j++) {
                    const float entry = columns[i * q + order[j]];
                    right[i * q + j] = entry;
                    residual[i * q + j] = back[i * q + order[j]] * inverse[j] - entry * factors[j];
                    squares[share * q + j] += double(residual[i * q + j]) * residual[i * q + j];
                }
            continue;
        }
        if (first < m)
            multiply_thin(left + first * q, image + first * q, scaled.get(), std::min(ROWS, m - first), q, q);
        if (first >= n) continue;
        const long rows = std::min(ROWS, n - first);
        float *mine = right + first * q, *rest = residual + first * q;
        multiply_thin(mine, columns + first * q, turn.get(), rows, q, q);
        multiply_thin(rest, back + first * q, scaled.get(), rows, q, q);
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < q; j++) {
                float& entry = rest[i * q + j];
                entry -= mine[i * q + j] * factors[j];
                squares[share * q + j] += double(entry) * entry;
            }
    }
    // One order whatever the number of threads.
    std::fill(sizes, sizes + q, 0.0);
    for (long share = 0; share < shares; share++)
        for (long j = 0; j < q; j++) sizes[j] += squares[share * q + j];
    for (long j = 0; j < q; j++) sizes[j] = std::sqrt(sizes[j]);
}

// So many `steps` of Chebyshev's recurrence T_(k + 1) = 2 S T_k - T_(k - 1), S = scale W^T W - I, W (m, n) with rows
// `down` apart: x (n, count) holds T_k of what it began as, `before` T_(k - 1), which is not read where k = 0. largest:
// the norm of the largest column of x then.
void gruclip_chebyshev(float* x, float* before, double* largest, const float* weight, const double* scale, long m,
                       long n, long count, long k, long steps, long down, int threads) {
    const Array image = allocate(m * count), product = allocate(n * count);
    float *now = x, *last = before;
    for (long step = 0; step < steps; step++) {
        there_and_back(image.get(), product.get(), weight, now, m, n, count, down, false, threads);
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
        if (size > *largest || size != size) *largest = size;  // NaN stays: nothing is above it
    *largest = std::sqrt(*largest);
}

}  // extern "C"
