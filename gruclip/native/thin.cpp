// A matrix times a few columns, for the projection's subspace methods: the matrix is read once, where it lies.

#include "panels.h"

namespace {

// Of a transposed matrix whose elements lie so many floats apart or more, pieces of DEEP by PIECE are copied together
// first: a cache line of it serves several blocks of rows, and is otherwise gone before the next one needs it.
constexpr long FAR_APART = 1024, DEEP = 32, TILES = 16, PIECE = TILES * BLOCK;

// sums (high, PANEL) = rows of a matrix, `down` apart and their elements `across` apart, times panel (n, PANEL), or +=.
template <bool ADD>
void multiply_rows(float* sums, const float* rows, long down, long across, const float* panel, long high, long n) {
    if (high == BLOCK) return multiply_in_place<BLOCK, ADD>(sums, PANEL, rows, down, across, panel, n);
    for (long i = 0; i < high; i++)
        multiply_in_place<1, ADD>(sums + i * PANEL, PANEL, rows + i * down, down, across, panel, n);
}

// The same for up to PIECE rows of a transposed matrix: row i begins at rows + i, its elements are `across` apart.
void multiply_turned(float* sums, const float* rows, long across, const float* panel, long high, long n) {
    float piece[DEEP * PIECE];
    for (long k = 0; k < n; k += DEEP) {
        const long deep = std::min(DEEP, n - k);
        for (long i = 0; i < deep; i++) std::memcpy(piece + i * PIECE, rows + (k + i) * across, high * sizeof(float));
        for (long i = 0; i < high; i += BLOCK)
            (k == 0 ? multiply_rows<false> : multiply_rows<true>)(sums + i * PANEL, piece + i, 1, PIECE,
                                                                  panel + k * PANEL, std::min<long>(BLOCK, high - i),
                                                                  deep);
    }
}

}  // namespace

extern "C" {

// result (m, width) = matrix (m, n), element (i, j) at i down + j across, times columns (n, width), both row-major.
void gruclip_thin_product(float* result, const float* matrix, const float* columns, long m, long n, long width,
                          long down, long across, int threads) {
    const Array panel = allocate(n * PANEL);
    const bool turned = down == 1 && across >= FAR_APART;
    const long step = turned ? PIECE : BLOCK;
    for (long left = 0; left < width; left += PANEL) {
        const int used = std::min<long>(PANEL, width - left);
        pack(panel.get(), PANEL, {columns, width, 1}, 0, n, left, used);
#pragma omp parallel for schedule(static) num_threads(threads)
        for (long first = 0; first < m; first += step) {
            float sums[PIECE * PANEL];
            const float* rows = matrix + first * down;
            const long high = std::min(step, m - first);
            if (turned) multiply_turned(sums, rows, across, panel.get(), high, n);
            else multiply_rows<false>(sums, rows, down, across, panel.get(), high, n);
            for (long i = 0; i < high; i++)
                std::memcpy(result + (first + i) * width + left, sums + i * PANEL, used * sizeof(float));
        }
    }
}

// image (m) = W x and back (n) = W^T image for a matrix W (m, n), rows `down` apart, in one pass over it. What comes back
// is summed in SHARES shares, whatever the number of threads.
void gruclip_there_and_back(float* image, float* back, const float* matrix, const float* x, long m, long n, long down,
                            int threads) {
    constexpr long SHARES = 8, HIGH = 4;
    const Array sums = zeros(SHARES * n);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long share = 0; share < SHARES; share++) {
        float* sum = sums.get() + share * n;
        const long end = m * (share + 1) / SHARES;
        for (long i = m * share / SHARES; i < end; i += HIGH) {
            const long high = std::min(HIGH, end - i);
            const float* row[HIGH];
            for (long r = 0; r < HIGH; r++) row[r] = matrix + (i + std::min(r, high - 1)) * down;
            vec products[HIGH] = {};
            for (long j = 0; j < n; j += LANES) {
                const int lanes = std::min<long>(LANES, n - j);
                const vec along = load(x + j, lanes);
#pragma GCC unroll 4
                for (long r = 0; r < HIGH; r++) products[r] += load(row[r] + j, lanes) * along;
            }
            vec factors[HIGH] = {};
            for (long r = 0; r < high; r++) factors[r] = splat(image[i + r] = total(products[r]));
            for (long j = 0; j < n; j += LANES) {
                const int lanes = std::min<long>(LANES, n - j);
                vec part = load(sum + j, lanes);
#pragma GCC unroll 4
                for (long r = 0; r < HIGH; r++) part += load(row[r] + j, lanes) * factors[r];
                store(sum + j, part, lanes);
            }
        }
    }
    for (long j = 0; j < n; j++) {
        back[j] = sums[j];
        for (long share = 1; share < SHARES; share++) back[j] += sums[share * n + j];
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
