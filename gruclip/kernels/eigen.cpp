// The leading eigenpairs of a dense symmetric matrix: band.cpp's reduction, bisection and inverse iteration on the band
// for as many as are wanted, and the way back. A library's routine for all eigenpairs takes three times as long, and
// torch has none for some of them.

#include "band.h"

#include <cmath>
#include <vector>

#include "panels.h"
#include "sturm.h"

namespace {

inline dvec size_of(dvec x) { return x < 0 ? -x : x; }

// a and b exchanged in the lanes of `where`.
inline void exchange(lvec where, dvec& a, dvec& b) {
    const dvec old = a;
    a = where ? b : a;
    b = where ? old : b;
}

// LU factors, with row exchanges, of the band less a shift, which is another one in each lane.
struct Factors {
    static constexpr long REACH = 2 * BAND + 1;
    long n;
    ArrayOf<dvec> upper, lower;  // (n, REACH), (n, BAND)
    ArrayOf<lvec> exchanged;     // (n, BAND): row i with row i + m, for m = 1 ... in turn

    explicit Factors(long n)
        : n(n),
          upper(allocate<dvec>(n * REACH)),
          lower(allocate<dvec>(n * BAND)),
          exchanged(allocate<lvec>(n * BAND)) {}

    // band (n + REACH, WIDTH), its end zero.
    void factor(const double* band, dvec shift, double least) {
        dvec active[WIDTH][REACH] = {};  // the next rows, from column i
        for (long m = 0; m < WIDTH; m++) {
            for (long c = 0; c <= m + BAND; c++) active[m][c] += band[std::max(m, c) * WIDTH + std::abs(m - c)];
            active[m][m] -= shift;
        }
        for (long i = 0; i < n; i++) {
            // The largest of the column comes first.
            lvec where[WIDTH];
            dvec factor[WIDTH], others[WIDTH], pivot = active[0][0], largest = size_of(pivot);
#pragma GCC unroll 4
            for (int m = 1; m < WIDTH; m++) {
                const dvec size = size_of(active[m][0]);
                where[m] = size > largest;
                largest = where[m] ? size : largest;
                others[m] = where[m] ? pivot : active[m][0];
                pivot = where[m] ? active[m][0] : pivot;
                exchanged[i * BAND + m - 1] = where[m];
            }
            dvec* row = &upper[i * REACH];
            row[0] = 1 / (largest < least ? dvec{} + least : pivot);
#pragma GCC unroll 4
            for (int m = 1; m < WIDTH; m++) factor[m] = lower[i * BAND + m - 1] = others[m] * row[0];
            for (long c = 1; c < REACH; c++) {
                dvec first = active[0][c];
#pragma GCC unroll 4
                for (int m = 1; m < WIDTH; m++) {
                    others[m] = where[m] ? first : active[m][c];
                    first = where[m] ? active[m][c] : first;
                }
                row[c] = first;
#pragma GCC unroll 4
                for (int m = 1; m < WIDTH; m++) active[m - 1][c - 1] = others[m] - factor[m] * first;
            }
            for (long m = 0; m < BAND; m++) active[m][REACH - 1] = dvec{};
            const double* row_after = band + (i + WIDTH) * WIDTH;
            for (long d = 0; d <= BAND; d++) {
                active[BAND][BAND - d] = row_after[d] + dvec{};
                active[BAND][BAND + d] = row_after[d * WIDTH + d] + dvec{};
            }
            active[BAND][BAND] -= shift;
        }
    }

    // x (n + 2 BAND).
    void solve(dvec* x) const {
        std::fill(x + n, x + n + 2 * BAND, dvec{});
        for (long i = 0; i < n; i++) {
            for (long m = 1; m < WIDTH; m++) exchange(exchanged[i * BAND + m - 1], x[i], x[i + m]);
            for (long m = 1; m < WIDTH; m++) x[i + m] -= lower[i * BAND + m - 1] * x[i];
        }
        std::fill(x + n, x + n + 2 * BAND, dvec{});
        for (long i = n - 1; i >= 0; i--) {
            const dvec* row = &upper[i * REACH];
            dvec even = {}, odd = {};
            for (long c = 2; c < REACH; c += 2) even += row[c] * x[i + c];
            for (long c = 3; c < REACH; c += 2) odd += row[c] * x[i + c];
            // Last what the row before has only just found.
            x[i] = ((x[i] - even - odd) - row[1] * x[i + 1]) * row[0];
        }
    }

