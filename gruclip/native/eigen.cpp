// The leading eigenpairs of a dense symmetric matrix: Householder's reduction to a tridiagonal one, bisection and
// inverse iteration for as many as are wanted, and the way back. A library's routine for all eigenpairs takes twice
// the time, and torch has none for some of them.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr long BLOCK = 4;   // rows that are worked on together
// Sums of squares in float32 that are taken for zero: below, they lose their digits. The entries of A are near 1.
constexpr double LEAST_SQUARE = 1e-30;
constexpr long DELAY = 16;  // reflections before the matrix is updated for all of them at once
constexpr long SHARES = 2;  // of a product's sums
constexpr long WORTH_A_THREAD = 300;  // rows of a product: below, starting a thread takes longer
constexpr int SHIFTS = 8;   // bisections side by side

// sums (n) += a share of A x, for a symmetric matrix whose lower half is in the rows of `a`, `stride` apart: what the
// elements of the rows from `first` contribute, each of them read once.
void add_symmetric(float* sums, const float* a, long stride, const float* x, long first, long n) {
    const long rows = std::min(BLOCK, n - first);
    const float* row = a + first * stride;
    long j = 0;
    if (rows == BLOCK) {
        vec across[BLOCK] = {}, factors[BLOCK];
#pragma GCC unroll 4
        for (long r = 0; r < BLOCK; r++) factors[r] = splat(x[first + r]);
        for (; j + LANES <= first; j += LANES) {
            const vec along = load(x + j);
            vec down = load(sums + j);
#pragma GCC unroll 4
            for (long r = 0; r < BLOCK; r++) {
                const vec elements = load(row + r * stride + j);
                across[r] += elements * along;
                down += elements * factors[r];
            }
            store(sums + j, down);
        }
        for (long r = 0; r < BLOCK; r++) sums[first + r] += total(across[r]);
    }
    for (long r = 0; r < rows; r++) {
        const float* elements = row + r * stride;
        float sum = 0;
        for (long c = j; c < first + r; c++) {
            sum += elements[c] * x[c];
            sums[c] += elements[c] * x[first + r];
        }
        sums[first + r] += sum + elements[first + r] * x[first + r];
    }
}

// product (n) = A x. Its sums are taken in `SHARES` shares, whatever the number of threads, and `scratch` holds them.
void multiply_symmetric(float* product, float* scratch, const float* a, long stride, const float* x, long n,
                        int threads) {
    std::memset(scratch, 0, SHARES * stride * sizeof(float));
    if (n < WORTH_A_THREAD) threads = 1;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (long share = 0; share < SHARES; share++)
        for (long first = share * BLOCK; first < n; first += SHARES * BLOCK)
            add_symmetric(scratch + share * stride, a, stride, x, first, n);
    for (long i = 0; i < n; i++) {
        product[i] = scratch[i];
        for (long share = 1; share < SHARES; share++) product[i] += scratch[share * stride + i];
    }
}

// ROWS rows of A, from row `first`, up to the diagonal: A -= v w^T + w v^T for `count` pairs of vectors.
template <int ROWS>
void update_rows(float* a, long stride, const float* v, const float* w, long count, long first, long n) {
    // Beyond the diagonal too, up to a whole vector inside the row: what is there is never read.
    for (long j = 0; j < first + ROWS; j += LANES) {
        const int lanes = std::min<long>(LANES, n - j);
        vec by_v[ROWS] = {}, by_w[ROWS] = {};  // apart, so that no sum waits for the other
        for (long k = 0; k < count; k++) {
            const float *vk = v + k * stride, *wk = w + k * stride;
            const vec along_v = load(vk + j, lanes), along_w = load(wk + j, lanes);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) {
                by_v[r] += splat(vk[first + r]) * along_w;
                by_w[r] += splat(wk[first + r]) * along_v;
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            float* row = a + (first + r) * stride + j;
            store(row, load(row, lanes) - (by_v[r] + by_w[r]), lanes);
        }
    }
}

// The lower half of A (n, n) -= v w^T + w v^T for `count` pairs of vectors, `stride` apart as the rows of A are.
void update(float* a, long stride, const float* v, const float* w, long count, long n, int threads) {
#pragma omp parallel for schedule(static, 8) num_threads(threads)
    for (long first = 0; first < n; first += BLOCK) {
        if (first + BLOCK <= n) {
            update_rows<BLOCK>(a, stride, v, w, count, first, n);
        } else {
            for (long i = first; i < n; i++) update_rows<1>(a, stride, v, w, count, i, n);
        }
    }
}

