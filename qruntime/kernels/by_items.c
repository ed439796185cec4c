#include "by_items.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "threads.h"

/// Batches that are smaller in all stay in the second-level cache. Weights that are larger, and larger than twice what an item reads
/// beside them, cost more to be read again for every item than activations do.
enum { LEAST_BATCH_BYTES = 1 << 19, KEPT_WEIGHT_BYTES = 1 << 19 };

/// From one question whether the run is to end to the next.
enum { ASK_NANOSECONDS = 50 * 1000 * 1000 };

/// Of a slot: made before and read here, made here and needed after it, made here and released.
enum { UNSEEN, BEFORE, MADE, GONE };

typedef struct {
    const qrt_steps *plan;
    const int *order;
    int count;
    qrt_tensor *slots;
    qrt_lanes *lanes;
    int64_t items, next, end;  ///< the threads take the items next … end − 1
    int64_t item_nanoseconds;  ///< what an item took on one thread
    int failed;
    bool is_interrupted;
} job;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static const qrt_step *step_of(const job *j, int at) { return &j->plan->steps[j->order[at]]; }

static void view_item(const qrt_tensor *whole, int64_t items, int64_t item, qrt_tensor *view) {
    *view = *whole;
    view->buffer = NULL;
    view->dims[0] = 1;
    view->size = whole->size / items;
    view->data = (char *)whole->data + (size_t)(item * view->size) * qrt_itemsize(whole->dtype);
}

static bool is_batch(const qrt_tensor *t, int64_t items) { return t->dtype && t->rank > 0 && t->room == 0 && t->dims[0] == items; }

/// How many items the first step reads, 0 when it reads no batch.
static int64_t items_of(const job *j) {
    const qrt_step *step = step_of(j, 0);
    for (int i = 0; i < step->node.num_inputs; i++) {
        const int slot = j->plan->input_refs[step->first_input + i];
        if (slot >= 0 && !j->plan->is_constant[slot]) return is_batch(&j->slots[slot], j->slots[slot].dims[0]) ? j->slots[slot].dims[0] : 0;
    }
    return 0;
}

/// Bytes of an item of what a step reads, its inputs that are no constants. −1 when one of them is no batch of so many items.
static int64_t item_bytes(const job *j, const qrt_step *step, const qrt_lane *lane) {
    int64_t bytes = 0;
    for (int i = 0; i < step->node.num_inputs; i++) {
        const int slot = j->plan->input_refs[step->first_input + i];
        if (slot < 0 || j->plan->is_constant[slot]) continue;
        const bool is_made = lane->states[slot] == MADE;
        const qrt_tensor *t = is_made ? &lane->slots[slot] : &j->slots[slot];
        if (!is_made && !is_batch(t, j->items)) return -1;
        bytes += t->size / (is_made ? 1 : j->items) * (int64_t)qrt_itemsize(t->dtype);
    }
    return bytes;
}

static bool is_light(const qrt_step *step, int64_t bytes) {
    return step->weight_bytes <= KEPT_WEIGHT_BYTES || step->weight_bytes <= 2 * (size_t)bytes;
}

static bool is_worth_while(const job *j, int most) {
    if (most < 2 || !step_of(j, 1)->is_itemwise) return false;
    const int64_t bytes = item_bytes(j, step_of(j, 0), &j->lanes->lanes[0]);
    return bytes >= LEAST_BATCH_BYTES / j->items && is_light(step_of(j, 0), bytes) && is_light(step_of(j, 1), bytes);
}

static void enter(const job *j, const qrt_step *step, qrt_lane *lane, int64_t item) {
    for (int i = 0; i < step->node.num_inputs; i++) {
        const int slot = j->plan->input_refs[step->first_input + i];
        if (slot < 0 || j->plan->is_constant[slot] || lane->states[slot] > BEFORE) continue;
        lane->states[slot] = BEFORE;
        view_item(&j->slots[slot], j->items, item, &lane->slots[slot]);
    }
}

static bool run_step(const job *j, const qrt_step *step, qrt_lane *lane) {
    (void)j;
    return step->fn(&step->node, &lane->run, lane->inputs + step->first_input, &lane->slots[step->first_output]) == QRT_OK;
}

static void leave(const job *j, const qrt_step *step, qrt_lane *lane) {
    for (int i = 0; i < step->num_releases; i++) qrt_release(&lane->run, &lane->slots[j->plan->releases[step->first_release + i]]);
}

