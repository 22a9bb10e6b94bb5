// A matrix times a few columns, for the projection's subspace methods: the matrix is read once, where it lies.

#include "panels.h"

extern "C" {

// result (m, width) = matrix (m, n), element (i, j) at i down + j across, times columns (n, width), both row-major.
void gruclip_thin_product(float* result, const float* matrix, const float* columns, long m, long n, long width,
                          long down, long across, int threads) {
    const Array panel = allocate(n * PANEL);
    for (long left = 0; left < width; left += PANEL) {
        const int used = std::min<long>(PANEL, width - left);
        pack(panel.get(), PANEL, {columns, width, 1}, 0, n, left, used);
#pragma omp parallel for schedule(static) num_threads(threads)
        for (long first = 0; first < m; first += BLOCK) {
            float sums[BLOCK * PANEL];
            const float* rows = matrix + first * down;
            const long high = std::min<long>(BLOCK, m - first);
            if (high == BLOCK) {
                multiply_in_place<BLOCK, false>(sums, PANEL, rows, down, across, panel.get(), n);
            } else {
                for (long i = 0; i < high; i++)
                    multiply_in_place<1, false>(sums + i * PANEL, PANEL, rows + i * down, down, across, panel.get(),
                                                n);
            }
            for (long i = 0; i < high; i++)
                std::memcpy(result + (first + i) * width + left, sums + i * PANEL, used * sizeof(float));
        }
    }
}

// The sum of (a - b)^2 over two (m, n) matrices, rows `a_down` and `b_down` apart, in double precision by rows.
void gruclip_squared_distance(double* result, const float* a, const float* b, long m, long n, long a_down, long b_down,
                              int threads) {
    constexpr long ROWS = 16;
    const long parts = (m + ROWS - 1) / ROWS;
    std::unique_ptr<double[]> sums(new double[parts]);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long part = 0; part < parts; part++) {
        double sum = 0;
        for (long i = part * ROWS; i < std::min((part + 1) * ROWS, m); i++) {
            vec squares = {};
            for (long j = 0; j < n; j += LANES) {
                const int count = std::min<long>(LANES, n - j);
                const vec d = load(a + i * a_down + j, count) - load(b + i * b_down + j, count);
                squares += d * d;
            }
            for (int lane = 0; lane < LANES; lane++) sum += squares[lane];
        }
        sums[part] = sum;
    }
    // One order whatever the number of threads.
    *result = 0;
    for (long part = 0; part < parts; part++) *result += sums[part];
}

}  // extern "C"
