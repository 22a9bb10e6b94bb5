// What tall thin matrices share: basis.cpp and ritz.cpp. All are row-major.
#pragma once

#include "panels.h"

namespace {

// How far apart columns of n numbers are kept: by a power of two they would drive each other out of the cache.
inline long apart(long n) { return n + 16; }

// The columns of matrix (rows, columns), one after the other.
template <typename Number>
void turn(const float* matrix, long rows, long columns, Number* turned) {
    constexpr long STRIP = 16;  // rows that the first-level cache holds until all columns have been read
    for (long first = 0; first < rows; first += STRIP)
        for (long j = 0; j < columns; j++)
            for (long i = first; i < std::min(first + STRIP, rows); i++)
                turned[j * apart(rows) + i] = matrix[i * columns + j];
}

// The same, and zeros up to `most` of them.
template <typename Number>
ArrayOf<Number> turn(const float* matrix, long rows, long columns, long most) {
    ArrayOf<Number> turned = allocate<Number>(apart(rows) * most);
    std::fill(turned.get() + apart(rows) * columns, turned.get() + apart(rows) * most, Number());
    turn(matrix, rows, columns, turned.get());
    return turned;
}

// result (rows, width) = matrix (rows, depth) times `panels` (depth, width), packed.
[[maybe_unused]] void multiply_thin(float* result, const float* matrix, const float* panels, long rows, long depth,
                                    long width) {
    for (long left = 0; left < width; left += PANEL, panels += depth * PANEL) {
        const long used = std::min<long>(PANEL, width - left);
        for (long first = 0; first < rows; first += BLOCK) {
            double totals[BLOCK * PANEL] = {};
            const long high = std::min<long>(BLOCK, rows - first);
            add_runs<BLOCK, 2>(totals, matrix + first * depth, depth, 1, panels, high, depth);
            for (long i = 0; i < high; i++)
                std::copy(totals + i * PANEL, totals + i * PANEL + used, result + (first + i) * width + left);
        }
    }
}

}  // namespace
