// Products that leave out what dropout set to zero: half of the operations at the protocol's rate.
//
// A register tile of many rows and a skipped element do not go together, since every row skips others. So two rows are
// worked on at a time, or one where there are few registers. What both of them keep is multiplied for both, by an
// operand that is loaded once; the rest for one row, by an operand from the first-level cache, where a block of the
// right factor stays for all rows. One row at a time loads would bound it: a core loads as many vectors in a cycle as
// it multiplies.

#include "kept.h"

namespace {

// to (rows, COUNT vectors), `down` apart, = the kept elements of block q times packed (block, COUNT vectors), plus sums
// (rows, COUNT vectors) if they are to be added.
template <typename Element, int COUNT, bool ADD>
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
                s[0][v] = Element::add(s[0][v], x, factor);
                s[1][v] = Element::add(s[1][v], y, factor);
            }
        });
        each_bit(pair.first, [&](long k) __attribute__((always_inline)) {
            const vec x = splat(*value++);
#pragma GCC unroll 16
            for (int v = 0; v < COUNT; v++) s[0][v] = Element::add(s[0][v], x, load(packed + k * WIDTH + v * LANES));
        });
        each_bit(pair.second, [&](long k) __attribute__((always_inline)) {
            const vec y = splat(*value++);
#pragma GCC unroll 16
            for (int v = 0; v < COUNT; v++) s[1][v] = Element::add(s[1][v], y, load(packed + k * WIDTH + v * LANES));
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
template <typename Element>
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
                even[0] = Element::add(even[0], x[0][v], one);
                even[1] = Element::add(even[1], x[1][v], one);
                const vec other = in_register(load(factor + (v + 1) * LANES));
                odd[0] = Element::add(odd[0], x[0][v + 1], other);
                odd[1] = Element::add(odd[1], x[1][v + 1], other);
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
                even = Element::add(even, row[v], load(factor + v * LANES));
                odd = Element::add(odd, row[v + 1], load(factor + (v + 1) * LANES));
            }
            store(sums, even + odd);
            sums += LANES;
        };
        each_bit(pair.first, [&](long k) __attribute__((always_inline)) { alone(x[0], k); });
        each_bit(pair.second, [&](long k) __attribute__((always_inline)) { alone(x[1], k); });
    }
}

using MultiplyKept = void (*)(float*, long, const float*, const Kept&, long, const float*);
template <typename Element, bool ADD, int... COUNT>
constexpr MultiplyKept pick_kept(int count, std::integer_sequence<int, COUNT...>) {
    constexpr MultiplyKept table[] = {multiply_kept<Element, COUNT + 1, ADD>...};
    return table[count - 1];
}

// A right factor of bfloat16, (depth, width), as pairs: row-major, or its pairs lie side by side.
struct PairedMatrix {
    const bf16* data;
    long down, across;
};

// pack of panels.h for a right factor of pairs.
void pack(float* packed, long width, const PairedMatrix& matrix, long first, long depth, long left, long used) {
    if (matrix.across != 1)
        return pack(packed, width, Matrix{reinterpret_cast<const float*>(matrix.data), 1, matrix.across / 2}, first,
                    depth, left, used);
    for (long k = 0; k < depth; k++, packed += width) {
        const bf16* row = matrix.data + 2 * (first + k) * matrix.down + left;
        for (long j = 0; j < width; j += LANES) {
            const int count = std::clamp<long>(used - j, 0, LANES);
            const uvec upper = bits_of(load(row + matrix.down + j, count));
            store(packed + j, from_bits(bits_of(load(row + j, count)) >> 16 | upper));
        }
    }
}

// result (m, n), its elements `result_down` and `result_across` apart, = left (m, depth) times right (depth, n).
template <typename Element, typename Result, typename Right>
void product_of_kept(Result* result, const Matrix& left, const Right& right, long m, long depth, long n,
                     long result_down, long result_across, int threads) {
    const std::vector<Kept> all = kept_rows<Element>(left, m, depth, MOST_ROWS, deepest(VECS), threads);
    const long vectors = parts(n, LANES), panels = parts(vectors, VECS), count = parts(vectors, panels);
    const long width = count * LANES;
    const auto indices = std::make_integer_sequence<int, VECS>{};
    const MultiplyKept begin = pick_kept<Element, false>(count, indices),
                       add = pick_kept<Element, true>(count, indices);
#pragma omp parallel num_threads(threads)
    {
        const Array packed = allocate(deepest(VECS) * width), sums = allocate(MOST_ROWS * width);
#pragma omp for schedule(dynamic)
        for (long task = 0; task < panels * static_cast<long>(all.size()); task++) {
            const Kept& kept = all[task % all.size()];
            const long left_column = task / all.size() * width;
            const long used = std::min(width, n - left_column);
            if (used <= 0) continue;
            // The last block's sums go straight to where they belong, if that takes whole vectors of floats.
            constexpr bool SINGLE = std::is_same_v<Result, float>;
            const bool whole = SINGLE && used == width && result_across == 1;
            Result* target = result + kept.first * result_down + left_column * result_across;
            for (long q = 0; q < kept.blocks; q++) {
                pack(packed.get(), width, right, q * kept.block, kept.columns(q), left_column, used);
                const bool arrived = whole && q + 1 == kept.blocks;
                float* to = sums.get();
                if constexpr (SINGLE)
                    if (arrived) to = target;
                (q == 0 ? begin : add)(to, arrived ? result_down : width, sums.get(), kept, q, packed.get());
            }
            if (whole) continue;
            for (long i = 0; i < kept.rows; i++) {
                Result* to = target + i * result_down;
                const float* from = sums.get() + i * width;
                const int together = result_across == 1 ? LANES : 1;
                for (long j = 0; j < used; j += together)
                    store(to + j * result_across, load(from + j, together), std::min<long>(together, used - j));
            }
        }
    }
}

