/// Weights of a convolution, packed for the kernels of conv_f32.h.
#ifndef QRT_CONV_WEIGHTS_H
#define QRT_CONV_WEIGHTS_H

#include "conv_f32.h"
#include "weights.h"

/// Which of the two kernels they are for, and what they are multiplied by.
typedef enum {
    QRT_CONV_BLOCKS,     ///< all channels of an image in blocks
    QRT_CONV_COLUMNS,    ///< windows of an image that is not in blocks: of few channels
    QRT_CONV_DEPTHWISE,  ///< each channel of an image in blocks by itself
    QRT_CONV_GROUPED,    ///< each of 2, 4 or 8 channels of one
    QRT_CONV_WINOGRAD,   ///< all channels of an image in blocks, windows of 3 × 3 by Winograd's products
    QRT_NUM_CONV_KINDS
} qrt_conv_kind;

/// Immutable once made; of k = C / group · taps and n = M. It keeps the kernels it was packed for.
///
/// Output blocks are taken in `groups` of nearly equal numbers, `blocks` of a tile at most; group g starts at block
/// qrt_conv_first_block(w, g). `values` of a group are [planes, taps, floats, blocks of it · 16], where planes, taps and floats are
/// those of qrt_conv_sums: [⌈C / 16⌉, taps, 16] or [C, rows of the window, columns of it]. Depthwise ones are [⌈C / 16⌉, taps, 16],
/// those of small groups [⌈C / 16⌉, rows of the window, C / group, columns of it, 16]. Winograd's
/// are G g Gᵀ, element by element: [16, planes, floats, blocks of it · 16].
typedef struct {
    qrt_weights base;
    qrt_conv_f32 kernel;
    qrt_conv_kind kind;
    int32_t rank;          ///< of the weight: 2 and the spatial ones
    int64_t dims[5];       ///< [M, C / group, …]
    int64_t channels;      ///< C
    int64_t parts;         ///< of C and M, each convolved by itself: more than 1 with blocks only, of which each has whole ones
    int64_t blocks, groups;        ///< of the output
    int64_t planes, taps, floats;
    float *values;
    bool is_finite;        ///< no product with a zero is anything but 0: taps that are outside may be left out
    float *bias;           ///< [blocks · 16], 0 where there is none, and for −0: so that no sum of zeros shows how many they were
} qrt_conv_weights;

extern const qrt_weights_ops qrt_conv_ops;

static inline int64_t qrt_conv_first_block(const qrt_conv_weights *w, int64_t group) {
    return w->blocks / w->groups * group + (group < w->blocks % w->groups ? group : w->blocks % w->groups);
}

/// Size of the buffer that qrt_conv_pack takes; 0 when there can be none, as for dims that do not suit the kind: rank 3 to 5, no
/// dim below 1, depthwise, one channel for each output, and, grouped, 2, 4 or 8. With blocks, `parts` is ONNX's group: 1, or such that each has
/// multiples of 16 channels and outputs.
size_t qrt_conv_packed_bytes(const qrt_conv_f32 *kernel, qrt_conv_kind kind, int64_t parts, int32_t rank, const int64_t *dims);

/// Of dense weights [M, C / group, …] and a bias [M] or NULL, into memory of `arena` (or NULL); NULL when there is no memory or the size is 0.
qrt_conv_weights *qrt_conv_pack(const qrt_conv_f32 *kernel, qrt_conv_kind kind, int64_t parts, int32_t rank, const int64_t *dims,
                                const float *weights, const float *bias, qrt_arena *arena, int num_threads);

#endif
