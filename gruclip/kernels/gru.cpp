// The recurrent part of the paper's GRU for a whole window, forward and backward: every step's two products and
// what lies between them, without leaving the processor's caches. See gruclip/gru.py for the equations.
//
// A row of the batch never meets another one, so each thread takes some rows through all the steps, and no thread
// waits for another. A row's numbers do not depend on how the rows are shared out. Weights are packed into panels
// of PANEL columns that a product reads from front to back, a thread's rows into blocks of up to BLOCK rows, so that
// the sums of a block and a panel stay in registers.

#include "pairs.h"

namespace {

long padded(long n) { return parts(n, LANES) * LANES; }

// How the factors of the recurrent products are kept: as float32, as float32 rounded to bfloat16, or as pairs of
// bfloat16, each in the place of a float.
enum class Format { SINGLE, ROUNDED, PAIRS };

Format format(int to_bf16) { return !to_bf16 ? Format::SINGLE : HAS_PAIRS ? Format::PAIRS : Format::ROUNDED; }

// Places that a depth of n takes.
long places(long n, Format format) { return format == Format::PAIRS ? (n + 1) / 2 : n; }

// The panel of a matrix (depth, width) that begins at column `left`.
void pack_panel(float* panel, const Matrix& matrix, long depth, long width, long left, Format format) {
    const int wide = panel_width(width, left), used = std::min<long>(wide, width - left);
    if (format != Format::PAIRS) pack(panel, wide, matrix, 0, depth, left, used);
    if (format == Format::ROUNDED)
        for (long i = 0; i < depth * wide; i += LANES) store(panel + i, round_to_bf16(load(panel + i)));
    if (format != Format::PAIRS) return;
    constexpr long STRIP = 16;
    float rows[STRIP * PANEL];
    for (long first = 0; first < depth; first += STRIP) {
        const long high = std::min(STRIP, depth - first);
        pack(rows, wide, matrix, first, high, left, used);
        if (high % 2) std::memset(rows + high * wide, 0, wide * sizeof(float));
        for (const float* row = rows; row < rows + high * wide; row += wide)
            for (const float* end = row + wide; row < end; row += LANES, panel += LANES) {
                const uvec upper = bits_of(round_to_bf16(load(row + wide)));
                store(panel, from_bits(bits_of(round_to_bf16(load(row))) >> 16 | upper));
            }
    }
}

using Multiply = void (*)(float*, long, const float*, const float*, long);
template <int VECS, int... ROWS>
constexpr Multiply pick(int rows, bool pairs, std::integer_sequence<int, ROWS...>) {
    constexpr Multiply single[] = {multiply<ROWS + 1, false, VECS>...}, paired[] = {multiply_pairs<ROWS + 1, VECS>...};
    return (pairs ? paired : single)[rows - 1];
}

// Some rows of a batch as blocks: the left factor of a product, of a given number of places.
struct Rows {
    int rows, in_block, blocks;
    Format format;
    Multiply times, times_narrow;  // panels of two vectors and of one

    Rows(int rows, Format format)
        : rows(rows),
          in_block((rows + (rows + BLOCK - 1) / BLOCK - 1) / ((rows + BLOCK - 1) / BLOCK)),
          blocks((rows + in_block - 1) / in_block),
          format(format),
          times(pick<2>(in_block, format == Format::PAIRS, std::make_integer_sequence<int, BLOCK>{})),
          times_narrow(pick<1>(in_block, format == Format::PAIRS, std::make_integer_sequence<int, BLOCK>{})) {}

    int padded_rows() const { return in_block * blocks; }
    Array factor(long deep) const { return zeros(padded_rows() * deep); }

    // Lanes k ... k + count - 1 of row m, k even; `from` places of other factors lie before them.
    void put(float* factor, long deep, int m, long from, long k, vec v, int count) const {
        float* to = factor + (m / in_block) * in_block * deep + (from + places(k, format)) * in_block + m % in_block;
        if (format == Format::PAIRS) {
            float pairs[LANES / 2];
            bvec rounded = to_bf16(v);
            if (count % 2) rounded[count] = 0;  // what it multiplies is zero, but it may be infinite
            std::memcpy(pairs, &rounded, sizeof pairs);
            for (int lane = 0; lane < (count + 1) / 2; lane++) to[lane * in_block] = pairs[lane];
            return;
        }
        if (format == Format::ROUNDED) v = round_to_bf16(v);
        for (int lane = 0; lane < count; lane++) to[lane * in_block] = v[lane];
    }

