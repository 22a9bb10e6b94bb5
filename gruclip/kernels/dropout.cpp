// Products that leave out what dropout set to zero: half of the operations at the protocol's rate.
//
// A register tile of many rows and a skipped element do not go together, since every row skips others. So two rows are
// worked on at a time, or one where there are few registers. What both of them keep is multiplied for both, by an
// operand that is loaded once; the rest for one row, by an operand from the first-level cache, where a block of the right
// factor stays for all rows. One row at a time loads would bound it: a core loads as many vectors in a cycle as it
// multiplies.

#include <cstdint>
#include <vector>

#include "panels.h"

namespace {

constexpr long LINE = 16;          // floats in a cache line
constexpr long CACHED = 24576;     // bytes that a block of the right factor takes: three quarters of 32 KiB
constexpr long MOST_ROWS = 704;    // whose sums for a panel stay in the second-level cache
constexpr int ROWS = REGISTERS > 16 ? 2 : 1;  // at a time

// Vectors of a panel of the right factor, where its rows are multiplied by elements and the sums lie in registers, and
// where rows of the left factor do.
constexpr int VECS = 12 / ROWS, SUMMED = 12;

// Rows of a panel of so many vectors in a block: bits of a word.
constexpr long deepest(long vectors) {
    return std::min<long>(64, CACHED / (vectors * LANES * static_cast<long>(sizeof(float))));
}

template <typename Visit>
[[gnu::always_inline]] inline void each_bit(uint64_t bits, Visit visit) {
    for (; bits; bits &= bits - 1) visit(__builtin_ctzll(bits));
}

// What one or two rows keep of a block: the columns of both, then those of the first and of the second row alone. In
// that order are their elements, those of both by turns.
struct Pair {
    uint64_t both, first, second;
    bool two;  // rows, or the last one of an odd number
};

// The elements of rows first ... first + rows - 1 of a matrix (., depth) that are not zero, by blocks of columns.
struct Kept {
    long first, rows, depth, block, blocks;
    std::unique_ptr<uint64_t[]> which;  // (blocks, rows): the bits of the columns
    Array values;                       // (blocks, rows * block): those of a block in the order of `Pair`

    Kept(long first, long rows, long depth, long deepest)
        : first(first),
          rows(rows),
          depth(depth),
          block(parts(depth, parts(depth, deepest))),
          blocks(parts(depth, block)),
          which(new uint64_t[blocks * rows]),
          values(allocate(blocks * rows * block)) {}

    long columns(long q) const { return std::min(block, depth - q * block); }

    // Of row i of block q, and row i + 1 where two are taken at a time.
    Pair pair(long q, long i) const {
        const bool two = ROWS == 2 && i + 1 < rows;
        const uint64_t one = which[q * rows + i], other = two ? which[q * rows + i + 1] : 0;
        return {one & other, one & ~other, other & ~one, two};
    }

    const float* begin(long q) const { return values.get() + q * rows * block; }