static void empty(const job *j, qrt_lane *lane) {
    for (int slot = 0; slot < j->plan->num_slots; slot++)
        if (lane->states[slot]) qrt_release(&lane->run, &lane->slots[slot]);
}

/// The first item of a lane, which says how many of the steps go so.
static void run_first(void *context, int64_t at) {
    const job *j = context;
    qrt_lane *lane = &j->lanes->lanes[at];
    for (lane->count = 0; lane->count < j->count; lane->count++) {
        const qrt_step *step = step_of(j, lane->count);
        const int64_t bytes = step->is_itemwise ? item_bytes(j, step, lane) : -1;
        if (bytes < 0 || !is_light(step, bytes)) return;
        enter(j, step, lane, at);
        if (!run_step(j, step, lane)) return;
        for (int i = 0; i < step->node.num_outputs; i++) lane->states[step->first_output + i] = MADE;
        leave(j, step, lane);
        for (int i = 0; i < step->num_releases; i++) {
            char *state = &lane->states[j->plan->releases[step->first_release + i]];
            if (*state == MADE) *state = GONE;
        }
    }
}

/// An item for each lane. False when they do not agree how many steps go so, or none does.
static bool run_firsts(job *j, int num_lanes) {
    const int64_t began = now();
    qrt_parallel_for(num_lanes, num_lanes, run_first, j);
    j->item_nanoseconds = now() - began;
    j->count = j->lanes->lanes[0].count;
    for (int at = 1; at < num_lanes; at++)
        if (j->lanes->lanes[at].count != j->count) return false;
    return j->count > 0;
}

/// Room for all items of what is needed after the steps.
static bool allocate(const job *j, qrt_run *run) {
    for (int slot = 0; slot < j->plan->num_slots; slot++) {
        const qrt_lane *first = &j->lanes->lanes[0];
        const qrt_tensor *of_first = &first->slots[slot];
        int64_t dims[QRT_MAX_RANK];
        if (first->states[slot] != MADE) continue;
        if (!is_batch(of_first, 1)) return false;
        memcpy(dims, of_first->dims, sizeof dims);
        dims[0] = j->items;
        if (qrt_alloc(run, &j->slots[slot], of_first->dtype, of_first->rank, dims) != QRT_OK) return false;
    }
    return true;
}

static bool hand_over(const job *j, qrt_lane *lane, int64_t item) {
    for (int slot = 0; slot < j->plan->num_slots; slot++) {
        const qrt_tensor *from = &lane->slots[slot], *to = &j->slots[slot];
        if (lane->states[slot] != MADE) continue;
        if (!is_batch(from, 1) || from->size != to->size / j->items) return false;
        const size_t bytes = (size_t)from->size * qrt_itemsize(from->dtype);
        memcpy((char *)to->data + (size_t)item * bytes, from->data, bytes);
    }
    return true;
}

static bool run_item(const job *j, qrt_lane *lane, int64_t item) {
    bool is_done = true;
    for (int slot = 0; slot < j->plan->num_slots; slot++)
        if (lane->states[slot] == BEFORE) view_item(&j->slots[slot], j->items, item, &lane->slots[slot]);
    for (int at = 0; at < j->count && is_done; at++) {
        const qrt_step *step = step_of(j, at);
        is_done = run_step(j, step, lane);
        if (is_done) leave(j, step, lane);
    }
    is_done = is_done && hand_over(j, lane, item);
    empty(j, lane);
    return is_done;
}

static void run_lane(void *context, int64_t at) {
    job *j = context;
    while (!__atomic_load_n(&j->failed, __ATOMIC_RELAXED)) {
        const int64_t item = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED);
        if (item >= j->end) return;
        if (!run_item(j, &j->lanes->lanes[at], item)) __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED);
    }
}

static bool goes_on(job *j, const qrt_interrupt *interrupt) {
    j->is_interrupted = j->is_interrupted || (!j->failed && interrupt->is_wanted(interrupt->context) != 0);
    return !j->failed && !j->is_interrupted;
}

