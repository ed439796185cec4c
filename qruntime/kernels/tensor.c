#include "tensor.h"

#include "threads.h"

#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <sys/mman.h>

enum { HUGE_PAGE = 1 << 21 };

size_t qrt_itemsize(int32_t dtype) {
    switch (dtype) {
    case QRT_U8: case QRT_I8: case QRT_BOOL: return 1;
    case QRT_U16: case QRT_I16: case QRT_F16: case QRT_BF16: return 2;
    case QRT_F32: case QRT_I32: case QRT_U32: return 4;
    case QRT_I64: case QRT_F64: case QRT_U64: return 8;
    default: return 0;
    }
}

bool qrt_num_elements(int32_t rank, const int64_t *dims, int64_t *size) {
    int64_t n = 1;
    bool has_zero = false;
    for (int i = 0; i < rank; i++) {
        if (dims[i] < 0) return false;
        if (dims[i] == 0) { has_zero = true; continue; }
        if (__builtin_mul_overflow(n, dims[i], &n)) return false;
    }
    *size = has_zero ? 0 : n;
    return true;
}

/// Room to spare makes a buffer fit again when shapes vary a little, and lets kernels read whole vectors.
static size_t capacity_for(size_t bytes) {
    return (bytes + QRT_ALIGNMENT - 1) / QRT_ALIGNMENT * QRT_ALIGNMENT + QRT_ALIGNMENT;
}

static qrt_buffer *new_buffer(size_t bytes, size_t alignment) {
    if (bytes > (size_t)1 << 47) return NULL;
    qrt_buffer *buffer = malloc(sizeof *buffer);
    if (!buffer) return NULL;
    *buffer = (qrt_buffer){.capacity = capacity_for(bytes), .refcount = 1};
    if (posix_memalign(&buffer->data, alignment, buffer->capacity)) {
        free(buffer);
        return NULL;
    }
    return buffer;
}

qrt_buffer *qrt_buffer_new(size_t bytes) { return new_buffer(bytes, QRT_ALIGNMENT); }

void qrt_buffer_retain(qrt_buffer *buffer) {
    __atomic_add_fetch(&buffer->refcount, 1, __ATOMIC_RELAXED);
}

static bool drops_last(qrt_buffer *buffer) {
    return __atomic_sub_fetch(&buffer->refcount, 1, __ATOMIC_ACQ_REL) == 0;
}

void qrt_buffer_drop(qrt_buffer *buffer) {
    if (!drops_last(buffer)) return;
    if (buffer->whole) qrt_buffer_drop(buffer->whole);
    else free(buffer->data);
    free(buffer);
}

size_t qrt_arena_share(size_t bytes) { return capacity_for(bytes); }

#ifdef MADV_HUGEPAGE
static void touch_page(void *pages, int64_t page) { ((volatile char *)pages)[page * HUGE_PAGE] = 0; }
#endif

qrt_arena qrt_arena_new(size_t bytes, int num_threads) {
    qrt_arena arena = {new_buffer(bytes, bytes < HUGE_PAGE ? QRT_ALIGNMENT : HUGE_PAGE), 0};
#ifdef MADV_HUGEPAGE
    // Filling 2 MB takes one page fault, not 512. The rest of the last page would be memory that nobody needs.
    size_t pages = arena.whole ? bytes / HUGE_PAGE : 0;
    if (pages && !madvise(arena.whole->data, pages * HUGE_PAGE, MADV_HUGEPAGE)) {
        // Threads that fill one page together would wait while the system clears it, most of the time of packing.
        qrt_parallel_for(num_threads, (int64_t)pages, touch_page, arena.whole->data);
    }
#endif
    return arena;
}

qrt_buffer *qrt_arena_take(qrt_arena *arena, size_t bytes) {
    size_t room = arena && arena->whole ? arena->whole->capacity - arena->used : 0, capacity = capacity_for(bytes);
    if (bytes > room || capacity > room) return qrt_buffer_new(bytes);
    qrt_buffer *part = malloc(sizeof *part);
    if (!part) return NULL;
    char *data = (char *)arena->whole->data + arena->used;
    *part = (qrt_buffer){.data = data, .capacity = capacity, .refcount = 1, .whole = arena->whole};
    qrt_buffer_retain(arena->whole);
    arena->used += capacity;
    return part;
}

