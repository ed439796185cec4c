/// Instructions that this CPU may lack, in plain C: compilers include this file first (-include) to test the rungs that
/// need them. The vector registers themselves have to be there.
#ifndef QRT_EMULATION_H
#define QRT_EMULATION_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define QRT_EMULATE_VNNI
#define QRT_EMULATE_BF16
#define QRT_EMULATE_AMX

// --------------------------------------------------------------------------- vpdpbusd and vpdpwssd

#define EMULATED_BYTE_PRODUCT(codes, weights, i) \
    vi_mul(vi_and(vi_srl(codes, 8 * (i)), vi_set(255)), vi_sra(vi_sll(weights, 24 - 8 * (i)), 24))
#define vi_dot4(acc, codes, weights)                                                                                   \
    vi_add(vi_add(acc, vi_add(EMULATED_BYTE_PRODUCT(codes, weights, 0), EMULATED_BYTE_PRODUCT(codes, weights, 1))),    \
           vi_add(EMULATED_BYTE_PRODUCT(codes, weights, 2), EMULATED_BYTE_PRODUCT(codes, weights, 3)))
#define vi_dot2(acc, a, b)                                                                                             \
    vi_add(acc, vi_add(vi_mul(vi_sra(a, 16), vi_sra(b, 16)),                                                           \
                       vi_mul(vi_sra(vi_sll(a, 16), 16), vi_sra(vi_sll(b, 16), 16))))

// ---------------------------------------------------------------------------------------------- AMX

/// Eight tiles of 16 rows of 64 bytes, as `ldtilecfg` shapes them; rows 0: not configured. What the CPU refuses aborts.
static struct {
    int rows, row_bytes;
    uint8_t bytes[16][64];
} emulated_tiles[8];

static inline void emulated_configure(const void *config) {
    const uint8_t *bytes = config;
    if (bytes[0] != 1) abort();
    memset(emulated_tiles, 0, sizeof emulated_tiles);
    for (int i = 0; i < 8; i++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, bytes + 16 + 2 * i, sizeof row_bytes);
        emulated_tiles[i].rows = bytes[48 + i];
        emulated_tiles[i].row_bytes = row_bytes;
        if (bytes[48 + i] > 16 || row_bytes > 64) abort();
    }
}

static inline void emulated_zero(int tile) {
    if (!emulated_tiles[tile].rows) abort();
    memset(emulated_tiles[tile].bytes, 0, sizeof emulated_tiles[tile].bytes);
}

static inline void emulated_load(int tile, const void *from, int64_t stride) {
    emulated_zero(tile);
    for (int i = 0; i < emulated_tiles[tile].rows; i++)
        memcpy(emulated_tiles[tile].bytes[i], (const char *)from + i * stride, (size_t)emulated_tiles[tile].row_bytes);
}

static inline void emulated_store(int tile, void *to, int64_t stride) {
    if (!emulated_tiles[tile].rows) abort();
    for (int i = 0; i < emulated_tiles[tile].rows; i++)
        memcpy((char *)to + i * stride, emulated_tiles[tile].bytes[i], (size_t)emulated_tiles[tile].row_bytes);
}

/// tdpbusd: unsigned bytes of `a`, signed bytes of `b`.
static inline void emulated_dot(int sums, int a, int b) {
    int depth = emulated_tiles[b].rows, columns = emulated_tiles[b].row_bytes / 4;
    if (!depth || emulated_tiles[a].rows != emulated_tiles[sums].rows || emulated_tiles[a].row_bytes != 4 * depth ||
        emulated_tiles[sums].row_bytes != 4 * columns)
        abort();
    for (int i = 0; i < emulated_tiles[sums].rows; i++)
        for (int j = 0; j < columns; j++) {
            int32_t sum;
            memcpy(&sum, emulated_tiles[sums].bytes[i] + 4 * j, sizeof sum);
            for (int k = 0; k < 4 * depth; k++)
                sum += emulated_tiles[a].bytes[i][k] * (int8_t)emulated_tiles[b].bytes[k / 4][4 * j + k % 4];
            memcpy(emulated_tiles[sums].bytes[i] + 4 * j, &sum, sizeof sum);
        }
}

#define TILE_CONFIGURE(config) emulated_configure(&(config))
#define TILE_RELEASE() memset(emulated_tiles, 0, sizeof emulated_tiles)
#define TILE_ZERO(tile) emulated_zero(tile)
#define TILE_LOAD(tile, from, stride) emulated_load(tile, from, stride)
#define TILE_STORE(tile, to, stride) emulated_store(tile, to, stride)
#define TILE_DOT(sums, codes, weights) emulated_dot(sums, codes, weights)

#endif
