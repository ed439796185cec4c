/// Float convolutions of images whose channels lie in blocks of 16.
///
/// An image [C, …] in blocks is [⌈C / 16⌉, …, 16]: the 16 channels of a block are adjacent at every pixel, and what lies behind
/// the last channel may be anything. Vectors then run over channels, whatever the width of the image, and windows are sums
/// over pixels that need no copy: each pixel of a window is a place, and what lies outside of the image is zeros.
///
/// Every output element is one chain of fused (portable: separate) multiply-adds that starts at zero, over ascending
/// (block of input channels, tap, channel), whichever tile computes it; the epilogue follows as separate operations. Hence
/// results do not depend on what is computed beside them.
///
/// Error bound of every rung, before the activation: |y − exact| ≤ K · ε · Σ_k |x·w| + ε · |bias|.
///
/// Windows of 3 × 3 without strides may be made with fewer products, by Winograd's minimal filtering F(2 × 2, 3 × 3): Y = Aᵀ [Σ_c (G g Gᵀ) ⊙
/// (Bᵀ d B)] A of 4 × 4 pixels d and weights g gives 2 × 2 outputs by 16 products of each channel instead of 36, where
///
///     Bᵀ = 1  0 −1  0    G = 1    0   0    Aᵀ = 1  1  1  0
///          0  1  1  0        ½    ½   ½         0  1 −1 −1
///          0 −1  1  0        ½  −½   ½
///          0  1  0 −1        0    0   1
///
/// Each element of the sum over c is a chain as above. |y − exact| ≤ (C + 12) · ε · |A|ᵀ [Σ_c (|G| |g| |G|ᵀ) ⊙ (|B|ᵀ |d| |B|)] |A| + ε · |bias|:
/// what no tap of a window reads may show in its last digits, and a NaN or ∞ makes NaN of the 2 × 2 outputs whose pixels hold it.
#ifndef QRT_CONV_F32_H
#define QRT_CONV_F32_H

#include <stdbool.h>
#include <stdint.h>

#include "codes_q8.h"

/// Channels of a block on every rung; vectors may be shorter.
enum { QRT_CHANNEL_BLOCK = 16 };

/// Most positions (without a step) and blocks of a tile on any rung.
enum { QRT_CONV_MAX_POSITIONS = 8, QRT_CONV_MAX_BLOCKS = 4 };

/// y = min(max(sum + bias + addend, low), high), where NaN stays NaN. Without them: NULL, NULL, −∞, ∞.
typedef struct {
    const float *bias;         ///< [blocks · 16]
    const float *addend;       ///< of the shape of y
    int64_t addend_plane;      ///< floats between blocks of it
    float low, high;
} qrt_conv_epilogue;

/// What one tile sums: over planes of the input, over taps of the window, over floats that are adjacent at a place.
///
/// In a convolution of blocks a plane is a block and the floats are its channels. In one of an image that is not in blocks, a
/// plane is a channel, the taps are rows of the window and the floats are its columns.
typedef struct {
    const float *const *planes;           ///< [num_planes]
    int64_t num_planes;
    int64_t num_floats, num_last_floats;  ///< at a place, and those of the last plane
    int64_t step;                         ///< 0, or positions are so many floats apart: one that QRT_CONV_STEPS lists
    int64_t num_taps;
    const int64_t *places;                ///< [num_taps, positions]: offsets within a plane, or QRT_OUTSIDE, the only negative one; with a step [num_taps],
                                          ///< of the first position, and none is outside
    const float *w;                       ///< of plane i and tap t: [num_floats, blocks · 16] at i · w_plane + taps[t]
    int64_t w_plane;
    const int64_t *taps;
    int64_t y_step;                       ///< floats between outputs of positions, 16 where they are adjacent
    const float *ahead;                   ///< weights that will be needed soon, for the cache; need not be valid
} qrt_conv_sums;

