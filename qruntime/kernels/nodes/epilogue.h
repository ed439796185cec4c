/// The activation of a layer, as qruntime/ops/epilogue.py passes it to a node function.
#ifndef QRT_NODES_EPILOGUE_H
#define QRT_NODES_EPILOGUE_H

#include "../nodes.h"

/// A code is a qrt_activation or, from QRT_NUM_ACTIVATIONS on, that plus the qrt_unary_op of an elementwise kernel, whose
/// parameters are floats 2 · which and 2 · which + 1 of the node (0 where there are none). False when there is none such.
static inline bool qrt_read_activation(const qrt_node *node, int64_t code, int which, qrt_activation *activation,
                                       qrt_elementwise *map) {
    *activation = QRT_ACT_NONE;
    *map = (qrt_elementwise){NULL, 0, 0};
    if (code < 0 || code >= QRT_NUM_ACTIVATIONS + QRT_NUM_UNARY) return false;
    if (code < QRT_NUM_ACTIVATIONS) {
        *activation = (qrt_activation)code;
        return true;
    }
    map->fn = qrt_kernels.pointwise.unary[code - QRT_NUM_ACTIVATIONS];
    if (2 * which + 1 < node->num_floats) {
        map->p = (float)node->floats[2 * which];
        map->q = (float)node->floats[2 * which + 1];
    }
    return true;
}

#endif
