/// Quantize a row to bytes, for the rungs that multiply bytes. Inside a region of AVX2.

static inline __m256i rounded(__m256 x, __m256 inverse_scale) { return _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse_scale)); }

/// Two packs and the sum between them saturate, which limits codes to 0 … 255 and makes what has no int32, as NaN, 0; `most`
/// limits them to fewer.
static inline __m256i quantize32(__m256 x0, __m256 x1, __m256 x2, __m256 x3, __m256 inverse, __m256i zero,
                                 __m256i most) {
    __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(rounded(x0, inverse), rounded(x1, inverse)), zero);
    __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(rounded(x2, inverse), rounded(x3, inverse)), zero);
    __m256i codes = _mm256_min_epu8(_mm256_packus_epi16(low, high), most);
    return _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static void quantize(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point, int32_t qmax,
                     void *packed, int64_t *sum) {
    uint8_t *q = packed;
    __m256 inverse = _mm256_set1_ps(inverse_scale);
    __m256i zero = _mm256_set1_epi16((int16_t)zero_point), most = _mm256_set1_epi8((char)qmax), total = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 32 <= k; i += 32) {
        const float *x = a + i;
        __m256i codes = quantize32(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8), _mm256_loadu_ps(x + 16),
                                   _mm256_loadu_ps(x + 24), inverse, zero, most);
        _mm256_storeu_si256((__m256i *)(q + i), codes);
        total = _mm256_add_epi64(total, _mm256_sad_epu8(codes, _mm256_setzero_si256()));
    }
    if (i < k_padded) {
        int64_t rest = k - i;
        __m256 x[4];
        for (int j = 0; j < 4; j++) {
            int64_t n = rest - 8 * j;
            x[j] = n >= 8 ? _mm256_loadu_ps(a + i + 8 * j) : n > 0 ? vf_load_n(a + i + 8 * j, n) : vf_zero();
        }
        uint8_t codes[32];
        _mm256_storeu_si256((__m256i *)codes, quantize32(x[0], x[1], x[2], x[3], inverse, zero, most));
        memset(codes + rest, 0, (size_t)(32 - rest));
        __m256i valid = _mm256_loadu_si256((const __m256i *)codes);
        total = _mm256_add_epi64(total, _mm256_sad_epu8(valid, _mm256_setzero_si256()));
        memcpy(q + i, codes, (size_t)(k_padded - i));
    }
    __m128i sums = _mm_add_epi64(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    if (sum) *sum = _mm_cvtsi128_si64(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums)));
}

/// 16 floats of an image, or zeros.
static inline const float *piece_at(const float *x, int64_t place, const bool any_outside) {
    static const float zeros[16];
    return any_outside && place == QRT_OUTSIDE ? zeros : x + place;
}

/// A row in pieces: see quantize_pieces of qrt_codes_q8.
static inline __attribute__((always_inline)) void
quantize_row_of_pieces(const bool any_outside, const float *x, const int64_t *places, int64_t num_pieces, float inverse_scale,
                       int32_t zero_point, int32_t qmax, uint8_t *q) {
    const __m256 inverse = _mm256_set1_ps(inverse_scale);
    const __m256i zero = _mm256_set1_epi16((int16_t)zero_point), most = _mm256_set1_epi8((char)qmax);
    int64_t i = 0;
    for (; i + 2 <= num_pieces; i += 2, q += 32) {
        const float *a = piece_at(x, places[i], any_outside), *b = piece_at(x, places[i + 1], any_outside);
        __m256i codes = quantize32(_mm256_loadu_ps(a), _mm256_loadu_ps(a + 8), _mm256_loadu_ps(b), _mm256_loadu_ps(b + 8), inverse, zero, most);
        _mm256_storeu_si256((__m256i *)q, codes);
    }
    if (i == num_pieces) return;
    const float *a = piece_at(x, places[i], any_outside);
    __m256i codes = quantize32(_mm256_loadu_ps(a), _mm256_loadu_ps(a + 8), vf_zero(), vf_zero(), inverse, zero, most);
    _mm_storeu_si128((__m128i *)q, _mm256_castsi256_si128(codes));
}
