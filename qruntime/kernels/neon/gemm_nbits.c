/// Products with weights of few bits on Advanced SIMD.
#include "../rungs.h"

#define STREAMED_PANELS(rows) ((rows) == 1 ? 2 : 1)

#include "../vector/simd_neon.h"

#define vi_or(a, b) vorrq_s32(a, b)
#define vi_select(mask, a, b) vbslq_s32(vreinterpretq_u32_s32(mask), a, b)
#define KEEP(x) (void)(x)
static inline vi vi_load_upper(const uint8_t *p) { return vi_load((const int32_t *)(p + 2)); }
static inline vi vi_load_u16(const uint16_t *p) { return vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p))); }

/// The table as 64 bytes; entry i is bytes 4i … 4i + 3.
static inline vf vf_table16(const float *table, vi index) {
    uint8x16x4_t bytes = vld1q_u8_x4((const uint8_t *)table);
    vi first = vi_and(vi_sll(index, 2), vi_set(60));
    vi places = vmlaq_s32(vi_set(0x03020100), first, vi_set(0x01010101));
    return vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_s32(places)));
}

#include "../vector/gemm_nbits.inc.h"

void qrt_neon_gemm_nbits(qrt_kernel_table *t) { t->gemm_nbits = (qrt_gemm_nbits){"neon", stream, decode, NULL, NULL}; }
