// Reflections make a dense symmetric matrix one of BAND diagonals on either side of the main one, in a pass over it for
// every BAND rows that both updates it and multiplies by it. A tridiagonal matrix takes a pass for every row, which is
// twice the time.

#include "householder.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "panels.h"

namespace {

constexpr long ROWS_FOR_THREADS = 96;  // rows: below, starting a thread takes longer

#if defined(_OPENMP)
int thread_number() { return omp_get_thread_num(); }
int thread_count() { return omp_get_num_threads(); }
#else
int thread_number() { return 0; }
int thread_count() { return 1; }
#endif

constexpr int CHUNK = 4 * TILE;  // vectors of a row that are worked on while they are in the first-level cache

// sums (BAND, COUNT vectors) += x^T A for `rows` rows of A, with the numbers of the rows at x.
template <int COUNT>
void add_down(float* sums, const float* a, const float* x, long stride, long rows) {
    vec s[BAND][COUNT];
    load_rows(s, sums, stride);
    for (long r = 0; r < rows; r++, a += stride) {
        vec e[COUNT];
#pragma GCC unroll 4
        for (int c = 0; c < COUNT; c++) e[c] = in_register(load(a + c * LANES));
#pragma GCC unroll 4
        for (long k = 0; k < BAND; k++)
#pragma GCC unroll 4
            for (int c = 0; c < COUNT; c++) s[k][c] += splat(x[k * stride + r]) * e[c];
    }
    store_rows(sums, s, stride);
}

// sums (rows, BAND, a vector each) = A x lane by lane, for `count` vectors of `rows` rows, a multiple of BAND.
void multiply_across(vec (*sums)[BAND], const float* a, const float* x, long stride, long rows, long count) {
    for (long r = 0; r < rows; r += BAND, a += BAND * stride) {
        vec s[BAND][BAND] = {};
        for (long j = 0; j < count * LANES; j += LANES) {
            vec along[BAND];
#pragma GCC unroll 4
            for (long k = 0; k < BAND; k++) along[k] = in_register(load(x + k * stride + j));
#pragma GCC unroll 4
            for (long i = 0; i < BAND; i++) {
                const vec e = in_register(load(a + i * stride + j));
#pragma GCC unroll 4
                for (long k = 0; k < BAND; k++) s[i][k] += e * along[k];
            }
        }
        std::memcpy(sums + r, s, sizeof s);
    }
}

// A share of the first `end` rows of A (n, n), a multiple of BAND, of which the lower half is there, and what is above
// the diagonal in its vector: A -= v w^T + w v^T and, with what results, sums (BAND, end) += A x, for BAND vectors v, w
// and x each, `stride` apart as the rows of A are. The two halves at the diagonal are equal but for rounding.
void update_and_multiply(float* a, float* sums, const float* v, const float* w, const float* x, long stride, long n,
                         long end, long share) {
    for (long turn = 0, first = first_of(turn, share); first < end; first = first_of(++turn, share)) {
        float* group = a + place_of(first, n) * stride;
        const long rows = std::min<long>(LANES, end - first);
        vec across[LANES][BAND];
        for (long j = 0; j <= first; j += CHUNK * LANES) {
            // The last vector is that of the diagonal.
            const long before = (first - j) / LANES, left = std::min<long>(CHUNK, before);
            const long count = std::min<long>(CHUNK, before + 1);
            for (long r = 0; r < rows; r += BAND) update_strip(group + r * stride, v, w, first + r, j, count, stride);
            for (long c = 0; c < left; c += TILE) {
                const long at = j + c * LANES;
                (left - c >= TILE ? add_down<TILE>
                 : left - c == 2  ? add_down<2>
                                  : add_down<1>)(sums + at, group + at, x + first, stride, rows);
            }
        }
        // The vector of the diagonal with both halves of it.
        multiply_across(across, group, x, stride, rows, first / LANES + 1);
        for (long k = 0; k < BAND; k++) {
            vec mine[LANES];
#pragma GCC unroll 16
            for (long r = 0; r < LANES; r++) mine[r] = r < rows ? across[r][k] : vec{};
            float* down = sums + k * stride + first;
            store(down, load(down) + totals(mine, LANES));
        }
    }
}

// Rows of a up to the vector of the diagonal, all of which is there, = those of matrix (n, n) over its largest number,
// which is returned; 1 where that is zero.
double scaled(float* a, const float* matrix, long n, long stride, int threads) {
    float largest = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(max : largest)
    for (long i = 0; i < n; i++) {
        vec most = {};
        for (long j = 0; j <= i; j += LANES) {
            const vec row = load(matrix + i * n + j, std::min<long>(LANES, i + 1 - j));
            most = row > most ? row : (-row > most ? -row : most);
        }
        for (int lane = 0; lane < LANES; lane++) largest = std::max(largest, most[lane]);
    }
    if (!(largest > 0)) largest = 1;
    // By those who work on them, so that they are in their caches.
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (long share = 0; share < SHARES; share++)
        for (long turn = 0, first = first_of(turn, share); first < n; first = first_of(++turn, share)) {
            float* group = a + place_of(first, n) * stride;
            for (long i = first; i < std::min(first + LANES, n); i++) {
                float* row = group + (i - first) * stride;
                for (long j = 0; j <= i; j += LANES)
                    store(row + j, load(matrix + i * n + j, std::min<long>(LANES, i + 1 - j)) / largest);
                for (long j = first; j < i; j++) group[(j - first) * stride + i] = row[j];
            }
        }
    return largest;
}

}  // namespace

