#define _GNU_SOURCE
#include "pages.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/mman.h>

/// Linux 5.14; headers may be older than the system that runs.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#endif

struct qrt_page_fetch {
    pthread_t thread;
    size_t count;
    qrt_range ranges[];
};

#if defined(__linux__)
static void *fetch_all(void *context) {
    const qrt_page_fetch *fetch = context;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    for (size_t i = 0; i < fetch->count; i++) {
        uintptr_t start = (uintptr_t)fetch->ranges[i].start, first = start / page * page;
        if (madvise((void *)first, fetch->ranges[i].bytes + (start - first), MADV_POPULATE_READ)) break;
    }
    return NULL;
}
#endif

qrt_page_fetch *qrt_fetch_pages(const qrt_range *ranges, size_t count) {
#if defined(__linux__)
    qrt_page_fetch *fetch = count ? malloc(sizeof *fetch + count * sizeof *ranges) : NULL;
    if (!fetch) return NULL;
    fetch->count = count;
    memcpy(fetch->ranges, ranges, count * sizeof *ranges);
    if (!pthread_create(&fetch->thread, NULL, fetch_all, fetch)) return fetch;
    free(fetch);
#else
    (void)ranges;
    (void)count;
#endif
    return NULL;
}

void qrt_end_fetch(qrt_page_fetch *fetch) {
    if (!fetch) return;
    pthread_join(fetch->thread, NULL);
    free(fetch);
}
