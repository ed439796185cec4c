/// Growing a cache by a node that knows where its new tokens go.
#ifndef QRT_APPEND_H
#define QRT_APPEND_H

#include "../tensor.h"

/// `out` becomes a tensor of the shape of `past` but `length` along `axis`: the same buffer when nobody has used the room behind
/// `past` yet, which is there already then (out->data is past->data); else new memory, with room of its own when `past` is what an
/// earlier run has given out, for then there will be more.
qrt_status qrt_grow(qrt_run *run, const qrt_tensor *past, int axis, int64_t length, qrt_tensor *out);

/// Copy all of `past` to where `out`, of the same shape but for a longer `axis`, has its first elements.
void qrt_copy_past(qrt_run *run, const qrt_tensor *past, int axis, qrt_tensor *out);

#endif
