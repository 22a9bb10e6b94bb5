// Orthonormal bases of a few columns, and their Gram matrices, for gruclip/spectral: a few microseconds of work, for
// which a dozen calls of a library take ten times as long.

#include <cmath>

#include "tall.h"

namespace {

// gram (q, q) = image^T image for image (m, q), summed in double precision.
void gram_matrix(double* gram, const float* image, long m, long q, int threads) {
    constexpr long TILE = 4, WIDE = 3;  // products that are summed at once, so that a column is read a few times only
    const long stride = apart(m);
    if (m * q * q < WORTH_A_THREAD) threads = 1;
    const ArrayOf<double> turned = turn<double>(image, m, q, parts(q, TILE * WIDE) * TILE * WIDE);
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
    // Row by row from the last, each from those below it: no sum of products, which would wait for itself.
    const ArrayOf<double> rows = zeros<double>(q * q);
    for (long k = q - 1; k >= 0; k--) {
        double* row = &rows[k * q];
        row[k] = 1;
        for (long i = k + 1; i < q; i++)
            for (long j = i; j < q; j++) row[j] -= gram[k * q + i] * rows[i * q + j];
        for (long j = k; j < q; j++) row[j] /= gram[k * q + k];
    }
    std::copy(&rows[0], &rows[0] + q * q, inverse);
    return true;
}

// The largest element of gram (q, q), of columns of length 1, beside the diagonal.
double largest_beside(const double* gram, long q) {
    double largest = 0;
    for (long i = 0; i < q; i++)
        for (long j = 0; j < i; j++) largest = std::max(largest, std::fabs(gram[i * q + j]));
    return largest;
}

// Cosine of the angle between columns, at most, that are nearly orthonormal: a second round leaves what the first made.
constexpr double NEARLY = 1e-3;

// columns (n, count): in place an orthonormal basis of the same spans by Cholesky factorisations of X^T X, two `rounds`
// as Yamamoto et al. ("Roundoff error analysis of the CholeskyQR2 algorithm", 2015), or one, which leaves the rounding
// of their condition's square; false, and columns as they were, where they are too nearly dependent for that.
bool by_cholesky(float* columns, long n, long count, long rounds, int threads) {
    const long width = parts(count, PANEL) * PANEL;
    const ArrayOf<double> gram = allocate<double>(count * count), sizes = allocate<double>(count);
    const Array inverse = allocate(count * count);
    Array made = allocate(n * count), before = allocate(n * count);
    std::copy(columns, columns + n * count, made.get());
    for (long round = 0; round < rounds; round++) {
        gram_matrix(gram.get(), made.get(), n, count, threads);
        for (long j = 0; j < count; j++) {
            if (!(gram[j * count + j] > 0 && gram[j * count + j] < HUGE_VAL)) return false;
            sizes[j] = 1 / std::sqrt(gram[j * count + j]);
            if (!(sizes[j] > 1e-30 && sizes[j] < 1e30)) return false;
        }
        for (long i = 0; i < count; i++)
            for (long j = 0; j < count; j++) gram[i * count + j] *= sizes[i] * sizes[j];
        if (largest_beside(gram.get(), count) < NEARLY) rounds = 1;
        if (!inverse_root(inverse.get(), gram.get(), count)) return false;
        const Array panels = zeros(count * width);
        for (long i = 0; i < count; i++)
            for (long j = i; j < count; j++)
                panels[(j / PANEL * count + i) * PANEL + j % PANEL] =
                    static_cast<float>(inverse[i * count + j] * sizes[i]);
        before.swap(made);
#pragma omp parallel for schedule(static) num_threads(n * count * count < WORTH_A_THREAD ? 1 : threads)
        for (long first = 0; first < n; first += 8 * BLOCK)
            multiply_thin(made.get() + first * count, before.get() + first * count, panels.get(),
                          std::min<long>(8 * BLOCK, n - first), count, count);
    }
    std::copy(made.get(), made.get() + n * count, columns);
    return true;
}

}  // namespace

extern "C" {

// columns (n, count), count <= n: in place an orthonormal basis of them; after one of two `rounds` it may be one of a
// condition near 1. NaN where they are too nearly dependent for that.
void gruclip_orthonormalise(float* columns, long n, long count, long rounds, int threads) {
    if (!by_cholesky(columns, n, count, rounds, threads)) columns[0] = NAN;
}

// gram (q, q) = image^T image for image (m, q), summed in double precision.
void gruclip_gram(double* gram, const float* image, long m, long q, int threads) {
    gram_matrix(gram, image, m, q, threads);
}

}  // extern "C"
