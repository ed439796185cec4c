/// The sliding windows of poolings.
#ifndef QRT_WINDOWS_H
#define QRT_WINDOWS_H

#include "arguments.h"
#include "enumerations.h"

/// One axis of a sliding window.
typedef struct {
    int64_t size, kernel, stride, dilation, begin, end, output;
} qrt_window;

/// Find padding and output size of an axis; false for what the definition reports.
static inline bool qrt_resolve_window(qrt_window *w, int auto_pad, bool rounds_up) {
    enum { QRT_AUTO_PADS(QRT_ENUMERATOR) };
    const int64_t limit = 1 << 24;
    if (w->kernel < 1 || w->stride < 1 || w->dilation < 1 || w->begin < 0 || w->end < 0) return false;
    if (w->kernel > limit || w->stride > limit || w->dilation > limit || w->begin > limit || w->end > limit) return false;
    const int64_t extent = (w->kernel - 1) * w->dilation + 1;
    if (extent > limit) return false;
    if (auto_pad == SAME_UPPER || auto_pad == SAME_LOWER) {
        w->output = w->size / w->stride + (w->size % w->stride != 0);
        int64_t total = (w->output - 1) * w->stride + extent - w->size;
        if (total < 0) total = 0;
        w->begin = auto_pad == SAME_UPPER ? total / 2 : total - total / 2;
        w->end = total - w->begin;
        return true;
    }
    if (auto_pad == VALID) w->begin = w->end = 0;
    int64_t room = w->size + w->begin + w->end - extent;
    if (room < 0) return false;
    w->output = room / w->stride + 1;
    // A window that would start in the padding behind the input does not count.
    if (rounds_up && auto_pad == NOTSET && room % w->stride && w->output * w->stride < w->size + w->begin) w->output++;
    return true;
}

/// The windows of a node over one to three axes, slices, rows and columns, of the sizes `spatial`; what is not there is of size 1.
/// ints: auto_pad, ceil_mode, any, then for each axis kernel, stride, dilation, padding before and behind.
static inline bool qrt_resolve_windows(const qrt_node *node, int num_axes, const int64_t *spatial, qrt_window *axes) {
    axes[0] = axes[1] = axes[2] = (qrt_window){1, 1, 1, 1, 0, 0, 1};
    for (int i = 0; i < num_axes; i++) {
        const int64_t *given = node->ints + 3 + 5 * i;
        qrt_window *w = &axes[i + 3 - num_axes];
        *w = (qrt_window){spatial[i], given[0], given[1], given[2], given[3], given[4], 0};
        if (!qrt_resolve_window(w, (int)node->ints[0], node->ints[1] != 0)) return false;
    }
    return true;
}

#endif