/// Windows of a row of outputs in one block: `rows` rows of `window` pixels, one window every `step` pixels.
typedef struct {
    const float *x;                ///< the first pixel of the first window; it may be outside
    int64_t x_row;                 ///< floats between rows of a window
    const float *w;                ///< [rows, group, window, 16]
    int64_t group;                 ///< channels that an output sums, those of its own group: 1, 2, 4 or 8
    int64_t rows, window, step;    ///< a step of 1 or 2; of groups the latter two such that QRT_CONV_GROUP_WINDOWS lists them
    int64_t begin, end;            ///< pixels of a row from x on that are inside; others are zeros. Every window has one.
} qrt_conv_row;

/// Window and step of qrt_conv_row: those that kernels have code of their own for, and all of groups.
#define QRT_CONV_WINDOWS(X) X(3, 1) X(3, 2) X(5, 1) X(5, 2) X(7, 1)
#define QRT_CONV_GROUP_WINDOWS(X) X(3, 1) X(3, 2)
enum { QRT_CONV_MAX_WINDOW = 7 };

/// Distances of positions in a row, next to each other or every other, in an image that is not in blocks and in one that is.
#define QRT_CONV_STEPS(X) X(1) X(2) X(QRT_CHANNEL_BLOCK) X(2 * QRT_CHANNEL_BLOCK)

/// The kernels of one rung.
typedef struct qrt_conv_f32 {
    const char *name;
    int blocks;                           ///< of the largest tile
    int positions[QRT_CONV_MAX_BLOCKS];   ///< of the largest tile of 1, 2, … blocks, at most QRT_CONV_MAX_POSITIONS
    int in_steps[QRT_CONV_MAX_BLOCKS];    ///< of a tile with a step

    /// y[block][p · y_step …][16] = (accumulate ? y : 0) + sums, then the epilogue where it is not NULL, for 1 ≤ num_blocks ≤ blocks and
    /// 1 ≤ num_positions ≤ positions[num_blocks − 1], or, with a step, in_steps[num_blocks − 1]. y_plane floats lie between
    /// blocks; an addend lies as y does.
    void (*tile)(const qrt_conv_sums *sums, int num_positions, int num_blocks, float *y, int64_t y_plane, bool accumulate,
                 const qrt_conv_epilogue *epilogue);

    /// One block of a depthwise convolution at n positions: y[p][16] = epilogue(Σ_t w[taps[t]][16] · x[p · step + places[t]][16]),
    /// over ascending t; step and places in floats.
    void (*depthwise)(int64_t n, int64_t step, int64_t num_taps, const int64_t *places, const int64_t *taps, const float *w,
                      const float *x, float *y, const qrt_conv_epilogue *epilogue);

    /// One block of a depthwise convolution, or of one in small groups, at n positions of a row: y[p][c] =
    /// epilogue(Σ_h Σ_j Σ_k w[h][j][k][c] · x[h · x_row + (p · step + k) · 16 + ⌊c / group⌋ · group + j]), over ascending h, then j, then k.
    void (*depthwise_row)(int64_t n, const qrt_conv_row *row, float *y, const qrt_conv_epilogue *epilogue);

    /// Of the elements of `depthwise`, without weights: the greatest (NaN if there is one, −∞ of none), and the sum divided by `divisor`.
    void (*maxima)(int64_t n, int64_t step, int64_t num_taps, const int64_t *places, const float *x, float *y);
    void (*means)(int64_t n, int64_t step, int64_t num_taps, const int64_t *places, float divisor, const float *x, float *y);

    /// Bᵀ d B of n times 4 × 4 pixels of one block: element i of tile t is the 16 floats at v + i · v_stride + t · 16. `places` [n, 16] are
    /// offsets of pixels in x, or QRT_OUTSIDE.
    void (*spread)(int64_t n, const int64_t *places, const float *x, float *v, int64_t v_stride);

    /// The epilogue of Aᵀ m A, likewise: `places` [n, 4] are offsets of the outputs in y and in the addend; QRT_OUTSIDE: not stored.
    void (*collect)(int64_t n, const int64_t *places, const float *m, int64_t m_stride, float *y, const qrt_conv_epilogue *epilogue);
} qrt_conv_f32;

#endif