void qrt_arena_close(qrt_arena *arena) {
    if (arena->whole) qrt_buffer_drop(arena->whole);
}

void qrt_trim_memory(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

/// Recent runs fade: a long input among short ones keeps its buffers for some tens of runs.
enum { FADING = 16 };

void qrt_run_begin(qrt_run *run, int num_threads) {
    run->num_threads = num_threads;
    run->live_bytes = run->peak_bytes = run->wasted_bytes = 0;
    run->recent_peak -= run->recent_peak / FADING;
}

void qrt_count(qrt_run *run, size_t bytes) {
    run->live_bytes += bytes;
    if (run->live_bytes > run->peak_bytes) run->peak_bytes = run->live_bytes;
    if (run->peak_bytes > run->recent_peak) run->recent_peak = run->peak_bytes;
}

/// A buffer is no longer in use.
static void uncount(qrt_run *run, const qrt_buffer *buffer) {
    run->live_bytes -= buffer->used;
    if (!buffer->owner) run->wasted_bytes -= buffer->capacity - buffer->used;
}

/// The smallest free buffer that fits; NULL when there is none of at most `most` bytes.
static qrt_buffer *take_free(qrt_run *run, size_t bytes, size_t most) {
    qrt_buffer **best = NULL;
    for (qrt_buffer **link = &run->free_buffers; *link; link = &(*link)->next) {
        size_t capacity = (*link)->capacity;
        if (capacity < bytes || capacity > most) continue;
        if (!best || capacity < (*best)->capacity) best = link;
    }
    if (!best) return NULL;
    qrt_buffer *buffer = *best;
    *best = buffer->next;
    buffer->next = NULL;
    buffer->refcount = 1;
    buffer->room = 0;
    return buffer;
}

static size_t free_bytes(const qrt_run *run) {
    size_t bytes = 0;
    for (const qrt_buffer *buffer = run->free_buffers; buffer; buffer = buffer->next) bytes += buffer->capacity;
    return bytes;
}

static void free_all(qrt_buffer *buffer) {
    while (buffer) {
        qrt_buffer *next = buffer->next;
        free(buffer->data);
        free(buffer);
        buffer = next;
    }
}

/// Let go of the free buffers that have lain longest, beyond `limit` bytes.
static void trim(qrt_run *run, size_t limit) {
    qrt_buffer **link = &run->free_buffers;
    for (size_t kept = 0; *link && (kept += (*link)->capacity) <= limit;) link = &(*link)->next;
    free_all(*link);
    *link = NULL;
}

qrt_buffer *qrt_scratch(qrt_run *run, size_t bytes) {
    // One that is much larger may be needed by another tensor.
    qrt_buffer *buffer = take_free(run, bytes, bytes < SIZE_MAX / 4 ? 2 * (bytes + 1024) : SIZE_MAX);
    qrt_count(run, bytes);
    if (!buffer) {
        // Without a limit, buffers of all sizes that ever were would gather. But to free a large one for another costs more than to
        // waste it: the system takes its pages back, and clears all that it hands out.
        size_t used = run->live_bytes + run->wasted_bytes, limit = used < 2 * run->recent_peak ? 2 * run->recent_peak - used : 0;
        if (bytes >= QRT_LARGE && free_bytes(run) > limit) buffer = take_free(run, bytes, run->recent_peak);
        if (!buffer) trim(run, limit);
    }
    if (!buffer) {
        // The cache of a decoder grows with every token; pages that nobody touches take no memory.
        buffer = qrt_buffer_new(bytes < QRT_LARGE ? bytes : bytes + bytes / 8);
        if (!buffer) return NULL;
    }
    buffer->used = bytes;
    run->wasted_bytes += buffer->capacity - bytes;
    return buffer;
}

void qrt_scratch_free(qrt_run *run, qrt_buffer *buffer) {
    uncount(run, buffer);
    buffer->next = run->free_buffers;
    run->free_buffers = buffer;
}

qrt_status qrt_alloc(qrt_run *run, qrt_tensor *out, int32_t dtype, int32_t rank, const int64_t *dims) {
    size_t item = qrt_itemsize(dtype), bytes;
    int64_t size;
    if (rank > QRT_MAX_RANK || item == 0 || !qrt_num_elements(rank, dims, &size)) return QRT_DECLINE;
    if (__builtin_mul_overflow((size_t)size, item, &bytes)) return QRT_NO_MEMORY;
    qrt_buffer *buffer = qrt_scratch(run, bytes);
    if (!buffer) return QRT_NO_MEMORY;
    out->buffer = buffer;
    out->data = buffer->data;
    out->size = size;
    out->rank = rank;
    out->dtype = dtype;
    out->room = 0;
    for (int i = 0; i < rank; i++) out->dims[i] = dims[i];
    return QRT_OK;
}

qrt_status qrt_alloc_room(qrt_run *run, qrt_tensor *out, int32_t dtype, int32_t rank, const int64_t *dims, int32_t axis, int64_t room) {
    int64_t wide[QRT_MAX_RANK], size;
    if (rank > QRT_MAX_RANK || axis < 0 || axis >= rank || room < dims[axis] || !qrt_num_elements(rank, dims, &size)) return QRT_DECLINE;
    for (int i = 0; i < rank; i++) wide[i] = i == axis ? room : dims[i];
    qrt_status status = qrt_alloc(run, out, dtype, rank, wide);
    if (status != QRT_OK) return status;
    out->dims[axis] = dims[axis];
    out->size = size;
    out->room = out->buffer->room = room;
    out->room_axis = axis;
    __atomic_store_n(&out->buffer->filled, dims[axis], __ATOMIC_RELEASE);
    return QRT_OK;
}

bool qrt_claim_room(const qrt_tensor *t, int64_t from, int64_t to) {
    if (!t->room || !t->buffer || t->buffer->room != t->room || to > t->room) return false;
    return __atomic_compare_exchange_n(&t->buffer->filled, &from, to, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

void qrt_strides(const qrt_tensor *t, int64_t *strides) {
    int64_t stride = 1;
    for (int i = t->rank - 1; i >= 0; i--) {
        strides[i] = stride;
        stride *= t->room && i == t->room_axis ? t->room : t->dims[i];
    }
}

void qrt_alias(qrt_tensor *out, const qrt_tensor *in, int32_t rank, const int64_t *dims) {
    int64_t copy[QRT_MAX_RANK];
    for (int i = 0; i < rank; i++) copy[i] = dims[i];
    out->data = in->data;
    out->buffer = in->buffer;
    out->size = in->size;
    out->dtype = in->dtype;
    out->rank = rank;
    out->room = 0;
    for (int i = 0; i < rank; i++) out->dims[i] = copy[i];
    if (out->buffer) qrt_buffer_retain(out->buffer);
}

void qrt_release(qrt_run *run, qrt_tensor *t) {
    qrt_buffer *buffer = t->buffer;
    t->buffer = NULL;
    t->dtype = 0;
    if (!buffer || !drops_last(buffer)) return;
    uncount(run, buffer);
    qrt_buffer **list = buffer->owner ? &run->graveyard : &run->free_buffers;
    buffer->next = *list;
    *list = buffer;
}

void qrt_return(qrt_returned *returned, qrt_buffer *buffer) {
    if (!drops_last(buffer)) return;
    size_t limit = __atomic_load_n(&returned->limit, __ATOMIC_RELAXED), capacity = buffer->capacity;
    if (__atomic_add_fetch(&returned->bytes, capacity, __ATOMIC_RELAXED) > limit) {
        __atomic_sub_fetch(&returned->bytes, capacity, __ATOMIC_RELAXED);
        free(buffer->data);
        free(buffer);
        return;
    }
    buffer->next = __atomic_load_n(&returned->buffers, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&returned->buffers, &buffer->next, buffer, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
}

void qrt_take_returned(qrt_returned *returned, qrt_run *run) {
    qrt_buffer *taken = __atomic_exchange_n(&returned->buffers, NULL, __ATOMIC_ACQUIRE);
    while (taken) {
        qrt_buffer *next = taken->next;
        __atomic_sub_fetch(&returned->bytes, taken->capacity, __ATOMIC_RELAXED);
        taken->next = run->free_buffers;
        run->free_buffers = taken;
        taken = next;
    }
}

void qrt_returned_clear(qrt_returned *returned) {
    free_all(returned->buffers);
    *returned = (qrt_returned){0};
}

void qrt_run_clear(qrt_run *run) {
    free_all(run->free_buffers);
    run->free_buffers = NULL;
}