    // sums (padded_rows, width), rows `down` apart, = factor times packed (deep, width), panel after panel.
    void product(float* sums, long down, const float* factor, const float* packed, long deep, long width) const {
        for (long j = 0; j < width; j += PANEL)
            for (int b = 0; b < blocks; b++)
                (panel_width(width, j) == PANEL ? times : times_narrow)(
                    sums + b * in_block * down + j, down, factor + b * in_block * deep, packed + j * deep, deep);
    }
};

int share(int total, int parts, int part) { return static_cast<long>(total) * part / parts; }

}  // namespace

extern "C" {

// sums (T, B, 3n): W_ih x_t, in place the gates r, z, c. states (T + 1, B, n): states[0] = h_0 is given.
// keep (T, B) or null: zero where the state is reset before the step. weight (3n, n): weight_hh.
void gruclip_gru_forward(float* sums, float* states, const float* keep, const float* weight, long steps, long batch,
                         long n, int threads, int in_bf16) {
    const Format kept_as = format(in_bf16);
    const long width = padded(n), panels = parts(n, PANEL), deep = places(n, kept_as);
    const Array weights = allocate(deep * 3 * width);
    float* const gates = weights.get();
    float* const candidate = gates + deep * 2 * width;
    threads = std::min<long>(threads, batch);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long panel = 0; panel < 3 * panels; panel++) {
            const long part = panel / panels, first = panel % panels * PANEL;
            pack_panel(gates + (part * width + first) * deep, {weight + part * n * n, 1, n}, n, n, first, kept_as);
        }
#pragma omp for schedule(static, 1)
        for (int thread = 0; thread < threads; thread++) {
            const long begin = share(batch, threads, thread);
            const Rows mine(share(batch, threads, thread + 1) - begin, kept_as);
            const Array h_factor = mine.factor(deep), rh_factor = mine.factor(deep);
            const Array product = zeros(mine.padded_rows() * 2 * width);
            const Array h_kept = zeros(mine.rows * n);
            for (int m = 0; m < mine.rows; m++)
                for (long j = 0; j < n; j += LANES) {
                    const int count = std::min<long>(LANES, n - j);
                    const vec h = load(states + (begin + m) * n + j, count) * (keep ? keep[begin + m] : 1.0f);
                    store(h_kept.get() + m * n + j, h, count);
                    mine.put(h_factor.get(), deep, m, 0, j, h, count);
                }
            for (long t = 0; t < steps; t++) {
                for (long part = 0; part < 2; part++)
                    mine.product(product.get() + part * width, 2 * width, h_factor.get(), gates + part * width * deep,
                                 deep, width);
                for (int m = 0; m < mine.rows; m++) {
                    float* sum = sums + (t * batch + begin + m) * 3 * n;
                    const float* recurrent = product.get() + m * 2 * width;
                    for (long j = 0; j < n; j += LANES) {
                        const int count = std::min<long>(LANES, n - j);
                        const vec r = sigmoid(load(sum + j, count) + load(recurrent + j));
                        const vec z = sigmoid(load(sum + n + j, count) + load(recurrent + width + j));
                        store(sum + j, r, count);
                        store(sum + n + j, z, count);
                        const vec rh = r * load(h_kept.get() + m * n + j, count);
                        mine.put(rh_factor.get(), deep, m, 0, j, rh, count);
                    }
                }
                mine.product(product.get(), width, rh_factor.get(), candidate, deep, width);
                for (int m = 0; m < mine.rows; m++) {
                    float* sum = sums + (t * batch + begin + m) * 3 * n;
                    float* next = states + ((t + 1) * batch + begin + m) * n;
                    const float kept = keep && t + 1 < steps ? keep[(t + 1) * batch + begin + m] : 1.0f;
                    const float* recurrent = product.get() + m * width;
                    for (long j = 0; j < n; j += LANES) {
                        const int count = std::min<long>(LANES, n - j);
                        const vec c = tanh(load(sum + 2 * n + j, count) + load(recurrent + j));
                        const vec z = load(sum + n + j, count);
                        vec h = c + z * (load(h_kept.get() + m * n + j, count) - c);
                        store(sum + 2 * n + j, c, count);
                        store(next + j, h, count);
                        h *= kept;
                        store(h_kept.get() + m * n + j, h, count);
                        mine.put(h_factor.get(), deep, m, 0, j, h, count);
                    }
                }
            }
        }
    }
}

