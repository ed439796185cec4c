/// Transposing 8 × 8 floats. Include inside a target region of AVX2 or better.
#ifndef QRT_TRANSPOSE_AVX2_H
#define QRT_TRANSPOSE_AVX2_H

/// to[j · to_stride + i] = from[i · from_stride + j] for i, j < 8.
static inline __attribute__((always_inline, unused)) void transpose_8x8(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    __m256 half[8], pair[8];
    // Row i beside row i + 4 in each register, so that no step after the loads crosses the two halves.
    for (int i = 0; i < 4; i++) {
        const float *low = from + i * from_stride, *high = low + 4 * from_stride;
        half[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
        half[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low + 4)), _mm_loadu_ps(high + 4), 1);
    }
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(half[i], half[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(half[i], half[i + 1]);
    }
    for (int i = 0; i < 8; i += 4, to += 4 * to_stride) {
        _mm256_storeu_ps(to, _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44));
        _mm256_storeu_ps(to + to_stride, _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee));
        _mm256_storeu_ps(to + 2 * to_stride, _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44));
        _mm256_storeu_ps(to + 3 * to_stride, _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee));
    }
}

#endif
