// Softmax and negative log-likelihood of a window's rows, each while it lies in the processor's caches.

#include <cmath>

#include "panels.h"

extern "C" {

// logits (M, V) without the bias: in place their gradient, softmax(logits + bias) - onehot(target). bias (V).
// nll (M): -log softmax(logits + bias)[target]. d_bias (V): the sums of the gradient's columns; null where no
// gradient is wanted, and logits then hold nothing of use. NaN or infinity in a row makes its nll NaN.
void gruclip_softmax_nll(float* logits, const float* bias, const long* targets, float* nll, float* d_bias, long rows,
                         long width, int threads) {
    // Of the rows, each with sums of its columns: what is added in which order does not depend on the threads.
    constexpr long SHARES = 16;
    const Array sums = d_bias == nullptr ? nullptr : zeros(SHARES * width);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (long share = 0; share < SHARES; share++)
            for (long m = rows * share / SHARES; m < rows * (share + 1) / SHARES; m++) {
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
                vec exponentials = {};
                for (long j = 0; j < width; j += LANES) {
                    const int count = std::min<long>(LANES, width - j);
                    vec e = exp(load(row + j, count) - top);
                    for (int lane = count; lane < LANES; lane++) e[lane] = 0;
                    store(row + j, e, count);
                    exponentials += e;
                }
                float sum = 0;
                for (int lane = 0; lane < LANES; lane++) sum += exponentials[lane];
                nll[m] = std::log(sum) + top - target;
                if (d_bias == nullptr) continue;
                const float scale = 1.0f / sum;
                float* columns = sums.get() + share * width;
                for (long j = 0; j < width; j++) columns[j] += row[j] *= scale;
                row[targets[m]] -= 1.0f;
                columns[targets[m]] -= 1.0f;
            }
        if (d_bias != nullptr) {
#pragma omp for schedule(static)
            for (long j = 0; j < width; j++) {
                d_bias[j] = 0;
                for (long share = 0; share < SHARES; share++) d_bias[j] += sums[share * width + j];
            }
        }
    }
}

}  // extern "C"
