// How many eigenvalues of a band are above a number, and from that the eigenvalues.
#pragma once

#include <algorithm>
#include <cmath>

#include "band.h"

namespace {

// Recurrences that run side by side, at most, while each waits for its last division.
constexpr int MOST_CHAINS = 6;

// How many eigenvalues of the band of a matrix, whose largest entry is 1, are above each of the `shifts`: the signs of
// the pivots of L D L^T. Nothing is pivoted: a pivot near zero makes numbers of its reciprocal's size, of which nothing
// is left when they cancel, as the middle of the interval does of a Toeplitz matrix. One below LEAST is moved there,
// which moves an eigenvalue by as much at most, and leaves rounding errors of 1e-16 / LEAST.
template <int CHAINS>
void count_above(const double* band, long n, const dvec* shifts, lvec* above) {
    constexpr double LEAST = 1e-8;
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
            const dvec least = pivot > 0 ? dvec{} + LEAST : dvec{} - LEAST;
            pivot = ((pivot < LEAST) & (pivot > -LEAST)) ? least : pivot;
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

// The same for any number of shifts up to MOST_CHAINS; room for that many.
inline void count_above(const double* band, long n, const dvec* shifts, lvec* above, long chains) {
    (chains > 4    ? count_above<MOST_CHAINS>
     : chains > 2  ? count_above<4>
     : chains == 2 ? count_above<2>
                   : count_above<1>)(band, n, shifts, above);
}

// The interval of all eigenvalues by Gershgorin's theorem, in equal parts: one count for all of them is worth HALVINGS
// rounds of bisection.
class Sections {
    static constexpr long SHARE = MOST_CHAINS * DOUBLES, SHARES = 2, COUNT = SHARES * SHARE;
    static constexpr int HALVINGS = DOUBLES >= 8 ? 6 : DOUBLES >= 4 ? 5 : 4;
    static_assert(COUNT >= 1 << HALVINGS);

    const double* band;
    const long n;
    double ends[COUNT + 1];
    long above[COUNT + 1];

  public:
    Sections(const double* band, long n, int threads) : band(band), n(n) {
        double low = band[0], high = band[0];
        for (long i = 0; i < n; i++) {
            double radius = 0;
            for (long d = 1; d <= BAND; d++)
                radius += std::fabs(band[i * WIDTH + d]) + (i + d < n ? std::fabs(band[(i + d) * WIDTH + d]) : 0);
            low = std::min(low, band[i * WIDTH] - radius), high = std::max(high, band[i * WIDTH] + radius);
        }
        for (long s = 0; s <= COUNT; s++) ends[s] = s < COUNT ? low + (high - low) * s / COUNT : high;
#pragma omp parallel for schedule(static) num_threads(threads)
        for (long share = 0; share < SHARES; share++) {
            dvec shifts[MOST_CHAINS];
            lvec counts[MOST_CHAINS];
            std::memcpy(shifts, ends + share * SHARE, sizeof shifts);
            count_above<MOST_CHAINS>(band, n, shifts, counts);
            std::memcpy(above + share * SHARE, counts, sizeof counts);
        }
        above[COUNT] = 0;
    }

    double low() const { return ends[0]; }
    double high() const { return ends[COUNT]; }

    // Of `chains` vectors of eigenvalues from the first-th largest on the middles of what so many `halvings` leave.
    void bisect(dvec* middles, long first, long chains, int halvings) const {
        dvec lows[MOST_CHAINS] = {}, highs[MOST_CHAINS] = {}, at[MOST_CHAINS] = {};
        lvec above_it[MOST_CHAINS], rank[MOST_CHAINS] = {};
        for (long c = 0; c < chains; c++)
            for (int lane = 0; lane < DOUBLES; lane++) {
                const long r = rank[c][lane] = first + c * DOUBLES + lane;
                long s = 0;
                while (s + 1 < COUNT && above[s + 1] > r) s++;
                lows[c][lane] = ends[s], highs[c][lane] = ends[s + 1];
            }
        for (int round = HALVINGS; round <= halvings; round++) {
            for (long c = 0; c < chains; c++) at[c] = (lows[c] + highs[c]) / 2;
            if (round == halvings) break;
            count_above(band, n, at, above_it, chains);
            for (long c = 0; c < chains; c++) {
                lows[c] = above_it[c] > rank[c] ? at[c] : lows[c];
                highs[c] = above_it[c] > rank[c] ? highs[c] : at[c];
            }
        }
        std::copy(at, at + chains, middles);
    }
};

}  // namespace
