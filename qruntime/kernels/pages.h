/// Pages of mapped files.
#ifndef QRT_PAGES_H
#define QRT_PAGES_H

#include <stddef.h>

typedef struct {
    void *start;
    size_t bytes;
} qrt_range;

typedef struct qrt_page_fetch qrt_page_fetch;

/// Map the pages of `ranges` that are in memory or on disk, in a thread of its own: one call of the system instead of a
/// page fault for every few pages. What cannot be mapped so waits for its page fault. NULL when there is no such thread.
qrt_page_fetch *qrt_fetch_pages(const qrt_range *ranges, size_t count);

/// Returns when that thread has ended. The ranges have to be mapped until then.
void qrt_end_fetch(qrt_page_fetch *fetch);

#endif
