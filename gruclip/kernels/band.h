// What band.cpp leaves for eigen.cpp.
#pragma once

#include <algorithm>

namespace {

constexpr long BAND = 4, WIDTH = BAND + 1;  // diagonals below the main one; with it

// Of the vector of the reflection that row i holds, of n.
inline long reflection_length(long i, long n) {
    const long p = i / BAND * BAND, rows = std::min(BAND, n - p);
    return std::max<long>(0, p - (rows - 1 - (i - p)));
}

}  // namespace