    // An eigenvector for the shift in each lane, of length about 1, from random numbers that `seed` picks.
    void iterate(dvec* x, unsigned long seed) const {
        for (int lane = 0; lane < DOUBLES; lane++) {
            unsigned long state = seed + lane;
            for (long i = 0; i < n; i++) x[i][lane] = double(next_bits(state) >> 11) / 9007199254740992.0 - 0.5;
        }
        for (int round = 0; round < 2; round++) {
            solve(x);
            // Inverse iteration overshoots: the largest first, so that no square overflows.
            dvec largest = {}, sum = {};
            for (long i = 0; i < n; i++) largest = size_of(x[i]) > largest ? size_of(x[i]) : largest;
            const dvec inverse = 1 / largest;
            for (long i = 0; i < n; i++) x[i] *= inverse, sum += x[i] * x[i];
            for (int lane = 0; lane < DOUBLES; lane++) sum[lane] = 1 / std::sqrt(sum[lane]);
            for (long i = 0; i < n; i++) x[i] *= sum;
        }
    }
};

// Scales x to length 1; its length before.
double normalise(double* x, long n) {
    const double size = std::sqrt(dot(x, x, n));
    if (size > 0)
        for (long i = 0; i < n; i++) x[i] /= size;
    return size;
}

// For eigenvalues (count), descending and known to `error`, of which some follow each other so closely that their
// eigenvectors are not told apart: one shift, above all of these. From there random vectors become any ones of what
// they span, where from within, next to one of them, several would become that one.
void stand_back(dvec* shifts, const double* values, long count, double error) {
    double before = HUGE_VAL;
    for (long first = 0, end; first < count; before = values[end - 1], first = end) {
        for (end = first + 1; end < count && values[end - 1] - values[end] <= 2 * error;) end++;
        const double spread = values[first] - values[end - 1] + error;
        if (end > first + 1)
            for (long k = first; k < end; k++)
                shifts[k / DOUBLES][k % DOUBLES] = values[first] + std::min(spread, (before - values[first]) / 2);
    }
}

}  // namespace

