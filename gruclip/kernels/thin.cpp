// A matrix times a few columns, for the projection's subspace methods: the matrix is read once, where it lies.

#include <numeric>

#include "narrow.h"
#include "panels.h"
#include "thin.h"

namespace {

constexpr long WORTH_READING = 100000;  // numbers, of which a sum is taken: as WORTH_A_THREAD
constexpr long SHARES = 4;              // of a matrix's rows: what one thread reads, it writes, too
constexpr long BACK_RUN = 256;          // rows whose products are added up in single precision, as RUN

// Of a transposed matrix whose elements lie so many floats apart or more, pieces of DEEP by PIECE are copied together
// first: a cache line of it serves several blocks of rows, and is otherwise gone before the next one needs it.
constexpr long FAR_APART = 1024, DEEP = 32, TILES = 16, PIECE = TILES * BLOCK;

// Products with a panel of VECS vectors: of HEIGHT rows at once. More rows than a first-level cache has ways drive each
// other out of it where they lie a power of two apart.
template <int VECS>
struct Thin {
    static constexpr long WIDTH = VECS * LANES, HEIGHT = std::min(BLOCK, 8);

    // totals (high, WIDTH) += up to PIECE rows of a transposed matrix times panel (n, WIDTH): row i begins at rows + i,
    // its elements are `across` apart.
    static void add_turned(double* totals, const float* rows, long across, const float* panel, long high, long n,
                           long run) {
        float piece[DEEP * PIECE];
        for (long k = 0; k < n; k += DEEP) {
            const long deep = std::min(DEEP, n - k);
            for (long i = 0; i < deep; i++)
                std::memcpy(piece + i * PIECE, rows + (k + i) * across, high * sizeof(float));
            for (long i = 0; i < high; i += HEIGHT)
                add_runs<HEIGHT, VECS>(totals + i * WIDTH, piece + i, 1, PIECE, panel + k * WIDTH,
                                       std::min(HEIGHT, high - i), deep, run);
        }
    }

    // Columns left ... left + used - 1 of result (m, width) = matrix (m, n) times columns (n, width).
    static void product(float* result, const float* matrix, const float* columns, long m, long n, long width, long left,
                        long used, long down, long across, long run, int threads) {
        const Array panel = allocate(n * WIDTH);
        const bool turned = down == 1 && across >= FAR_APART;
        const long step = turned ? PIECE : HEIGHT;
        pack(panel.get(), WIDTH, {columns, width, 1}, 0, n, left, used);
#pragma omp parallel for schedule(static) num_threads(threads)
        for (long first = 0; first < m; first += step) {
            double totals[PIECE * WIDTH];
            const float* rows = matrix + first * down;
            const long high = std::min(step, m - first);
            std::fill(totals, totals + high * WIDTH, 0.0);
            if (turned) add_turned(totals, rows, across, panel.get(), high, n, run);
            else add_runs<HEIGHT, VECS>(totals, rows, down, across, panel.get(), high, n, run);
            for (long i = 0; i < high; i++)
                std::copy(totals + i * WIDTH, totals + i * WIDTH + used, result + (first + i) * width + left);
        }
    }

    // sums (n, WIDTH) += the transpose of ROWS rows, `down` apart, times there (ROWS, WIDTH), which stays in registers.
    template <int ROWS>
    static void add_back(float* sums, const float* rows, long down, const float* there, long n) {
        vec t[ROWS][VECS];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
            for (int v = 0; v < VECS; v++) t[r][v] = in_register(load(there + r * WIDTH + v * LANES));
        for (long j = 0; j < n; j++, sums += WIDTH) {
            vec s[VECS];
#pragma GCC unroll 3
            for (int v = 0; v < VECS; v++) s[v] = load(sums + v * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
                const vec element = splat(rows[r * down + j]);
#pragma GCC unroll 3
                for (int v = 0; v < VECS; v++) s[v] += element * t[r][v];
            }
#pragma GCC unroll 3
            for (int v = 0; v < VECS; v++) store(sums + v * LANES, s[v]);
        }
    }

    // A row of the first share, += those of the others, `stride` apart.
    template <typename Number>
    static void add_shares(Number* row, long stride) {
        for (long share = 1; share < SHARES; share++)
            for (long c = 0; c < WIDTH; c++) row[c] += row[share * stride + c];
    }

