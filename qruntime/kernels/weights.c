#include "weights.h"

#include <stdlib.h>

qrt_status qrt_linear(const qrt_layer *layers, int num_layers, qrt_run *run, const float *a, int64_t lda_elems, int64_t m,
                      qrt_q8_grid grid) {
    qrt_status status = QRT_OK;
    for (int first = 0, last; first < num_layers && status == QRT_OK; first = last) {
        const qrt_weights_ops *ops = layers[first].w->ops;
        for (last = first + 1; last < num_layers && layers[last].w->ops == ops;) last++;
        status = ops->linear(layers + first, last - first, run, a, lda_elems, m, grid);
    }
    return status;
}

void qrt_weights_free(qrt_weights *w) {
    if (!w) return;
    qrt_buffer_drop(w->buffer);
    free(w);
}