extern "C" {

// How many eigenvalues of the band are above each of `most` thresholds.
void gruclip_count_above(long* counts, const double* band, const double* thresholds, long n, long most) {
    // Where a pivot near zero costs digits, numbers beside it tell: what most of several say that are next to each
    // other.
    constexpr int SHIFTS = DOUBLES;
    for (long first = 0; first < most; first += MOST_CHAINS) {
        const long chains = std::min<long>(MOST_CHAINS, most - first);
        dvec shifts[MOST_CHAINS] = {};
        lvec above[MOST_CHAINS];
        for (long c = 0; c < chains; c++)
            for (int s = 0; s < SHIFTS; s++) shifts[c][s] = thresholds[first + c] + s * 1e-9;
        count_above(band, n, shifts, above, chains);
        for (long c = 0; c < chains; c++) {
            long sorted[SHIFTS];
            for (int s = 0; s < SHIFTS; s++) sorted[s] = above[c][s];
            std::nth_element(sorted, sorted + SHIFTS / 2, sorted + SHIFTS);
            counts[first + c] = sorted[SHIFTS / 2];
        }
    }
}

// The `wanted` largest eigenvalues of A, descending, and its eigenvectors as the columns of `vectors` (n, wanted), from
// what gruclip_band left. `rough`: the vectors need not be orthogonal, since the caller makes what they span so.
void gruclip_eigenpairs(double* values, float* vectors, const float* a, const double* band, const float* scales, long n,
                        long stride, long wanted, int rough, int threads) {
    constexpr double LOST = 1e-3, SETTLED = 0.7;
    // Halvings of the interval of all eigenvalues: to 6e-8 of it, which tells apart what rough vectors are to span, and
    // to 6e-11.
    constexpr int FEW_ROUNDS = 23, ROUNDS = 34;
    const int rounds = rough ? FEW_ROUNDS : ROUNDS;
    const Sections sections(band, n, threads);
    const double least = 1e-16 * std::max(std::fabs(sections.low()), std::fabs(sections.high())) + 1e-290;
    std::vector<double> padded((n + 2 * BAND + 1) * WIDTH);
    std::copy(band, band + n * WIDTH, padded.begin());
    const long groups = parts(wanted, DOUBLES),
               tasks = std::max(parts(groups, MOST_CHAINS), std::min<long>(groups, threads));
    std::vector<dvec> shifts(groups);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long task = 0; task < tasks; task++) {
        const long first = groups * task / tasks, chains = groups * (task + 1) / tasks - first;
        sections.bisect(&shifts[first], first * DOUBLES, chains, rounds);
    }
    for (long k = 0; k < wanted; k++) values[k] = shifts[k / DOUBLES][k % DOUBLES];
    if (rough) stand_back(shifts.data(), values, wanted, std::ldexp(sections.high() - sections.low(), -rounds));
    const ArrayOf<double> found = allocate<double>(wanted * n);
    const auto keep = [&](const ArrayOf<dvec>& x, int lane, long k) {
        for (long i = 0; i < n; i++) found[k * n + i] = x[i][lane];
    };
#pragma omp parallel num_threads(threads)
    {
        Factors factors(n);
        const ArrayOf<dvec> x = allocate<dvec>(n + 2 * BAND);
#pragma omp for schedule(dynamic)
        for (long group = 0; group < groups; group++) {
            const long first = group * DOUBLES;
            factors.factor(padded.data(), shifts[group], least);
            factors.iterate(x.get(), first + 1);
            for (long k = first; k < std::min(first + DOUBLES, wanted); k++) keep(x, k - first, k);
        }
    }
    // Values that are next to each other may have found one vector.
    for (long k = 0; k < (rough ? 0 : wanted); k++) {
        double* x = &found[k * n];
        const auto apart = [&] {
            double smallest = 1;
            for (double left = 0; left < SETTLED;) {
                for (long other = 0; other < k; other++) {
                    const double* y = &found[other * n];
                    const double along = dot(x, y, n);
                    for (long i = 0; i < n; i++) x[i] -= along * y[i];
                }
                left = normalise(x, n);
                smallest = std::min(smallest, left);
                if (!(left > 0)) break;
            }
            return smallest;
        };
        if (apart() > LOST) continue;
        Factors factors(n);
        const ArrayOf<dvec> again = allocate<dvec>(n + 2 * BAND);
        factors.factor(padded.data(), values[k] + dvec{}, least);
        factors.iterate(again.get(), k + 1 + wanted);
        keep(again, 0, k);
        apart();
    }

    // Back, some vectors of columns at a time.
    const long last = (n - 1) / BAND, vecs = parts(wanted, LANES);
    const long turns = std::max(parts(vecs, MOST_VECS), std::min<long>(vecs, threads));
    std::vector<Reflections> reflections(last);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long i = 0; i < last; i++) reflections[i] = Reflections(a, scales, n, stride, (i + 1) * BAND);
        const Array rows = allocate(n * MOST_VECS * LANES);
#pragma omp for schedule(dynamic)
        for (long turn = 0; turn < turns; turn++) {
            const long left = vecs * turn / turns * LANES, row = vecs * (turn + 1) / turns * LANES - left;
            const long width = std::min(row, wanted - left);
            for (long i = 0; i < n; i++)
                for (long k = 0; k < row; k++)
                    rows[i * row + k] = k < width ? static_cast<float>(found[(left + k) * n + i]) : 0;
            for (const Reflections& some : reflections) some.apply(rows.get(), row / LANES);
            for (long i = 0; i < n; i++)
                std::memcpy(vectors + i * wanted + left, rows.get() + i * row, width * sizeof(float));
        }
    }
}

}  // extern "C"
