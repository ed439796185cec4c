/// What nodes on 8-bit codes share.
#ifndef QRT_CODES_H
#define QRT_CODES_H

#include "arguments.h"

static inline bool qrt_has_codes(const qrt_tensor *t) { return t && (t->dtype == QRT_U8 || t->dtype == QRT_I8); }

/// What makes 0 … 255 of the bytes of uint8 or int8 codes.
static inline uint8_t qrt_flip(int32_t dtype) { return dtype == QRT_I8 ? 0x80 : 0; }

#endif
