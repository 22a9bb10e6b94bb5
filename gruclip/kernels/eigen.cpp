// The leading eigenpairs of a dense symmetric matrix: band.cpp's reduction, bisection and inverse iteration on the band
// for as many as are wanted, and the way back. A library's routine for all eigenpairs takes three times as long, and
// torch has none for some of them.

#include "band.h"

#include <cmath>
#include <vector>

#include "panels.h"

namespace {

// Registers side by side, at most, since each waits for its own last division.
constexpr int MOST_CHAINS = 6;

// How many eigenvalues of the band are above each of the `shifts`: the signs of the pivots of L D L^T.
template <int CHAINS>
void count_above(const double* band, long n, const dvec* shifts, lvec* above) {
    constexpr double LEAST = 1e-290;
    dvec low[BAND][BAND][CHAINS] = {}, inverse[BAND][CHAINS] = {};  // l(i, i - d) at [i % BAND][d - 1], and 1 / d(i)
    dvec shift[CHAINS];
    lvec count[CHAINS] = {};
    std::copy(shifts, shifts + CHAINS, shift);
    // `at` is i % BAND: as a constant it leaves most of these in registers.
    const auto next_row = [&](const double* row, int at) __attribute__((always_inline)) {
#pragma GCC unroll 6
        for (int c = 0; c < CHAINS; c++) {
            dvec next[WIDTH], pivot = row[0] - shift[c];
#pragma GCC unroll 4
            for (int d = BAND; d > 0; d--) {
                next[d] = row[d] + dvec{};
#pragma GCC unroll 4
                for (int e = BAND; e > d; e--) next[d] -= next[e] * low[(at - d) & (BAND - 1)][e - d - 1][c];
            }
#pragma GCC unroll 4
            for (int d = BAND; d > 0; d--) {
                const dvec l = next[d] * inverse[(at - d) & (BAND - 1)][c];
                pivot -= next[d] * l;
                low[at][d - 1][c] = l;
            }
            pivot = ((pivot < LEAST) & (pivot > -LEAST)) ? dvec{} - LEAST : pivot;
            inverse[at][c] = 1.0 / pivot;
            count[c] -= pivot > 0;
        }
    };
    long i = 0;
    for (; i + BAND <= n; i += BAND)
#pragma GCC unroll 4
        for (int at = 0; at < BAND; at++) next_row(band + (i + at) * WIDTH, at);
#pragma GCC unroll 4
    for (int at = 0; at < BAND; at++)
        if (i + at < n) next_row(band + (i + at) * WIDTH, at);
    std::copy(count, count + CHAINS, above);
}

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
            for (long m = 1; m < WIDTH; m++) {
                const lvec where = exchanged[i * BAND + m - 1] = size_of(active[m][0]) > size_of(active[0][0]);
                for (long c = 0; c < REACH; c++) exchange(where, active[0][c], active[m][c]);
            }
            const dvec pivot = active[0][0];
            dvec* row = &upper[i * REACH];
            std::copy(active[0], active[0] + REACH, row);
            row[0] = 1 / (size_of(pivot) < least ? dvec{} + least : pivot);
            for (long m = 1; m < WIDTH; m++) {
                const dvec factor = lower[i * BAND + m - 1] = active[m][0] * row[0];
                for (long c = 0; c + 1 < REACH; c++) active[m - 1][c] = active[m][c + 1] - factor * row[c + 1];
                active[m - 1][REACH - 1] = dvec{};
            }
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

// count_above for any number of shifts up to MOST_CHAINS; room for that many.
void count_above(const double* band, long n, const dvec* shifts, lvec* above, long chains) {
    (chains > 4    ? count_above<MOST_CHAINS>
     : chains > 2  ? count_above<4>
     : chains == 2 ? count_above<2>
                   : count_above<1>)(band, n, shifts, above);
}

// Scales x to length 1; its length before.
double normalise(double* x, long n) {
    const double size = std::sqrt(dot(x, x, n));
    if (size > 0)
        for (long i = 0; i < n; i++) x[i] /= size;
    return size;
}

// Of `chains` vectors of eigenvalues from the first-th largest on, in (low, high), the middles of what so many rounds
// of bisection leave of that.
void bisect(dvec* result, const double* band, long n, long first, long chains, double low, double high, int rounds) {
    dvec middles[MOST_CHAINS], lows[MOST_CHAINS], highs[MOST_CHAINS];
    lvec above[MOST_CHAINS], rank[MOST_CHAINS];
    for (int c = 0; c < MOST_CHAINS; c++) {
        for (int lane = 0; lane < DOUBLES; lane++) rank[c][lane] = first + c * DOUBLES + lane;
        lows[c] = low + dvec{}, highs[c] = high + dvec{};
        middles[c] = (lows[c] + highs[c]) / 2;
    }
    for (int round = 0; round < rounds; round++) {
        count_above(band, n, middles, above, chains);
        for (int c = 0; c < chains; c++) {
            lows[c] = above[c] > rank[c] ? middles[c] : lows[c];
            highs[c] = above[c] > rank[c] ? highs[c] : middles[c];
            middles[c] = (lows[c] + highs[c]) / 2;
        }
    }
    std::copy(middles, middles + chains, result);
}

}  // namespace

