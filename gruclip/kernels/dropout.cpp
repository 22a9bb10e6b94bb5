// Products that leave out what dropout set to zero: half of the operations at the protocol's rate.
//
// A register tile of several rows and a skipped element do not go together, since every row skips others. So a row is
// worked on alone: its sums for a panel of VECS vectors stay in registers, each element that is there takes one
// broadcast and VECS multiply-adds whose other operand comes from the first-level cache, where a block of the right
// factor stays for all rows.

#include <cstdint>
#include <vector>

#include "panels.h"

namespace {

constexpr int VECS = 12, WIDTH = VECS * LANES;
constexpr long LINE = 16;  // floats in a cache line
// Of the right factor's block: its rows are the bits of a word, and it takes three quarters of 32 KiB at most.
constexpr long DEEPEST = std::min<long>(64, 24576 / (WIDTH * sizeof(float)));
constexpr long MOST_ROWS = 704;  // whose sums for a panel stay in the second-level cache

// The elements of rows first ... first + rows - 1 of a matrix (., depth) that are not zero, by blocks of columns.
struct Kept {
    long first, rows, depth, block, blocks;
    std::unique_ptr<uint64_t[]> which;  // (blocks, rows): the bits of the columns
    Array values;                       // (blocks, rows * block), those of a block one after the other, row by row

    Kept(long first, long rows, long depth)
        : first(first),
          rows(rows),
          depth(depth),
          block(parts(depth, parts(depth, DEEPEST))),
          blocks(parts(depth, block)),
          which(new uint64_t[blocks * rows]),
          values(allocate(blocks * rows * block)) {}

    long columns(long q) const { return std::min(block, depth - q * block); }

    void read(const Matrix& matrix, long q) {
        float* value = values.get() + q * rows * block;
        for (long i = 0; i < rows; i++) {
            const float* row = matrix.at(first + i, q * block);
            uint64_t bits = 0;
            for (long t = 0; t < columns(q); t++) {
                const float x = row[t * matrix.across];
                *value = x;
                value += x != 0;
                bits |= static_cast<uint64_t>(x != 0) << t;
            }
            which[q * rows + i] = bits;
        }
    }
};

std::vector<Kept> kept_rows(const Matrix& matrix, long rows, long depth, long most_rows, int threads) {
    std::vector<Kept> all;
    const long count = parts(rows, most_rows);
    for (long b = 0; b < count; b++) {
        const long first = rows * b / count;
        all.emplace_back(first, rows * (b + 1) / count - first, depth);
    }
    const long blocks = all[0].blocks;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long task = 0; task < count * blocks; task++) all[task / blocks].read(matrix, task % blocks);
    return all;
}

// What is read next, fetched while the processor multiplies: rows of a panel lie far apart in memory.
class Ahead {
  public:
    Ahead(const Matrix& matrix, long first, long rows, long left_column, long used, long steps)
        : row(matrix.at(first, left_column)),
          rows(matrix.across == 1 ? rows : 0),
          used(used),
          down(matrix.down),
          lines_a_step(parts(rows * parts(used, LINE), steps)) {}

    void step() {
        for (long line = 0; line < lines_a_step && rows > 0; line++) {
            __builtin_prefetch(row + column);
            column += LINE;
            if (column < used) continue;
            column = 0, row += down, rows--;
        }
    }

  private:
    const float* row;
    long rows, used, down, lines_a_step, column = 0;
};

// to (rows, COUNT vectors), `down` apart, = the kept elements of block q times packed (block, COUNT vectors), plus sums
// (rows, COUNT vectors) if they are to be added.
template <int COUNT, bool ADD>
void multiply_kept(float* to, long down, const float* sums, const Kept& kept, long q, const float* packed) {
    const uint64_t* which = kept.which.get() + q * kept.rows;
    const float* value = kept.values.get() + q * kept.rows * kept.block;
    for (long i = 0; i < kept.rows; i++, sums += COUNT * LANES, to += down) {
        vec s[COUNT];
#pragma GCC unroll 16
        for (int v = 0; v < COUNT; v++) s[v] = ADD ? load(sums + v * LANES) : vec{};
        for (uint64_t bits = which[i]; bits; bits &= bits - 1) {
            const vec x = splat(*value++);
            const float* row = packed + __builtin_ctzll(bits) * (COUNT * LANES);
#pragma GCC unroll 16
            for (int v = 0; v < COUNT; v++) s[v] += x * load(row + v * LANES);
        }
#pragma GCC unroll 16
        for (int v = 0; v < COUNT; v++) store(to + v * LANES, s[v]);
    }
}

