/// Packed weights of any kind: what all of them have in common, and what can be done with them.
///
/// Whoever multiplies float32 activations by weights (linear layers, recurrent layers, convolutions) holds a qrt_weights
/// and asks nothing about its kind: a kind is one qrt_weights_ops and a way to pack.
#ifndef QRT_WEIGHTS_H
#define QRT_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codes_q8.h"
#include "epilogue.h"
#include "tensor.h"

struct qrt_weights_ops;

/// The right-hand side [k, n] of a product, packed for the rung that packed it, with a bias where there is one. Immutable
/// once made. Every kind is one block of malloc that begins with this header; what it points to lies in `buffer`.
typedef struct qrt_weights {
    const struct qrt_weights_ops *ops;
    int64_t k, n;
    qrt_buffer *buffer;
} qrt_weights;

/// One of the layers that read the same activations.
typedef struct qrt_layer {
    const qrt_weights *w;
    qrt_epilogue epilogue;
    float *y;               ///< [m, w->n]
    int64_t ldy_elems;
} qrt_layer;

/// A kind of weights. `grid` matters to those that quantize their activations.
typedef struct qrt_weights_ops {
    const char *name;
    bool takes_addend;              ///< whether an epilogue may have one

    /// See qrt_linear; all layers are of this kind.
    qrt_status (*linear)(const qrt_layer *layers, int num_layers, qrt_run *run, const float *a, int64_t lda_elems,
                         int64_t m, qrt_q8_grid grid);

    /// See qrt_linear_serial.
    void (*linear_serial)(const qrt_weights *w, const float *a, int64_t lda_elems, int64_t m, qrt_q8_grid grid,
                          const qrt_epilogue *epilogue, float *y, int64_t ldy_elems, void *scratch);

    /// What linear_serial needs for m rows, SIZE_MAX where that cannot be counted; NULL: nothing.
    size_t (*scratch_bytes)(const qrt_weights *w, int64_t m);
} qrt_weights_ops;

/// y of every layer for `m` rows of k activations, lda_elems apart, on at most run->num_threads threads, scratch from
/// `run`. All weights have the same k. Neighbours of one kind may share what is made of the activations.
qrt_status qrt_linear(const qrt_layer *layers, int num_layers, qrt_run *run, const float *a, int64_t lda_elems, int64_t m,
                      qrt_q8_grid grid);

/// One layer on the calling thread with scratch of qrt_scratch_bytes(w, m) bytes given by the caller, aligned to
/// QRT_ALIGNMENT: for recurrent steps, which call it many times.
static inline void qrt_linear_serial(const qrt_weights *w, const float *a, int64_t lda_elems, int64_t m, qrt_q8_grid grid,
                                     const qrt_epilogue *epilogue, float *y, int64_t ldy_elems, void *scratch) {
    w->ops->linear_serial(w, a, lda_elems, m, grid, epilogue, y, ldy_elems, scratch);
}
static inline size_t qrt_scratch_bytes(const qrt_weights *w, int64_t m) {
    return w->ops->scratch_bytes ? w->ops->scratch_bytes(w, m) : 0;
}

/// NULL does nothing.
void qrt_weights_free(qrt_weights *w);

#endif