extern "C" {

// How many eigenvalues of the band are above each of `most` thresholds.
void gruclip_count_above(long* counts, const double* band, const double* thresholds, long n, long most) {
    // A pivot near zero would cost digits: what most of several numbers say that are next to each other.
    constexpr int SHIFTS = DOUBLES;
    for (long first = 0; first < most; first += MOST_CHAINS) {
        const long chains = std::min<long>(MOST_CHAINS, most - first);
        dvec shifts[MOST_CHAINS] = {};
        lvec above[MOST_CHAINS];
        for (long c = 0; c < chains; c++)
            for (int s = 0; s < SHIFTS; s++) shifts[c][s] = thresholds[first + c] * (1 + s * 1e-9);
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
// what gruclip_band left. `rough`: vectors that are not made orthogonal, for one who does that with what they span.
void gruclip_eigenpairs(double* values, float* vectors, const float* a, const double* band, const float* scales, long n,
                        long stride, long wanted, int rough, int threads) {
    constexpr double LOST = 1e-3, SETTLED = 0.7;
    // Halvings of (low, high): to 6e-8 of it, which tells apart what rough vectors are to span, and to 6e-11.
    constexpr int FEW_ROUNDS = 24, ROUNDS = 34;
    double low = band[0], high = band[0];
    for (long i = 0; i < n; i++) {
        double radius = 0;
        for (long d = 1; d <= BAND; d++)
            radius += std::fabs(band[i * WIDTH + d]) + (i + d < n ? std::fabs(band[(i + d) * WIDTH + d]) : 0);
        low = std::min(low, band[i * WIDTH] - radius), high = std::max(high, band[i * WIDTH] + radius);
    }
    const double least = 1e-16 * std::max(std::fabs(low), std::fabs(high)) + 1e-290;
    std::vector<double> padded((n + 2 * BAND + 1) * WIDTH);
    std::copy(band, band + n * WIDTH, padded.begin());
    const long groups = parts(wanted, DOUBLES),
               tasks = std::max(parts(groups, MOST_CHAINS), std::min<long>(groups, threads));
    std::vector<dvec> shifts(groups);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long task = 0; task < tasks; task++) {
        const long first = groups * task / tasks, chains = groups * (task + 1) / tasks - first;
        bisect(&shifts[first], band, n, first * DOUBLES, chains, low, high, rough ? FEW_ROUNDS : ROUNDS);
    }
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
            for (long k = first; k < std::min(first + DOUBLES, wanted); k++) {
                values[k] = shifts[group][k - first];
                keep(x, k - first, k);
            }
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

    // Back, in columns of whole vectors.
    const long last = (n - 1) / BAND;
    std::vector<Reflections> reflections(last);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long i = 0; i < last; i++) reflections[i] = Reflections(a, scales, n, stride, (i + 1) * BAND);
        const Array rows = allocate(n * LANES);
#pragma omp for schedule(dynamic)
        for (long left = 0; left < wanted; left += LANES) {
            const long width = std::min<long>(LANES, wanted - left);
            for (long i = 0; i < n; i++)
                for (long k = 0; k < LANES; k++)
                    rows[i * LANES + k] = k < width ? static_cast<float>(found[(left + k) * n + i]) : 0;
            for (const Reflections& some : reflections) some.apply(rows.get());
            for (long i = 0; i < n; i++)
                std::memcpy(vectors + i * wanted + left, rows.get() + i * LANES, width * sizeof(float));
        }
    }
}

}  // extern "C"