// result (m, n) = mask * (left (m, depth), row-major, times right (n, depth) transposed).
template <typename Element>
void product_where_kept(float* result, const float* left, const Matrix& right, const float* mask, long m, long depth,
                        long n, int threads) {
    // Rows whose sums for a block of columns stay in the second-level cache, and panels of the depth's parts, at most.
    constexpr long WIDTH = SUMMED * LANES, FEW = 176 * ROWS, MOST_PANELS = 24 / ROWS, FEWEST_PARTS = 2;
    constexpr int TOGETHER = ROWS == 2 ? LANES : 1;  // of whose lanes the sums are taken
    const long most = std::max<long>(1, std::min(FEW, parts(m, threads)));
    const std::vector<Kept> all = kept_rows<Single>({mask, n, 1}, m, n, most, deepest(SUMMED), threads);
    const Matrix source = {left, depth, 1};
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
                    pack(packed.get(), WIDTH, right, q * kept.block, kept.columns(q), first + p * WIDTH, used(p));
                    const long next = std::min(p + 1 < panels ? q : q + 1, blocks - 1), then = (p + 1) % panels;
                    Ahead ahead(right, next * kept.block, kept.columns(next), first + then * WIDTH, used(then),
                                parts(kept.rows, ROWS));
                    multiply_where_kept<Element>(sums.get(), kept, q, piece.get() + p * kept.rows * WIDTH, packed.get(),
                                                 ahead);
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

}  // namespace

extern "C" {

// Whether the processor multiplies pairs of bfloat16.
extern const int gruclip_has_pairs = HAS_PAIRS;

// result (m, n) = left (m, depth) times right (depth, n), each of any layout; zeros of `left` take no time.
void gruclip_product_of_kept(float* result, const float* left, const float* right, long m, long depth, long n,
                             long result_down, long result_across, long left_down, long left_across, long right_down,
                             long right_across, int threads) {
    product_of_kept<Single>(result, {left, left_down, left_across}, Matrix{right, right_down, right_across}, m, depth,
                            n, result_down, result_across, threads);
}

// The same of bfloat16, of an even depth, left row-major; to float32 or to_bf16. Pairs of zeros take no time, and a
// zero beside another number is multiplied.
void gruclip_product_of_kept_pairs(void* result, const float* left, const bf16* right, long m, long depth, long n,
                                   long result_down, long result_across, long right_down, long right_across,
                                   int to_bf16, int threads) {
    const Matrix pairs = {left, depth / 2, 1};
    const PairedMatrix factor = {right, right_down, right_across};
    if (to_bf16)
        product_of_kept<Paired>(static_cast<bf16*>(result), pairs, factor, m, depth / 2, n, result_down, result_across,
                                threads);
    else
        product_of_kept<Paired>(static_cast<float*>(result), pairs, factor, m, depth / 2, n, result_down, result_across,
                                threads);
}

// result (m, n) = mask * (left (m, depth) times right (n, depth) transposed), all but right row-major: only those
// elements where mask (m, n) is not zero take time. The depth is taken in parts, whatever the number of threads, so
// that a slow core holds up the others for a part of a block of rows at most.
void gruclip_product_where_kept(float* result, const float* left, const float* right, const float* mask, long m,
                                long depth, long n, long right_down, long right_across, int threads) {
    product_where_kept<Single>(result, left, {right, right_down, right_across}, mask, m, depth, n, threads);
}

// The same of bfloat16, of an even depth, right row-major, too, its rows `right_down` apart.
void gruclip_product_where_kept_pairs(float* result, const float* left, const float* right, const float* mask, long m,
                                      long depth, long n, long right_down, int threads) {
    product_where_kept<Paired>(result, left, {right, right_down / 2, 1}, mask, m, depth / 2, n, threads);
}

}  // extern "C"
