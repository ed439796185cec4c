/// Keys and values of a cache as codes: ops/cache_codes.py defines what they stand for, and every rung makes its bits.
#ifndef QRT_CACHE_CODES_H
#define QRT_CACHE_CODES_H

#include <stdbool.h>
#include <stdint.h>

enum { QRT_MOST_CLUSTERS = 16 };

/// How a row, the channels of one token and head, is stored: `channels · bits / 8` bytes and `2 · clusters` floats, the scales
/// and then the lows. bits is 2, 4 or 8, and the bytes are whole.
typedef struct {
    int64_t bits, channels, clusters;
} qrt_cache_form;

static inline bool qrt_is_cache_form(const qrt_cache_form *form) {
    bool has_bits = form->bits == 2 || form->bits == 4 || form->bits == 8;
    return has_bits && form->channels > 0 && form->channels <= INT32_MAX && form->channels * form->bits % 8 == 0 &&
           form->clusters >= 1 && form->clusters <= QRT_MOST_CLUSTERS;
}

static inline int64_t qrt_cache_row_bytes(const qrt_cache_form *form) { return form->channels * form->bits / 8; }

/// `labels` say of every channel which cluster it is in, below `clusters`; NULL puts all in the first.
typedef struct qrt_cache_codes {
    /// Rows lie one after the other. `fits`: with the ranges for which codes err least, in place of those of the extremes.
    void (*quantize)(const qrt_cache_form *form, int64_t rows, const float *x, const uint8_t *labels, bool fits, uint8_t *codes,
                     float *ranges);
    /// Of codes and ranges every `step`-th row, into rows one after the other.
    void (*dequantize)(const qrt_cache_form *form, int64_t rows, const uint8_t *codes, const float *ranges, int64_t step,
                       const uint8_t *labels, float *y);
} qrt_cache_codes;

#endif
