// Softmax and negative log-likelihood of a window's rows, each while it lies in the processor's caches.

#include <cmath>

#include "panels.h"

namespace {

// Where a row is worked on: in place in float32, of another type in `scratch`.
float* workplace(float* row, float*) { return row; }
float* workplace(bf16*, float* scratch) { return scratch; }

template <typename Logit>
void softmax_nll(Logit* logits, const float* bias, const long* targets, float* nll, float* d_bias, long rows,
                 long width, int threads) {
    // Of the rows, each with sums of its columns: what is added in which order does not depend on the threads.
    constexpr long SHARES = 16;
    const Array sums = d_bias == nullptr ? nullptr : zeros(SHARES * width);
#pragma omp parallel num_threads(threads)
    {
        const Array scratch = allocate(width);
#pragma omp for schedule(dynamic)
        for (long share = 0; share < SHARES; share++)
            for (long m = rows * share / SHARES; m < rows * (share + 1) / SHARES; m++) {
                Logit* row = logits + m * width;
                float* work = workplace(row, scratch.get());
                const auto each = [&](auto&& f) __attribute__((always_inline)) {
                    long j = 0;
                    for (; j + LANES <= width; j += LANES) f(j, LANES);
                    if (j < width) f(j, static_cast<int>(width - j));
                };
                vec largest = splat(-INFINITY);
                each([&](long j, int count) __attribute__((always_inline)) {
                    vec x = load(row + j, count) + load(bias + j, count);
                    store(work + j, x, count);
                    for (int lane = count; lane < LANES; lane++) x[lane] = -INFINITY;
                    largest = select(x > largest, x, largest);
                });
                float top = -INFINITY;
                for (int lane = 0; lane < LANES; lane++) top = std::max(top, largest[lane]);
                const float target = work[targets[m]];
                vec exponentials = {};
                each([&](long j, int count) __attribute__((always_inline)) {
                    vec e = exp(load(work + j, count) - top);
                    for (int lane = count; lane < LANES; lane++) e[lane] = 0;
                    store(work + j, e, count);
                    exponentials += e;
                });
                const float sum = total(exponentials);
                nll[m] = std::log(sum) + top - target;
                if (d_bias == nullptr) continue;
                const float scale = 1.0f / sum;
                work[targets[m]] -= sum;  // 1 of the probability
                float* columns = sums.get() + share * width;
                each([&](long j, int count) __attribute__((always_inline)) {
                    const vec gradient = load(work + j, count) * scale;
                    store(columns + j, load(columns + j, count) + gradient, count);
                    store(row + j, gradient, count);
                });
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

}  // namespace

extern "C" {

// logits (M, V), float32 or bfloat16, without the bias (V): in place their gradient, softmax(logits + bias) less the
// target's one-hot row. nll (M): -log softmax(logits + bias)[target]. d_bias (V): the sums of the gradient's columns;
// null where no gradient is wanted, and logits then hold nothing of use. NaN or infinity in a row makes its nll NaN.
void gruclip_softmax_nll(void* logits, const float* bias, const long* targets, float* nll, float* d_bias, long rows,
                         long width, int in_bf16, int threads) {
    if (in_bf16) softmax_nll(static_cast<bf16*>(logits), bias, targets, nll, d_bias, rows, width, threads);
    else softmax_nll(static_cast<float*>(logits), bias, targets, nll, d_bias, rows, width, threads);
}

}  // extern "C"
