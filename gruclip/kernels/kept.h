// What dropout left of a matrix, and how it is walked through.
#pragma once

#include <cstdint>
#include <vector>

#include "pairs.h"

namespace {

constexpr long LINE = 16;                     // floats in a cache line
constexpr long CACHED = 24576;                // bytes that a block of the right factor takes: three quarters of 32 KiB
constexpr long MOST_ROWS = 704;               // whose sums for a panel stay in the second-level cache
constexpr int ROWS = REGISTERS > 16 ? 2 : 1;  // at a time

// Vectors of a panel of the right factor, where its rows are multiplied by elements and the sums lie in registers, and
// where rows of the left factor do.
constexpr int VECS = 12 / ROWS, SUMMED = 12;

// Rows of a panel of so many vectors in a block: bits of a word.
constexpr long deepest(long vectors) {
    return std::min<long>(64, CACHED / (vectors * LANES * static_cast<long>(sizeof(float))));
}

// What a factor's element is: a float, or a pair of bfloat16 in the place of one.
struct Single {
    static bool is_zero(float x) { return x == 0; }
    static vec add(vec sum, vec x, vec y) { return sum + x * y; }
};

struct Paired {
    static bool is_zero(float x) {
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        return (bits & 0x7fff7fffu) == 0;
    }
    static vec add(vec sum, vec x, vec y) { return add_pairs(sum, x, y); }
};

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

    template <typename Element>
    void read(const Matrix& matrix, long q) {
        for (long i = 0; i < rows; i++) {
            uint64_t bits = 0;
            for (long t = 0; t < columns(q); t++)
                bits |= static_cast<uint64_t>(!Element::is_zero(*matrix.at(first + i, q * block + t))) << t;
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

template <typename Element>
std::vector<Kept> kept_rows(const Matrix& matrix, long rows, long depth, long most_rows, long deepest, int threads) {
    std::vector<Kept> all;
    const long count = parts(rows, most_rows);
    for (long b = 0; b < count; b++) {
        const long first = rows * b / count;
        all.emplace_back(first, rows * (b + 1) / count - first, depth, deepest);
    }
    const long blocks = all[0].blocks;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long task = 0; task < count * blocks; task++) all[task / blocks].read<Element>(matrix, task % blocks);
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

}  // namespace