// grad (T, B, n): of the states h_1 ... h_T. gates (T, B, 3n), states, keep, weight: as the forward pass left them.
// Written: d_sums (T, B, 3n), the gradients of the sums; h_before (T, B, n), the states before each step, and
// rh_before, r * h: the factors of weight_hh's gradient; d_h0 (B, n).
void gruclip_gru_backward(const float* grad, const float* gates, const float* states, const float* keep,
                          const float* weight, float* d_sums, float* h_before, float* rh_before, float* d_h0,
                          long steps, long batch, long n, int threads, int in_bf16) {
    const Format kept_as = format(in_bf16);
    const long width = padded(n), panels = parts(n, PANEL), deep = places(n, kept_as);
    const Array weights = allocate(deep * 3 * width);
    float* const by_gates = weights.get();  // both gates' rows, one below the other
    float* const by_candidate = by_gates + deep * 2 * width;
    threads = std::min<long>(threads, batch);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long panel = 0; panel < 3 * panels; panel++) {
            const long part = panel / panels, first = panel % panels * PANEL, wide = panel_width(width, first);
            float* packed = part < 2 ? by_gates + (first * 2 + part * wide) * deep : by_candidate + first * deep;
            pack_panel(packed, {weight + part * n * n, n, 1}, n, n, first, kept_as);
        }
#pragma omp for schedule(static, 1)
        for (int thread = 0; thread < threads; thread++) {
            const long begin = share(batch, threads, thread);
            const Rows mine(share(batch, threads, thread + 1) - begin, kept_as);
            const Array c_factor = mine.factor(deep), rz_factor = mine.factor(2 * deep);
            const Array product = zeros(mine.padded_rows() * width);
            // What reaches h_{t-1} past the gates; from the step after it, and then the rest of it.
            const Array carry = zeros(mine.rows * n);
            for (long t = steps - 1; t >= 0; t--) {
                for (int m = 0; m < mine.rows; m++) {
                    const long row = t * batch + begin + m;
                    const float kept = keep ? keep[row] : 1.0f;
                    for (long j = 0; j < n; j += LANES) {
                        const int count = std::min<long>(LANES, n - j);
                        const vec h = load(states + row * n + j, count) * kept;
                        const vec z = load(gates + row * 3 * n + n + j, count);
                        const vec c = load(gates + row * 3 * n + 2 * n + j, count);
                        float* carried = carry.get() + m * n + j;
                        const vec dh = load(grad + row * n + j, count) + load(carried, count);
                        const vec d_c = dh * (1.0f - z) * (1.0f - c * c);
                        const vec d_z = dh * (h - c) * z * (1.0f - z);
                        store(d_sums + row * 3 * n + 2 * n + j, d_c, count);
                        store(d_sums + row * 3 * n + n + j, d_z, count);
                        store(h_before + row * n + j, h, count);
                        store(carried, dh * z, count);
                        mine.put(c_factor.get(), deep, m, 0, j, d_c, count);
                        mine.put(rz_factor.get(), 2 * deep, m, deep, j, d_z, count);
                    }
                }
                mine.product(product.get(), width, c_factor.get(), by_candidate, deep, width);
                for (int m = 0; m < mine.rows; m++) {
                    const long row = t * batch + begin + m;
                    for (long j = 0; j < n; j += LANES) {
                        const int count = std::min<long>(LANES, n - j);
                        const vec h = load(h_before + row * n + j, count);
                        const vec r = load(gates + row * 3 * n + j, count);
                        const vec d_rh = load(product.get() + m * width + j);
                        const vec d_r = d_rh * h * r * (1.0f - r);
                        float* carried = carry.get() + m * n + j;
                        store(carried, load(carried, count) + d_rh * r, count);
                        store(d_sums + row * 3 * n + j, d_r, count);
                        store(rh_before + row * n + j, r * h, count);
                        mine.put(rz_factor.get(), 2 * deep, m, 0, j, d_r, count);
                    }
                }
                mine.product(product.get(), width, rz_factor.get(), by_gates, 2 * deep, width);
                for (int m = 0; m < mine.rows; m++) {
                    const float kept = keep ? keep[t * batch + begin + m] : 1.0f;
                    for (long j = 0; j < n; j += LANES) {
                        const int count = std::min<long>(LANES, n - j);
                        float* carried = carry.get() + m * n + j;
                        store(carried, (load(carried, count) + load(product.get() + m * width + j)) * kept, count);
                    }
                }
            }
            std::memcpy(d_h0 + begin * n, carry.get(), mine.rows * n * sizeof(float));
        }
    }
}

}  // extern "C"