    // The same columns of image (m, width) = W X and of back (n, width) = W^T image; `exactly`: in sums of RUN terms,
    // and of BACK_RUN.
    static void there_and_back(float* image, float* back, const float* matrix, const float* columns, long m, long n,
                               long width, long left, long used, long down, bool exactly, int threads) {
        const Array panel = allocate(n * WIDTH), sums = allocate(SHARES * n * WIDTH);
        const bool settles = exactly && m > SHARES * BACK_RUN;
        const ArrayOf<double> settled = zeros<double>(settles ? SHARES * n * WIDTH : 0);
        pack(panel.get(), WIDTH, {columns, width, 1}, 0, n, left, used);
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (long share = 0; share < SHARES; share++) {
                float* sum = sums.get() + share * n * WIDTH;
                double* mine = settled.get() + share * n * WIDTH;
                std::memset(sum, 0, n * WIDTH * sizeof(float));
                const long begin = m * share / SHARES, end = m * (share + 1) / SHARES;
                for (long i = begin; i < end; i += HEIGHT) {
                    const long high = std::min(HEIGHT, end - i);
                    const float* rows = matrix + i * down;
                    float there[HEIGHT * WIDTH];
                    if (exactly) {
                        double totals[HEIGHT * WIDTH] = {};
                        add_runs<HEIGHT, VECS>(totals, rows, down, 1, panel.get(), high, n);
                        std::copy(totals, totals + high * WIDTH, there);
                    } else {
                        multiply_rows<HEIGHT, false, VECS>(there, WIDTH, rows, down, 1, panel.get(), high, n);
                    }
                    for (long r = 0; r < high; r++)
                        std::memcpy(image + (i + r) * width + left, there + r * WIDTH, used * sizeof(float));
                    if (high == HEIGHT) add_back<HEIGHT>(sum, rows, down, there, n);
                    else
                        for (long r = 0; r < high; r++) add_back<1>(sum, rows + r * down, down, there + r * WIDTH, n);
                    if (settles && ((i + high - begin) % BACK_RUN == 0 || i + high == end))
                        for (long j = 0; j < n * WIDTH; j++) mine[j] += sum[j], sum[j] = 0;
                }
            }
#pragma omp for schedule(static)
            for (long j = 0; j < n; j++) {
                if (settles) add_shares(settled.get() + j * WIDTH, n * WIDTH);
                else add_shares(sums.get() + j * WIDTH, n * WIDTH);
                float* to = back + j * width + left;
                for (long c = 0; c < used; c++)
                    to[c] = settles ? static_cast<float>(settled[j * WIDTH + c]) : sums[j * WIDTH + c];
            }
        }
    }
};

}  // namespace

void there_and_back(float* image, float* back, const float* matrix, const float* columns, long m, long n, long width,
                    long down, bool exactly, int threads) {
    if (2 * m * n * width < WORTH_A_THREAD) threads = 1;
    for (long left = 0, used; left < width; left += used) {
        const long rest = width - left;
        // A third vector costs less than a panel of its own, where there are registers for it.
        const bool three = REGISTERS >= 32 && rest > PANEL && rest <= PANEL + LANES;
        used = three ? rest : std::min<long>(PANEL, rest);
        (three ? Thin<3>::there_and_back
         : used > LANES
             ? Thin<2>::there_and_back
             : Thin<1>::there_and_back)(image, back, matrix, columns, m, n, width, left, used, down, exactly, threads);
    }
}