    void read(const Matrix& matrix, long q) {
        for (long i = 0; i < rows; i++) {
            uint64_t bits = 0;
            for (long t = 0; t < columns(q); t++)
                bits |= static_cast<uint64_t>(*matrix.at(first + i, q * block + t) != 0) << t;
            which[q * rows + i] = bits;
        }
        float* value = values.get() + q * rows * block;
        for (long i = 0; i < rows; i += ROWS) {
            const Pair kept = pair(q, i);
            const auto take = [&](long row, long t) { *value++ = *matrix.at(first + row, q * block + t); };
            each_bit(kept.both, [&](long t) { take(i, t), take(i + 1, t); });
            each_bit(kept.first, [&](long t) { take(i, t); });
            each_bit(kept.second, [&](long t) { take(i + 1, t); });
        }
    }
};

std::vector<Kept> kept_rows(const Matrix& matrix, long rows, long depth, long most_rows, long deepest, int threads) {
    std::vector<Kept> all;
    const long count = parts(rows, most_rows);
    for (long b = 0; b < count; b++) {
        const long first = rows * b / count;
        all.emplace_back(first, rows * (b + 1) / count - first, depth, deepest);
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
    constexpr long WIDTH = COUNT * LANES;
    const float* value = kept.begin(q);
    for (long i = 0; i < kept.rows; i += ROWS, sums += ROWS * WIDTH, to += ROWS * down) {
        const Pair pair = kept.pair(q, i);
        vec s[2][COUNT] = {};
#pragma GCC unroll 2
        for (int row = 0; row < ROWS; row++)
            if (ADD && row <= pair.two)
#pragma GCC unroll 16
                for (int v = 0; v < COUNT; v++) s[row][v] = load(sums + row * WIDTH + v * LANES);
        each_bit(pair.both, [&](long k) __attribute__((always_inline)) {
            const vec x = splat(*value++), y = splat(*value++);
#pragma GCC unroll 16
            for (int v = 0; v < COUNT; v++) {
                const vec factor = in_register(load(packed + k * WIDTH + v * LANES));
                s[0][v] += x * factor;
                s[1][v] += y * factor;
            }
        });
        each_bit(pair.first, [&](long k) __attribute__((always_inline)) {
            const vec x = splat(*value++);
#pragma GCC unroll 16
            for (int v = 0; v < COUNT; v++) s[0][v] += x * load(packed + k * WIDTH + v * LANES);
        });
        each_bit(pair.second, [&](long k) __attribute__((always_inline)) {
            const vec y = splat(*value++);
#pragma GCC unroll 16
            for (int v = 0; v < COUNT; v++) s[1][v] += y * load(packed + k * WIDTH + v * LANES);
        });
#pragma GCC unroll 2
        for (int row = 0; row < ROWS; row++)
            if (row <= pair.two)
#pragma GCC unroll 16
                for (int v = 0; v < COUNT; v++) store(to + row * down + v * LANES, s[row][v]);
    }
}

// sums (kept elements of block q, a vector each, in the order of `Pair`) += for every kept element (i, k) of block q,
// lane by lane, row i of left (rows, SUMMED vectors) times row k of packed (block, SUMMED vectors).
void multiply_where_kept(float* sums, const Kept& kept, long q, const float* left, const float* packed, Ahead& ahead) {
    constexpr long WIDTH = SUMMED * LANES;
    for (long i = 0; i < kept.rows; i += ROWS, left += ROWS * WIDTH) {
        ahead.step();
        const Pair pair = kept.pair(q, i);
        vec x[2][SUMMED] = {};
#pragma GCC unroll 2
        for (int row = 0; row < ROWS; row++)
            if (row <= pair.two)
#pragma GCC unroll 16
                for (int v = 0; v < SUMMED; v++) x[row][v] = load(left + row * WIDTH + v * LANES);
        each_bit(pair.both, [&](long k) __attribute__((always_inline)) {
            const float* factor = packed + k * WIDTH;
            vec even[2] = {load(sums), load(sums + LANES)}, odd[2] = {};
#pragma GCC unroll 16
            for (int v = 0; v < SUMMED; v += 2) {
                const vec one = in_register(load(factor + v * LANES));
                even[0] += x[0][v] * one;
                even[1] += x[1][v] * one;
                const vec other = in_register(load(factor + (v + 1) * LANES));
                odd[0] += x[0][v + 1] * other;
                odd[1] += x[1][v + 1] * other;
            }
            store(sums, even[0] + odd[0]);
            store(sums + LANES, even[1] + odd[1]);
            sums += 2 * LANES;
        });
        const auto alone = [&](const vec* row, long k) __attribute__((always_inline)) {
            const float* factor = packed + k * WIDTH;
            vec even = load(sums), odd = {};
#pragma GCC unroll 16
            for (int v = 0; v < SUMMED; v += 2) {
                even += row[v] * load(factor + v * LANES);
                odd += row[v + 1] * load(factor + (v + 1) * LANES);
            }
            store(sums, even + odd);
            sums += LANES;
        };
        each_bit(pair.first, [&](long k) __attribute__((always_inline)) { alone(x[0], k); });
        each_bit(pair.second, [&](long k) __attribute__((always_inline)) { alone(x[1], k); });
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
    const std::vector<Kept> all =
        kept_rows({left, left_down, left_across}, m, depth, MOST_ROWS, deepest(VECS), threads);
    const Matrix factor = {right, right_down, right_across};
    const long vectors = parts(n, LANES), panels = parts(vectors, VECS), count = parts(vectors, panels);
    const long width = count * LANES;
    const auto indices = std::make_integer_sequence<int, VECS>{};
    const MultiplyKept begin = pick_kept<false>(count, indices), add = pick_kept<true>(count, indices);
#pragma omp parallel num_threads(threads)
    {
        const Array packed = allocate(deepest(VECS) * width), sums = allocate(MOST_ROWS * width);
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
    constexpr long WIDTH = SUMMED * LANES, FEW = 176, MOST_PANELS = 24, FEWEST_PARTS = 2;
    constexpr int TOGETHER = ROWS == 2 ? LANES : 1;  // of whose lanes the sums are taken
    const long most = std::max<long>(1, std::min(FEW, parts(m, threads)));
    const std::vector<Kept> all = kept_rows({mask, n, 1}, m, n, most, deepest(SUMMED), threads);
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
        const Array packed = allocate(deepest(SUMMED) * WIDTH), piece = allocate(most * part);
        const Array sums = allocate((most * deepest(SUMMED) + TOGETHER) * LANES);
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
                                parts(kept.rows, ROWS));
                    multiply_where_kept(sums.get(), kept, q, piece.get() + p * kept.rows * WIDTH, packed.get(), ahead);
                }
                float* to = partial.get() + task / chunks * elements + here;
                for (long e = 0; e < size; e += TOGETHER) {
                    vec v[TOGETHER];
#pragma GCC unroll 16
                    for (int i = 0; i < TOGETHER; i++) v[i] = load(sums.get() + (e + i) * LANES);
                    store(to + e, totals(v, TOGETHER), std::min<long>(TOGETHER, size - e));
                }
            }
        }
#pragma omp for schedule(dynamic)
        for (long b = 0; b < chunks; b++) {
            const Kept& kept = all[b];
            std::memset(result + kept.first * n, 0, kept.rows * n * sizeof(float));
            for (long q = 0; q < blocks; q++) {
                const float* value = kept.begin(q);
                long e = start[b * blocks + q];
                for (long i = 0; i < kept.rows; i += ROWS) {
                    const Pair pair = kept.pair(q, i);
                    float* row = result + (kept.first + i) * n + q * kept.block;
                    const auto masked = [&] {
                        float sum = partial[e];
                        for (long other = 1; other < count; other++) sum += partial[other * elements + e];
                        e++;
                        return *value++ * sum;
                    };
                    each_bit(pair.both, [&](long k) { row[k] = masked(), row[n + k] = masked(); });
                    each_bit(pair.first, [&](long k) { row[k] = masked(); });
                    each_bit(pair.second, [&](long k) { row[n + k] = masked(); });
                }
            }
        }
    }
}

}  // extern "C"