// How many eigenvalues of the tridiagonal matrix are above each of `SHIFTS` numbers: the signs of Sturm's sequence.
void count_above(const double* diagonal, const double* beside, long n, const double* shifts, long* counts) {
    constexpr double LEAST = 1e-290;
    double q[SHIFTS], above[SHIFTS] = {};
    for (int s = 0; s < SHIFTS; s++) q[s] = 1;
    for (long i = 0; i < n; i++) {
        const double square = i > 0 ? beside[i - 1] * beside[i - 1] : 0;
        for (int s = 0; s < SHIFTS; s++) {
            const double next = diagonal[i] - shifts[s] - square / q[s];
            q[s] = std::fabs(next) < LEAST ? -LEAST : next;
            above[s] += q[s] > 0 ? 1.0 : 0.0;
        }
    }
    for (int s = 0; s < SHIFTS; s++) counts[s] = long(above[s]);
}

// LU factors, with row exchanges, of a tridiagonal matrix less a shift.
struct Factors {
    std::vector<double> first, second, third, lower;
    std::vector<char> exchanged;

    explicit Factors(long n) : first(n), second(n), third(n), lower(n), exchanged(n) {}

    void factor(const double* diagonal, const double* beside, long n, double shift, double least) {
        double here = diagonal[0] - shift, next = n > 1 ? beside[0] : 0;
        for (long i = 0; i + 1 < n; i++) {
            const double below = beside[i], after = diagonal[i + 1] - shift, over = i + 2 < n ? beside[i + 1] : 0;
            exchanged[i] = std::fabs(below) > std::fabs(here);
            if (exchanged[i]) {
                lower[i] = here / below;
                first[i] = below, second[i] = after, third[i] = over;
                here = next - lower[i] * after;
                next = -lower[i] * over;
            } else {
                if (std::fabs(here) < least) here = least;
                lower[i] = below / here;
                first[i] = here, second[i] = next, third[i] = 0;
                here = after - lower[i] * next;
                next = over;
            }
        }
        first[n - 1] = std::fabs(here) < least ? least : here;
    }

    void solve(double* x, long n) const {
        for (long i = 0; i + 1 < n; i++) {
            if (exchanged[i]) std::swap(x[i], x[i + 1]);
            x[i + 1] -= lower[i] * x[i];
        }
        for (long i = n - 1; i >= 0; i--) {
            double sum = x[i];
            if (i + 1 < n) sum -= second[i] * x[i + 1];
            if (i + 2 < n) sum -= third[i] * x[i + 2];
            x[i] = sum / first[i];
        }
    }
};