extern "C" {

// Q^T A Q = B for a symmetric matrix = size A (n, n), of which the lower half is read; `size` is its
// largest number, since squares are taken. Row i, in `a` where `place_of` says and `stride` floats long, n + 16 or
// more, then begins with the vector of a reflection with the factor scales[i], and Q is their product, the last row's
// first. B (i, i - d) is band[i, d] for d = 0 ... BAND.
void gruclip_band(float* a, double* band, float* scales, double* size, const float* matrix, long n, long stride,
                  int threads) {
    *size = scaled(a, matrix, n, stride, n < ROWS_FOR_THREADS ? 1 : threads);
    // By turns, so that a thread may begin the next panel's while another one still reads this one's.
    const long each = SHARES * BAND * stride;
    const Array all_sums = allocate(2 * each);
    std::fill(band, band + n * WIDTH, 0.0);
    std::fill(scales, scales + n, 0.0f);
#pragma omp parallel num_threads(n < ROWS_FOR_THREADS ? 1 : std::min<long>(threads, SHARES))
    {
        long team = thread_count();
        const long me = thread_number();
        Panel panel(stride, n, me == 0);
        for (long p = (n - 1) / BAND * BAND;; p -= BAND) {
            const long rows = std::min(BAND, n - p);
            if (p < ROWS_FOR_THREADS) team = 1;
            if (me >= team) break;
            panel.reflect(band, scales, a, p, rows, team == 1);
            if (p == 0) break;
            float* sums = all_sums.get() + p / BAND % 2 * each;
            for (long share = me; share < SHARES; share += team) {
                float* mine = sums + share * BAND * stride;
                for (long k = 0; k < BAND; k++) std::memset(mine + k * stride, 0, (p + LANES) * sizeof(float));
                update_and_multiply(a, mine, panel.v, panel.w, panel.x, stride, n, p, share);
            }
            // Two threads add up what is in their caches, so that half as much goes from one to the other.
            const bool paired = team <= PAIR;
            for (long i = me; paired && i < PAIR; i += team)
                for (long k = i * BAND * stride; k < (i + 1) * BAND * stride; k += stride)
                    for (float* at = sums + k; at < sums + k + p; at += LANES)
                        store(at, load(at) + load(at + PAIR * BAND * stride));
            if (team > 1) {
#pragma omp barrier
            }
            if (me > 0 && p - BAND < ROWS_FOR_THREADS) break;  // the first goes on alone
            // The others have read what stood there.
            if (team > 1 && panel.writes)
                for (long r = 0; r < rows; r++)
                    std::memcpy(a + (place_of(p, n) + r) * stride, panel.rows + r * stride, p * sizeof(float));
            panel.follow(sums, paired, p);
        }
    }
}

}  // extern "C"