// sums (kept elements of block q, a vector each) += for every kept element (i, k) of block q, lane by lane, row i of
// left (rows, WIDTH) times row k of packed (block, WIDTH).
void multiply_where_kept(float* sums, const Kept& kept, long q, const float* left, const float* packed, Ahead& ahead) {
    const uint64_t* which = kept.which.get() + q * kept.rows;
    for (long i = 0; i < kept.rows; i++, left += WIDTH) {
        ahead.step();
        vec x[VECS];
#pragma GCC unroll 16
        for (int v = 0; v < VECS; v++) x[v] = load(left + v * LANES);
        for (uint64_t bits = which[i]; bits; bits &= bits - 1, sums += LANES) {
            const float* row = packed + __builtin_ctzll(bits) * WIDTH;
            vec even = load(sums), odd = {};
#pragma GCC unroll 16
            for (int v = 0; v < VECS; v += 2) {
                even += x[v] * load(row + v * LANES);
                odd += x[v + 1] * load(row + (v + 1) * LANES);
            }
            store(sums, even + odd);
        }
    }
}

using MultiplyKept = void (*)(float*, long, const float*, const Kept&, long, const float*);
template <bool ADD, int... COUNT>
constexpr MultiplyKept pick_kept(int count, std::integer_sequence<int, COUNT...>) {
    constexpr MultiplyKept table[] = {multiply_kept<COUNT + 1, ADD>...};
    return table[count - 1];
}

}  // namespace

extern "C" {

// bits (runs, words): SplitMix64's numbers for each of the seeds (runs).
void gruclip_random_bits(uint64_t* bits, const uint64_t* seeds, long runs, long words, int threads) {
    for (long run = 0; run < runs; run++) {
        const uint64_t seed = seeds[run];
        uint64_t* row = bits + run * words;
#pragma omp parallel for simd schedule(static) num_threads(threads)
        for (long i = 0; i < words; i++) {
            uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
            z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
            row[i] = z ^ (z >> 31);
        }
    }
}

// mask (count) = factor where the random bits (count) are below `threshold`, zero elsewhere.
void gruclip_mask(float* mask, const int16_t* bits, const float* factor, long count, long threshold, int threads) {
    const int below = static_cast<int>(threshold);
    const float kept = *factor;
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (long i = 0; i < count; i++) mask[i] = bits[i] < below ? kept : 0.0f;
}

// result (m, n) = left (m, depth) times right (depth, n), each of any layout; zeros of `left` take no time.
void gruclip_product_of_kept(float* result, const float* left, const float* right, long m, long depth, long n,
                             long result_down, long result_across, long left_down, long left_across, long right_down,
                             long right_across, int threads) {
    const std::vector<Kept> all = kept_rows({left, left_down, left_across}, m, depth, MOST_ROWS, threads);
    const Matrix factor = {right, right_down, right_across};
    const long vectors = parts(n, LANES), panels = parts(vectors, VECS), count = parts(vectors, panels);
    const long width = count * LANES;
    const auto indices = std::make_integer_sequence<int, VECS>{};
    const MultiplyKept begin = pick_kept<false>(count, indices), add = pick_kept<true>(count, indices);
#pragma omp parallel num_threads(threads)
    {
        const Array packed = allocate(DEEPEST * WIDTH), sums = allocate(MOST_ROWS * WIDTH);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < panels * static_cast<long>(all.size()); task++) {
            const Kept& kept = all[task % all.size()];
            const long left_column = task / all.size() * width;
            const long used = std::min(width, n - left_column);
            if (used <= 0) continue;
            // The last block's sums go straight to where they belong, if that takes whole vectors.
            const bool whole = used == width && result_across == 1;
            float* target = result + kept.first * result_down + left_column * result_across;
            for (long q = 0; q < kept.blocks; q++) {
                pack(packed.get(), width, factor, q * kept.block, kept.columns(q), left_column, used);
                const bool arrived = whole && q + 1 == kept.blocks;
                (q == 0 ? begin : add)(arrived ? target : sums.get(), arrived ? result_down : width, sums.get(), kept,
                                       q, packed.get());
            }
            if (whole) continue;
            for (long i = 0; i < kept.rows; i++) {
                float* to = target + i * result_down;
                const float* from = sums.get() + i * width;
                if (result_across == 1) std::memcpy(to, from, used * sizeof(float));
                else
                    for (int j = 0; j < used; j++) to[j * result_across] = from[j];
            }
        }
    }
}