extern "C" {

// result (m, width) = matrix (m, n), element (i, j) at i down + j across, times columns (n, width), both row-major.
// Sums are those of `run` terms, but of up to NARROW columns.
void gruclip_thin_product(float* result, const float* matrix, const float* columns, long m, long n, long width,
                          long down, long across, long run, int threads) {
    if (m * n * width < WORTH_A_THREAD) threads = 1;
    if (0 < width && width <= NARROW && (down == 1 || across == 1)) {
        (width == 1   ? narrow_product<1>
         : width == 2 ? narrow_product<2>
                      : narrow_product<3>)(result, matrix, columns, m, n, down, across, threads);
        return;
    }
    for (long left = 0; left < width; left += PANEL) {
        const long used = std::min<long>(PANEL, width - left);
        (used > LANES ? Thin<2>::product : Thin<1>::product)(result, matrix, columns, m, n, width, left, used, down,
                                                             across, run, threads);
    }
}

// image (m, width) = W X and back (n, width) = W^T image for a matrix W (m, n), rows `down` apart, and columns X (n,
// width), in one pass over it, in sums of RUN terms and of BACK_RUN. What comes back is summed in SHARES shares,
// whatever the number of threads.
void gruclip_there_and_back(float* image, float* back, const float* matrix, const float* columns, long m, long n,
                            long width, long down, int threads) {
    there_and_back(image, back, matrix, columns, m, n, width, down, true, threads);
}

// matrix (m, n), rows `down` apart, -= left (m, width) times the transpose of right (n, width), each of any layout. A
// thread has the rows that it has in there_and_back, which are in its cache.
void gruclip_take_off(float* matrix, const float* left, const float* right, long m, long n, long width, long down,
                      long left_down, long left_across, long right_down, long right_across, int threads) {
    const Array panels = allocate(parts(n, PANEL) * width * PANEL);
    if (m * n < WORTH_READING) threads = 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long j = 0; j < n; j += PANEL) {
            float* panel = panels.get() + j * width;
            pack(panel, PANEL, {right, right_across, right_down}, 0, width, j, std::min<long>(PANEL, n - j));
            for (long k = 0; k < width * PANEL; k++) panel[k] = -panel[k];
        }
#pragma omp for schedule(static)
        for (long share = 0; share < SHARES; share++) {
            const long end = m * (share + 1) / SHARES;
            for (long i = m * share / SHARES; i < end; i += BLOCK)
                for (long j = 0, high = std::min<long>(BLOCK, end - i); j < n; j += PANEL) {
                    const float *rows = left + i * left_down, *panel = panels.get() + j * width;
                    float* to = matrix + i * down + j;
                    if (n - j >= PANEL) {
                        for (long k = 0; k < width; k += LONG_RUN)
                            multiply_rows<BLOCK, true>(to, down, rows + k * left_across, left_down, left_across,
                                                       panel + k * PANEL, high, std::min(LONG_RUN, width - k));
                        continue;
                    }
                    double totals[BLOCK * PANEL] = {};
                    add_runs<BLOCK, 2>(totals, rows, left_down, left_across, panel, high, width);
                    for (long r = 0; r < high; r++)
                        for (long c = 0; c < n - j; c++) to[r * down + c] += totals[r * PANEL + c];
                }
        }
    }
}

// The sum of (a - b)^2 over two (m, n) matrices, rows `a_down` and `b_down` apart, to 2e-6 however many columns there
// are: in double precision but for 64 squares at a time. Of a^2 where b is null.
void gruclip_squared_distance(double* result, const float* a, const float* b, long m, long n, long a_down, long b_down,
                              int threads) {
    constexpr long ROWS = 16, COLUMNS = 64 * LANES;
    const long count = parts(m, ROWS);
    if (m * n < WORTH_READING) threads = 1;
    std::unique_ptr<double[]> sums(new double[count]);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long part = 0; part < count; part++) {
        double sum = 0;
        for (long i = part * ROWS; i < std::min((part + 1) * ROWS, m); i++) {
            for (long first = 0; first < n; first += COLUMNS) {
                vec squares = {};
                for (long j = first; j < std::min(first + COLUMNS, n); j += LANES) {
                    const int count = std::min<long>(LANES, n - j);
                    vec d = load(a + i * a_down + j, count);
                    if (b) d -= load(b + i * b_down + j, count);
                    squares += d * d;
                }
                for (int lane = 0; lane < LANES; lane++) sum += squares[lane];
            }
        }
        sums[part] = sum;
    }
    // One order whatever the number of threads.
    *result = 0;
    for (long part = 0; part < count; part++) *result += sums[part];
}

// squares (n): the sum of the squares of each column of a (m, n), rows `down` apart and their elements `across`, one of
// which is 1, in double precision.
void gruclip_column_squares(double* squares, const float* a, long m, long n, long down, long across, int threads) {
    constexpr long COLUMNS = 64;
    if (m * n < WORTH_READING) threads = 1;
    if (across != 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (long j = 0; j < n; j++) {
            const float* column = a + j * across;
            double sums[COLUMNS] = {};
            for (long first = 0; first < m; first += COLUMNS)
                for (long i = 0; i < std::min(COLUMNS, m - first); i++)
                    sums[i] += static_cast<double>(column[first + i]) * column[first + i];
            squares[j] = std::accumulate(sums, sums + COLUMNS, 0.0);
        }
        return;
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long left = 0; left < n; left += COLUMNS) {
        const long used = std::min(COLUMNS, n - left);
        double sums[COLUMNS] = {};
        const auto add = [&](const float* row, long count) __attribute__((always_inline)) {
            for (long j = 0; j < count; j++) sums[j] += static_cast<double>(row[j]) * row[j];
        };
        for (long i = 0; i < m; i++) {
            const float* row = a + i * down + left;
            // A size that the compiler knows goes into registers.
            if (used == COLUMNS) add(row, COLUMNS);
            else add(row, used);
        }
        std::copy(sums, sums + used, squares + left);
    }
}

}  // extern "C"
