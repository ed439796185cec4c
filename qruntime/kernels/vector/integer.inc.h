/// Binary operations on int32, int64 and bool. Plain loops, which the compiler vectorizes for the target
/// region that includes them; portable includes them too.

/// Three loops, so that the one at hand has constant strides.
#define INTEGER(prefix, name, type, result, expression)                                                            \
    static void prefix##_##name(const void *va, const void *vb, void *vy, int64_t n, int a_step, int b_step) {     \
        const type *pa = va, *pb = vb;                                                                             \
        result *y = vy;                                                                                            \
        if (a_step && b_step) {                                                                                    \
            for (int64_t i = 0; i < n; i++) { type a = pa[i], b = pb[i]; y[i] = (result)(expression); }            \
        } else if (a_step) {                                                                                       \
            if (n) { type b = *pb; for (int64_t i = 0; i < n; i++) { type a = pa[i]; y[i] = (result)(expression); } } \
        } else if (b_step) {                                                                                       \
            if (n) { type a = *pa; for (int64_t i = 0; i < n; i++) { type b = pb[i]; y[i] = (result)(expression); } } \
        } else {                                                                                                   \
            for (int64_t i = 0; i < n; i++) { type a = *pa, b = *pb; y[i] = (result)(expression); }                \
        }                                                                                                          \
    }

#define INTEGER_TYPE(prefix, type, unsigned_type)                                          \
    INTEGER(prefix, add, type, type, (unsigned_type)a + (unsigned_type)b)                  \
    INTEGER(prefix, sub, type, type, (unsigned_type)a - (unsigned_type)b)                  \
    INTEGER(prefix, mul, type, type, (unsigned_type)a * (unsigned_type)b)                  \
    INTEGER(prefix, div, type, type, a / b)                                                \
    INTEGER(prefix, min, type, type, a < b ? a : b)                                        \
    INTEGER(prefix, max, type, type, a > b ? a : b)                                        \
    INTEGER(prefix, mod, type, type, a % b + ((a % b != 0 && (a % b ^ b) < 0) ? b : 0))    \
    INTEGER(prefix, fmod, type, type, a % b)                                               \
    INTEGER(prefix, equal, type, uint8_t, a == b)                                          \
    INTEGER(prefix, less, type, uint8_t, a < b)                                            \
    INTEGER(prefix, less_equal, type, uint8_t, a <= b)                                     \
    INTEGER(prefix, greater, type, uint8_t, a > b)                                         \
    INTEGER(prefix, greater_equal, type, uint8_t, a >= b)

INTEGER_TYPE(i32, int32_t, uint32_t)
INTEGER_TYPE(i64, int64_t, uint64_t)
INTEGER(bool, and, uint8_t, uint8_t, a & b)
INTEGER(bool, or, uint8_t, uint8_t, a | b)
INTEGER(bool, xor, uint8_t, uint8_t, a ^ b)
INTEGER(bool, equal, uint8_t, uint8_t, a == b)

/// Eight elements in memory. From a plain loop gcc makes wide loads, twice, which cross cache lines wherever x is an array of numpy's.
typedef uint32_t u32x8_there __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t u32x16_there __attribute__((vector_size(64), aligned(4), may_alias));

static void twice(const uint32_t *restrict x, uint32_t *restrict y, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const u32x8_there v = *(const u32x8_there *)(x + i);
        *(u32x16_there *)(y + 2 * i) = __builtin_shufflevector(v, v, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    }
    for (; i < n; i++) y[2 * i] = y[2 * i + 1] = x[i];
}

static void set_integer_slots(qrt_pointwise *table) {
    table->twice = twice;
#define SET(enumerator, name)                            \
    table->binary_i32[QRT_##enumerator] = i32_##name;    \
    table->binary_i64[QRT_##enumerator] = i64_##name;
    SET(ADD, add) SET(SUB, sub) SET(MUL, mul) SET(DIV, div) SET(MIN, min) SET(MAX, max) SET(MOD, mod) SET(FMOD, fmod)
    SET(EQUAL, equal) SET(LESS, less) SET(LESS_EQUAL, less_equal)
    SET(GREATER, greater) SET(GREATER_EQUAL, greater_equal)
#undef SET
    table->binary_bool[QRT_AND] = bool_and;
    table->binary_bool[QRT_OR] = bool_or;
    table->binary_bool[QRT_XOR] = bool_xor;
    table->binary_bool[QRT_EQUAL] = bool_equal;
}
