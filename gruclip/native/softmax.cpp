// Softmax and negative log-likelihood of a window's rows, each while it lies in the processor's caches.

#include <algorithm>
#include <cmath>

#include "vectors.h"

extern "C" {

// logits (M, V) without the bias: in place their gradient, softmax(logits + bias) - onehot(target). bias (V).
// nll (M): -log softmax(logits + bias)[target]. d_bias (V): the sums of the gradient's columns; null where no
// gradient is wanted, and logits then hold nothing of use. NaN or infinity in a row makes its nll NaN.
void gruclip_softmax_nll(float* logits, const float* bias, const long* targets, float* nll, float* d_bias, long rows,
                         long width, int threads) {
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long m = 0; m < rows; m++) {
            float* row = logits + m * width;
            vec largest = splat(-INFINITY);
            for (long j = 0; j < width; j += LANES) {
                const int count = std::min<long>(LANES, width - j);
                vec x = load(row + j, count) + load(bias + j, count);
                store(row + j, x, count);
                for (int lane = count; lane < LANES; lane++) x[lane] = -INFINITY;
                largest = select(x > largest, x, largest);
            }
            float top = -INFINITY;
            for (int lane = 0; lane < LANES; lane++) top = std::max(top, largest[lane]);
            const float target = row[targets[m]];
            vec sums = {};
            for (long j = 0; j < width; j += LANES) {
                const int count = std::min<long>(LANES, width - j);
                vec e = exp(load(row + j, count) - top);
                for (int lane = count; lane < LANES; lane++) e[lane] = 0;
                store(row + j, e, count);
                sums += e;
            }
            float sum = 0;
            for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
            nll[m] = std::log(sum) + top - target;
            if (d_bias == nullptr) continue;
            const float scale = 1.0f / sum;
            for (long j = 0; j < width; j++) row[j] *= scale;
            row[targets[m]] -= 1.0f;
        }
        if (d_bias != nullptr) {
            // Each thread some columns of all rows: the order of a sum does not depend on the number of threads.
            constexpr long COLUMNS = 1024;
#pragma omp for schedule(static)
            for (long first = 0; first < width; first += COLUMNS) {
                const long end = std::min(first + COLUMNS, width);
                std::fill(d_bias + first, d_bias + end, 0.0f);
                for (long m = 0; m < rows; m++)
                    for (long j = first; j < end; j++) d_bias[j] += logits[m * width + j];
            }
        }
    }
}

}  // extern "C"
