// Dropout's masks, from counters and not from one number after the other.

#include <cstdint>

extern "C" {

// bits (runs, words): SplitMix64's numbers for each of the seeds (runs).
void gruclip_random_bits(uint64_t* bits, const uint64_t* seeds, long runs, long words, int threads) {
    for (long run = 0; run < runs; run++) {
        const uint64_t seed = seeds[run];
        uint64_t* row = bits + run * words;
#pragma omp parallel for simd schedule(static) num_threads(threads)
        for (long i = 0; i < words; i++) {
            uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
            z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
            row[i] = z ^ (z >> 31);
        }
    }
}

// mask (count) = factor where the random bits (count) are below `threshold`, zero elsewhere.
void gruclip_mask(float* mask, const int16_t* bits, const float* factor, long count, long threshold, int threads) {
    const int below = static_cast<int>(threshold);
    const float kept = *factor;
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (long i = 0; i < count; i++) mask[i] = bits[i] < below ? kept : 0.0f;
}

}  // extern "C"
