// Dense products in float32, for processors on which the libraries inside torch take a slow path. What is added to a
// sum in which order does not depend on the number of threads, and a slow core holds up the others for one task.

#include "panels.h"

namespace {

// Blocks of rows of a task, at most: few, so that no thread is left alone at the end, where the right factor, which
// every task reads, stays in the third-level cache.
constexpr long FEW = 3, MANY = 16, CACHED = 1500000;
constexpr long DEEP = 352;  // of a panel, so that it stays in the first-level cache for all blocks of rows
constexpr long DEEP_LOWER = 2 * LONG_RUN;  // where the digits of a Gram matrix count

// to (high, used), `down` apart, = block (depth, BLOCK) transposed times panel (depth, VECS vectors), or += that.
template <bool ADD, int VECS>
void multiply_corner(float* to, long down, const float* block, const float* panel, long depth, long high, long used) {
    constexpr long WIDTH = VECS * LANES;
    if (high == BLOCK && used == WIDTH) return multiply<BLOCK, ADD, VECS>(to, down, block, panel, depth);
    float sums[BLOCK * WIDTH];
    multiply<BLOCK, false, VECS>(sums, WIDTH, block, panel, depth);
    for (long i = 0; i < high; i++)
        for (long j = 0; j < used; j++) to[i * down + j] = sums[i * WIDTH + j] + (ADD ? to[i * down + j] : 0);
}

template <bool ADD>
constexpr auto corner(long used) {
    return used > LANES ? multiply_corner<ADD, 2> : multiply_corner<ADD, 1>;
}

// Where the block of rows begins that has row `row`; the first one's, for rows before it.
long first_below(long row) { return row > 0 ? row / BLOCK * BLOCK : 0; }

}  // namespace

extern "C" {

// result (m, n), rows `down` apart, = left (m, depth) times right (depth, n), each of any layout. With `lower` only the
// lower half of it, with the diagonal, is sure to be there.
void gruclip_product(float* result, const float* left, const float* right, long m, long depth, long n, long down,
                     long left_down, long left_across, long right_down, long right_across, int lower, int threads) {
    const Matrix turned = {left, left_across, left_down}, factor = {right, right_down, right_across};
    const long panels = parts(n, PANEL), blocks = parts(m, BLOCK);
    const long most = depth * n <= CACHED ? FEW : MANY, tasks = parts(parts(blocks, most), threads) * threads;
    const long deep = parts(depth, std::max<long>(1, parts(depth, lower ? DEEP_LOWER : DEEP)));
    const Array columns = allocate(panels * depth * PANEL + 1);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 4)
        for (long p = 0; p < panels; p++)
            pack(columns.get() + p * depth * PANEL, panel_width(n, p * PANEL), factor, 0, depth, p * PANEL,
                 std::min<long>(PANEL, n - p * PANEL));
        const Array rows = allocate(parts(blocks, tasks) * BLOCK * deep + 1);
#pragma omp for schedule(dynamic)
        for (long task = tasks - 1; task >= 0; task--) {  // the longest first, where half is left out
            const long first = blocks * task / tasks * BLOCK;
            const long high = std::min(blocks * (task + 1) / tasks * BLOCK, m) - first;
            const long needed = lower ? std::min(panels, parts(first + high, PANEL)) : panels;
            for (long k = 0; k < depth; k += deep) {
                const long d = std::min(deep, depth - k);
                for (long i = 0; i < high; i += BLOCK)
                    pack(rows.get() + i * d, BLOCK, turned, k, d, first + i, std::min<long>(BLOCK, high - i));
                for (long p = 0; p < needed; p++) {
                    const long used = std::min<long>(PANEL, n - p * PANEL);
                    const auto multiply = k ? corner<true>(used) : corner<false>(used);
                    const float* panel = columns.get() + p * depth * PANEL + k * panel_width(n, p * PANEL);
                    for (long i = lower ? first_below(p * PANEL - first) : 0; i < high; i += BLOCK)
                        multiply(result + (first + i) * down + p * PANEL, down, rows.get() + i * d, panel, d,
                                 std::min<long>(BLOCK, high - i), used);
                }
            }
        }
    }
}

// What is above the diagonal of a (n, n) = what is below it, in tiles that stay in a cache.
void gruclip_mirror(float* a, long n, int threads) {
    constexpr long TILE = 32;
#pragma omp parallel for schedule(dynamic) num_threads(n* n < WORTH_A_THREAD ? 1 : threads)
    for (long first = 0; first < n; first += TILE)
        for (long left = 0; left <= first; left += TILE)
            for (long i = first; i < std::min(first + TILE, n); i++)
                for (long j = left; j < std::min(left + TILE, i); j++) a[j * n + i] = a[i * n + j];
}

}  // extern "C"