/// All items but the first of each lane: as many as threads can share evenly in lanes of their own, the others by all threads together.
static bool run_others(job *j, int num_threads, const qrt_interrupt *interrupt) {
    const int64_t shared = j->items / num_threads * num_threads;
    const int64_t rounds = ASK_NANOSECONDS / (j->item_nanoseconds + 1);
    for (j->end = num_threads; j->end < shared && goes_on(j, interrupt);) {
        j->next = j->end;
        j->end += num_threads * (rounds > 1 ? rounds : 1);
        if (j->end > shared) j->end = shared;
        qrt_parallel_for(num_threads, num_threads, run_lane, j);
    }
    j->lanes->lanes[0].run.num_threads = num_threads;
    for (int64_t item = shared; item < j->items && goes_on(j, interrupt); item++) j->failed = !run_item(j, &j->lanes->lanes[0], item);
    return !j->failed && !j->is_interrupted;
}

static bool prepare(qrt_lanes *lanes, const qrt_steps *plan, qrt_tensor *slots, int count) {
    if (lanes->count < count) {
        qrt_lane *grown = realloc(lanes->lanes, (size_t)count * sizeof *grown);
        if (!grown) return false;
        lanes->lanes = grown;
    }
    for (; lanes->count < count; lanes->count++) {
        qrt_lane *lane = &lanes->lanes[lanes->count];
        *lane = (qrt_lane){.slots = calloc((size_t)plan->num_slots, sizeof *lane->slots),
                           .inputs = calloc((size_t)plan->num_input_refs + 1, sizeof *lane->inputs),
                           .states = malloc((size_t)plan->num_slots + 1)};
        if (!lane->slots || !lane->inputs || !lane->states) {
            free(lane->slots);
            free(lane->inputs);
            free(lane->states);
            return false;
        }
        for (int i = 0; i < plan->num_input_refs; i++) {
            const int slot = plan->input_refs[i];
            if (slot >= 0) lane->inputs[i] = plan->is_constant[slot] ? &slots[slot] : &lane->slots[slot];
        }
    }
    return true;
}

/// What lanes had in use counts for the run.
static void count_lanes(const qrt_lanes *lanes, int num_lanes, qrt_run *run) {
    size_t bytes = 0;
    for (int at = 0; at < num_lanes; at++) bytes += lanes->lanes[at].run.peak_bytes;
    qrt_count(run, bytes);
    run->live_bytes -= bytes;
}

int qrt_run_by_items(const qrt_steps *plan, const int *order, int count, qrt_run *run, qrt_tensor *slots, qrt_lanes *lanes,
                     const qrt_interrupt *interrupt) {
    job j = {.plan = plan, .order = order, .count = count, .slots = slots, .lanes = lanes};
    const int num_threads = run->num_threads;
    j.items = items_of(&j);
    // With fewer items than threads, threads share each step.
    if (j.items < 2 || j.items < num_threads || !prepare(lanes, plan, slots, num_threads)) return 0;
    for (int at = 0; at < num_threads; at++) {
        memset(lanes->lanes[at].states, UNSEEN, (size_t)plan->num_slots);
        qrt_run_begin(&lanes->lanes[at].run, 1);
    }
    if (!is_worth_while(&j, count)) return 0;
    bool is_done = run_firsts(&j, num_threads) && allocate(&j, run);
    for (int at = 0; at < num_threads; at++) {
        is_done = is_done && hand_over(&j, &lanes->lanes[at], at);
        empty(&j, &lanes->lanes[at]);
    }
    is_done = is_done && run_others(&j, num_threads, interrupt);
    count_lanes(lanes, num_threads, run);
    if (is_done) return j.count;
    for (int slot = 0; slot < plan->num_slots; slot++)
        if (lanes->lanes[0].states[slot] == MADE) qrt_release(run, &slots[slot]);
    return j.is_interrupted ? -1 : 0;
}

size_t qrt_lanes_free_bytes(const qrt_lanes *lanes) {
    size_t bytes = 0;
    for (int at = 0; at < lanes->count; at++)
        for (const qrt_buffer *buffer = lanes->lanes[at].run.free_buffers; buffer; buffer = buffer->next) bytes += buffer->capacity;
    return bytes;
}

void qrt_lanes_clear(qrt_lanes *lanes) {
    for (int at = 0; at < lanes->count; at++) {
        qrt_run_clear(&lanes->lanes[at].run);
        free(lanes->lanes[at].slots);
        free(lanes->lanes[at].inputs);
        free(lanes->lanes[at].states);
    }
    free(lanes->lanes);
    *lanes = (qrt_lanes){0};
}