// result (m, n) = mask * (left (m, depth) times right (n, depth) transposed), all but right row-major: only those
// elements where mask (m, n) is not zero take time. The depth is taken in parts, whatever the number of threads, so
// that a slow core holds up the others for a part of a block of rows at most.
void gruclip_product_where_kept(float* result, const float* left, const float* right, const float* mask, long m,
                                long depth, long n, long right_down, long right_across, int threads) {
    // Rows whose sums for a block of columns stay in the second-level cache, and panels of the depth's parts, at most.
    constexpr long ROWS = 176, MOST_PANELS = 24, FEWEST_PARTS = 2;
    const long most = std::max<long>(1, std::min(ROWS, parts(m, threads)));
    const std::vector<Kept> all = kept_rows({mask, n, 1}, m, n, most, threads);
    const Matrix factor = {right, right_down, right_across}, source = {left, depth, 1};
    const long chunks = all.size(), blocks = all[0].blocks;
    const long all_panels = std::max<long>(1, parts(depth, WIDTH));
    const long part = parts(all_panels, std::max(FEWEST_PARTS, parts(all_panels, MOST_PANELS))) * WIDTH;
    const long count = parts(all_panels * WIDTH, part);
    std::vector<long> start(chunks * blocks + 1);  // of the kept elements of a block
    for (long b = 0; b < chunks * blocks; b++) {
        const Kept& kept = all[b / blocks];
        start[b + 1] = start[b];
        const uint64_t* which = kept.which.get() + b % blocks * kept.rows;
        for (long i = 0; i < kept.rows; i++) start[b + 1] += __builtin_popcountll(which[i]);
    }
    const long elements = start[chunks * blocks];
    const Array partial = allocate(count * elements + 1);
#pragma omp parallel num_threads(threads)
    {
        const Array packed = allocate(DEEPEST * WIDTH), piece = allocate(most * part);
        const Array sums = allocate(most * DEEPEST * LANES);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < chunks * count; task++) {
            const long b = task % chunks, first = task / chunks * part, end = std::min(first + part, depth);
            const Kept& kept = all[b];
            const long panels = parts(end - first, WIDTH);
            const auto used = [&](long p) { return std::min<long>(WIDTH, end - first - p * WIDTH); };
            for (long p = 0; p < panels; p++)
                pack(piece.get() + p * kept.rows * WIDTH, WIDTH, source, kept.first, kept.rows, first + p * WIDTH,
                     used(p));
            for (long q = 0; q < blocks; q++) {
                const long here = start[b * blocks + q], size = start[b * blocks + q + 1] - here;
                std::memset(sums.get(), 0, size * LANES * sizeof(float));
                for (long p = 0; p < panels; p++) {
                    pack(packed.get(), WIDTH, factor, q * kept.block, kept.columns(q), first + p * WIDTH, used(p));
                    const long next = std::min(p + 1 < panels ? q : q + 1, blocks - 1), then = (p + 1) % panels;
                    Ahead ahead(factor, next * kept.block, kept.columns(next), first + then * WIDTH, used(then),
                                kept.rows);
                    multiply_where_kept(sums.get(), kept, q, piece.get() + p * kept.rows * WIDTH, packed.get(), ahead);
                }
                float* to = partial.get() + task / chunks * elements + here;
                for (long e = 0; e < size; e++) to[e] = total(load(sums.get() + e * LANES));
            }
        }
#pragma omp for schedule(dynamic)
        for (long b = 0; b < chunks; b++) {
            const Kept& kept = all[b];
            std::memset(result + kept.first * n, 0, kept.rows * n * sizeof(float));
            for (long q = 0; q < blocks; q++) {
                const float* value = kept.values.get() + q * kept.rows * kept.block;
                long e = start[b * blocks + q];
                for (long i = 0; i < kept.rows; i++)
                    for (uint64_t bits = kept.which[q * kept.rows + i]; bits; bits &= bits - 1, e++) {
                        float sum = partial[e];
                        for (long other = 1; other < count; other++) sum += partial[other * elements + e];
                        result[(kept.first + i) * n + q * kept.block + __builtin_ctzll(bits)] = *value++ * sum;
                    }
            }
        }
    }
}

}  // extern "C"
