/// Convolutions of 8-bit codes whose windows are multiplied where the image lies, channels last.
#ifndef QRT_CODE_WINDOWS_H
#define QRT_CODE_WINDOWS_H

#include "../code_product.h"
#include "convolution.h"

/// Bytes between steps of K that a row of a window begins with.
enum { QRT_PIECE_STEP = 4 };

/// Bytes of weights for each row of a window, its taps and their channels, and whether rows are filled up to whole steps with weights
/// of 0: where a window has several rows of neighbours, and one group.
static inline int64_t qrt_row_of_window(const qrt_convolution *g) {
    const int64_t bytes = g->window[2] * g->group_channels;
    const bool is_filled = g->groups == 1 && g->dilation[2] == 1 && g->window[0] * g->window[1] > 1;
    return is_filled ? qrt_ceil_div(bytes, QRT_PIECE_STEP) * QRT_PIECE_STEP : bytes;
}

/// Whether qrt_multiply_windows takes these weights.
bool qrt_takes_windows(const qrt_convolution *g, const qrt_q8_weights *w);

/// y [images, positions, maps] from x [images, spatial …, channels]; `padding` is the byte of what lies outside.
qrt_status qrt_multiply_windows(const qrt_convolution *g, qrt_run *run, int num_threads, const qrt_code_layer *layer, const uint8_t *x,
                                uint8_t padding, void *y);

#endif
