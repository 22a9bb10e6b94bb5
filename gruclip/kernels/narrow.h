// A matrix times a column or a few.
#pragma once

#include "panels.h"

namespace {

// Columns that are so few that a register of them would be mostly empty: registers lie along the matrix's rows instead.
constexpr long NARROW = 3;

template <int WIDTH>
struct Narrow {
    static constexpr long HIGH = 4;  // rows, or registers of one, at once

    // result (m, WIDTH) = matrix (m, n), rows `down` apart, times columns (n, WIDTH).
    static void product(float* result, const float* matrix, const float* columns, long m, long n, long down,
                        int threads) {
        const long stride = n + LANES;
        const Array turned = zeros(WIDTH * stride);
        for (long j = 0; j < n; j++)
            for (int c = 0; c < WIDTH; c++) turned[c * stride + j] = columns[j * WIDTH + c];
#pragma omp parallel for schedule(static) num_threads(threads)
        for (long i = 0; i < m; i += HIGH) {
            const float* row[HIGH];
            for (long r = 0; r < HIGH; r++) row[r] = matrix + std::min(i + r, m - 1) * down;
            vec sums[HIGH][WIDTH];
            double totals[HIGH][WIDTH] = {};
            const auto add = [&](long j, int lanes) __attribute__((always_inline)) {
#pragma GCC unroll 4
                for (long r = 0; r < HIGH; r++) {
                    const vec e = load(row[r] + j, lanes);
#pragma GCC unroll 3
                    for (int c = 0; c < WIDTH; c++) sums[r][c] += e * load(turned.get() + c * stride + j);
                }
            };
            for (long j = 0; j < n;) {
                for (auto& row : sums)
                    for (vec& sum : row) sum = vec{};
                const long end = std::min(j + RUN * LANES, n);
                for (; j + LANES <= end; j += LANES) add(j, LANES);
                if (j < end) add(j, static_cast<int>(end - j));
                j = end;
                for (long r = 0; r < HIGH; r++)
                    for (int c = 0; c < WIDTH; c++) totals[r][c] += total(sums[r][c]);
            }
            for (long r = 0; r < std::min(HIGH, m - i); r++)
                for (int c = 0; c < WIDTH; c++) result[(i + r) * WIDTH + c] = static_cast<float>(totals[r][c]);
        }
    }

    // The same for a transposed matrix, column j of which lies at j across.
    static void product_turned(float* result, const float* matrix, const float* columns, long m, long n, long across,
                               int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (long i = 0; i < m; i += HIGH * LANES) {
            vec sums[HIGH][WIDTH];
            double totals[HIGH][WIDTH][LANES] = {};
            const long high = std::min(HIGH * LANES, m - i);
            const auto add = [&](long j, long lanes) __attribute__((always_inline)) {
#pragma GCC unroll 4
                for (long r = 0; r < HIGH; r++) {
                    const int here = static_cast<int>(std::clamp<long>(lanes - r * LANES, 0, LANES));
                    const vec e = load(matrix + j * across + i + r * LANES, here);
#pragma GCC unroll 3
                    for (int c = 0; c < WIDTH; c++) sums[r][c] += e * splat(columns[j * WIDTH + c]);
                }
            };
            for (long j = 0; j < n;) {
                for (auto& row : sums)
                    for (vec& sum : row) sum = vec{};
                const long end = std::min(j + RUN, n);
                if (high == HIGH * LANES)
                    for (; j < end; j++) add(j, HIGH * LANES);
                else
                    for (; j < end; j++) add(j, high);
                for (long r = 0; r < HIGH; r++)
                    for (int c = 0; c < WIDTH; c++)
                        for (int l = 0; l < LANES; l++) totals[r][c][l] += sums[r][c][l];
            }
            for (long l = 0; l < high; l++)
                for (int c = 0; c < WIDTH; c++)
                    result[(i + l) * WIDTH + c] = static_cast<float>(totals[l / LANES][c][l % LANES]);
        }
    }
};

template <int WIDTH>
void narrow_product(float* result, const float* matrix, const float* columns, long m, long n, long down, long across,
                    int threads) {
    if (across == 1) Narrow<WIDTH>::product(result, matrix, columns, m, n, down, threads);
    else Narrow<WIDTH>::product_turned(result, matrix, columns, m, n, across, threads);
}

}  // namespace
