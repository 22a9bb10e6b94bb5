// Products in registers: a block of rows times a panel of columns. Used by all that multiplies.
#pragma once

#include "arrays.h"
#include "vectors.h"

namespace {

constexpr long WORTH_A_THREAD = 1000000;  // products of numbers: below, starting a thread takes longer

constexpr int PANEL = 2 * LANES;  // columns; one vector of them, if a matrix's last panel has no more
// The sums take 2 BLOCK registers; two more hold the panel's row and one the broadcast element.
constexpr int BLOCK = (REGISTERS - 4) / 2;

// Columns of the panel that begins at column `left` of `width`.
inline int panel_width(long width, long left) { return width - left > LANES ? PANEL : LANES; }

inline long parts(long total, long most) { return (total + most - 1) / most; }

// A matrix of any layout: element (i, j) is at i down + j across.
struct Matrix {
    const float* data;
    long down, across;

    const float* at(long i, long j) const { return data + i * down + j * across; }
};

// packed (depth, width) = rows first ... first + depth - 1 and `used` columns from column `left`; the rest of it zero.
inline void pack(float* packed, int width, const Matrix& matrix, long first, long depth, long left, int used) {
    if (used < width) std::memset(packed, 0, depth * width * sizeof(float));
    if (matrix.across == 1) {
        const auto copy = [&](long size) __attribute__((always_inline)) {
            for (long k = 0; k < depth; k++) std::memcpy(packed + k * width, matrix.at(first + k, left), size);
        };
        // Sizes that the compiler knows need no call.
        if (used == PANEL) copy(PANEL * sizeof(float));
        else if (used == BLOCK) copy(BLOCK * sizeof(float));
        else copy(used * sizeof(float));
        return;
    }
    constexpr long STRIP = 16;  // floats in a cache line
    for (long k0 = 0; k0 < depth; k0 += STRIP)
        for (int j = 0; j < used; j++) {
            const float* source = matrix.at(first, left + j);
            for (long k = k0; k < std::min(k0 + STRIP, depth); k++) packed[k * width + j] = source[k * matrix.down];
        }
}

// sums (ROWS, VECS vectors), rows `stride` apart, = the rows of a matrix, `down` apart and their elements `across`
// apart, times panel (depth, VECS vectors), or += that. Inlined, so that strides the caller knows cost nothing.
template <int ROWS, bool ADD, int VECS = 2>
[[gnu::always_inline]] inline void multiply_in_place(float* sums, long stride, const float* matrix, long down,
                                                     long across, const float* panel, long depth) {
    vec s[ROWS][VECS];
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 3
        for (int v = 0; v < VECS; v++) s[m][v] = vec{};
    for (long k = 0; k < depth; k++) {
        vec row[VECS];
#pragma GCC unroll 3
        for (int v = 0; v < VECS; v++) row[v] = load(panel + v * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; m++) {
            const vec element = splat(matrix[m * down]);
#pragma GCC unroll 3
            for (int v = 0; v < VECS; v++) s[m][v] += element * row[v];
        }
        panel += VECS * LANES;
        matrix += across;
    }
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 3
        for (int v = 0; v < VECS; v++) {
            float* place = sums + m * stride + v * LANES;
            store(place, ADD ? load(place) + s[m][v] : s[m][v]);
        }
}

// The same for up to ROWS rows.
template <int ROWS, bool ADD, int VECS = 2>
void multiply_rows(float* sums, long stride, const float* rows, long down, long across, const float* panel, long high,
                   long depth) {
    if (high == ROWS) return multiply_in_place<ROWS, ADD, VECS>(sums, stride, rows, down, across, panel, depth);
    for (long i = 0; i < high; i++)
        multiply_in_place<1, ADD, VECS>(sums + i * stride, stride, rows + i * down, down, across, panel, depth);
}

// Terms of a sum that are added up in single precision where each digit of it counts. Equal terms are all rounded the
// same way, as in a constant matrix times a constant vector: their sum's error grows with their number, not its root.
constexpr long RUN = 8, LONG_RUN = 32;

// totals (ROWS, VECS vectors) += the same for up to ROWS rows: of sums of `run` terms.
template <int ROWS, int VECS>
void add_runs(double* totals, const float* rows, long down, long across, const float* panel, long high, long depth,
              long run = RUN) {
    constexpr long WIDTH = VECS * LANES;
    float sums[ROWS * WIDTH];
    for (long k = 0; k < depth; k += run) {
        multiply_rows<ROWS, false, VECS>(sums, WIDTH, rows + k * across, down, across, panel + k * WIDTH, high,
                                         std::min(run, depth - k));
        if (high == ROWS)
            for (long i = 0; i < ROWS * WIDTH; i++) totals[i] += sums[i];
        else
            for (long i = 0; i < high * WIDTH; i++) totals[i] += sums[i];
    }
}

// multiply_in_place for a packed block (depth, ROWS), transposed.
template <int ROWS, bool ADD, int VECS = 2>
void multiply(float* sums, long stride, const float* block, const float* panel, long depth) {
    multiply_in_place<ROWS, ADD, VECS>(sums, stride, block, 1, ROWS, panel, depth);
}

}  // namespace