// Rows of one vector each -= scale v v^T rows, for a reflection's v (n).
void reflect(float* rows, const float* v, float scale, long n) {
    constexpr int CHAINS = 4;
    vec sums[CHAINS] = {};
    long j = 0;
    for (; j + CHAINS <= n; j += CHAINS)
#pragma GCC unroll 4
        for (int c = 0; c < CHAINS; c++) sums[c] += splat(v[j + c]) * load(rows + (j + c) * LANES);
    for (; j < n; j++) sums[0] += splat(v[j]) * load(rows + j * LANES);
    const vec along = splat(scale) * ((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (j = 0; j < n; j++) store(rows + j * LANES, load(rows + j * LANES) - splat(v[j]) * along);
}

// Scales x to length 1; its length before.
double normalise(double* x, long n) {
    // Inverse iteration overshoots: the largest first, so that no square overflows.
    double largest = 0, sum = 0;
    for (long i = 0; i < n; i++) largest = std::max(largest, std::fabs(x[i]));
    if (!(largest > 0)) return 0;
    for (long i = 0; i < n; i++) sum += (x[i] / largest) * (x[i] / largest);
    const double size = largest * std::sqrt(sum);
    for (long i = 0; i < n; i++) x[i] /= size;
    return size;
}

}  // namespace

extern "C" {

// Q^T A Q = T for a symmetric A (n, n), of which the lower half is read and written over: row i, up to the diagonal,
// is then the vector of reflection i with the factor scales[i], and Q is the product of the reflections n - 1 ... 1.
// T has `diagonal` (n) and `beside` (n - 1).
void gruclip_tridiagonal(float* a, double* diagonal, double* beside, float* scales, long n, int threads) {
    std::vector<float> memory(2 * DELAY * n), product(n), scratch(SHARES * n);
    float *v = memory.data(), *w = v + DELAY * n;
    long delayed = 0;
    for (long i = n - 1; i >= 0; i--) {
        float* row = a + i * n;
        for (long k = 0; k < delayed; k++) {
            const float *vk = v + k * n, *wk = w + k * n;
            const float from_v = vk[i], from_w = wk[i];
            for (long j = 0; j <= i; j++) row[j] -= from_v * wk[j] + from_w * vk[j];
        }
        diagonal[i] = row[i];
        scales[i] = 0;
        if (i == 0) break;
        const double rest = double(dot(row, row, i - 1)), corner = row[i - 1];
        if (rest <= LEAST_SQUARE) {
            beside[i - 1] = corner;
        } else {
            const double size = std::copysign(std::sqrt(rest + corner * corner), -corner);
            beside[i - 1] = size;
            scales[i] = float((size - corner) / size);
            const float inverse = float(1 / (corner - size));
            for (long j = 0; j < i - 1; j++) row[j] *= inverse;
            row[i - 1] = 1;
            multiply_symmetric(product.data(), scratch.data(), a, n, row, i, threads);
            for (long k = 0; k < delayed; k++) {
                const float *vk = v + k * n, *wk = w + k * n;
                const float along_v = dot(vk, row, i), along_w = dot(wk, row, i);
                for (long j = 0; j < i; j++) product[j] -= vk[j] * along_w + wk[j] * along_v;
            }
            const float half = float(0.5 * scales[i] * scales[i] * dot(product.data(), row, i));
            float *last_v = v + delayed * n, *last_w = w + delayed * n;
            for (long j = 0; j < i; j++) {
                last_v[j] = row[j];
                last_w[j] = scales[i] * product[j] - half * row[j];
            }
            delayed++;
        }
        if (delayed == DELAY) {
            update(a, n, v, w, delayed, i, threads);
            delayed = 0;
        }
    }
}

// How many eigenvalues of T are above `threshold`.
void gruclip_count_above(long* count, const double* diagonal, const double* beside, const double* threshold, long n) {
    double shifts[SHIFTS];
    long counts[SHIFTS];
    for (double& shift : shifts) shift = *threshold;
    count_above(diagonal, beside, n, shifts, counts);
    *count = counts[0];
}

// The `wanted` largest eigenvalues of A, descending, and its eigenvectors as the columns of `vectors` (n, wanted), from
// what gruclip_tridiagonal left.
void gruclip_eigenpairs(double* values, float* vectors, const float* a, const double* diagonal, const double* beside,
                        const float* scales, long n, long wanted, int threads) {
    double low = diagonal[0], high = diagonal[0];
    for (long i = 0; i < n; i++) {
        const double radius = (i > 0 ? std::fabs(beside[i - 1]) : 0) + (i + 1 < n ? std::fabs(beside[i]) : 0);
        low = std::min(low, diagonal[i] - radius);
        high = std::max(high, diagonal[i] + radius);
    }
    const double size = std::max(std::fabs(low), std::fabs(high));
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (long left = 0; left < wanted; left += SHIFTS) {
        double lows[SHIFTS], highs[SHIFTS], middles[SHIFTS];
        long counts[SHIFTS];
        for (int s = 0; s < SHIFTS; s++) lows[s] = low, highs[s] = high;
        for (int round = 0; round < 36; round++) {
            for (int s = 0; s < SHIFTS; s++) middles[s] = (lows[s] + highs[s]) / 2;
            count_above(diagonal, beside, n, middles, counts);
            for (int s = 0; s < SHIFTS; s++) (counts[s] > left + s ? lows[s] : highs[s]) = middles[s];
        }
        for (long s = 0; s < std::min<long>(SHIFTS, wanted - left); s++) values[left + s] = (lows[s] + highs[s]) / 2;
    }

    std::vector<double> found(wanted * n);
    Factors factors(n);
    unsigned long state = 1;
    for (long k = 0; k < wanted; k++) {
        double* x = found.data() + k * n;
        factors.factor(diagonal, beside, n, values[k], 1e-16 * size + 1e-290);
        for (long i = 0; i < n; i++) {
            state = state * 6364136223846793005ul + 1442695040888963407ul;
            x[i] = double(state >> 11) / 9007199254740992.0 - 0.5;
        }
        for (int round = 0; round < 2; round++) {
            factors.solve(x, n);
            normalise(x, n);
            // Orthogonal to all that were found, since all may belong to one cluster; twice, for rounding.
            for (int again = 0; again < 2; again++) {
                for (long other = 0; other < k; other++) {
                    const double* y = found.data() + other * n;
                    const double along = dot(x, y, n);
                    for (long i = 0; i < n; i++) x[i] -= along * y[i];
                }
                normalise(x, n);
            }
        }
    }

    // Back, in columns of whole vectors.
    const long width = (wanted + LANES - 1) / LANES * LANES;
    std::vector<float> turned(n * width);
    for (long k = 0; k < wanted; k++)
        for (long i = 0; i < n; i++) turned[(k / LANES * n + i) * LANES + k % LANES] = float(found[k * n + i]);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long left = 0; left < width; left += LANES) {
        float* rows = &turned[left * n];
        for (long i = 1; i < n; i++) reflect(rows, a + i * n, scales[i], i);
        for (long i = 0; i < n; i++)
            std::memcpy(vectors + i * wanted + left, rows + i * LANES,
                        std::min<long>(LANES, wanted - left) * sizeof(float));
    }
}

}  // extern "C"
