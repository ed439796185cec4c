/// Non-maximum suppression of boxes.
///
/// Boxes leave a heap in the order of their scores until enough are selected: most are never sorted. Each is compared
/// with those selected before it, whose corners lie side by side for the compiler to take several at a time.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "arguments.h"

enum {
    TOGETHER = 16,             ///< selected boxes between two looks whether one overlaps
    PARALLEL_SCORES = 1 << 14,
};

typedef struct {
    float low_y, low_x, high_y, high_x, area;
} corners;

typedef struct {
    float score;
    int32_t box;
} candidate;

/// Boxes selected so far, of one class.
typedef struct {
    float *low_y, *low_x, *high_y, *high_x, *area;
} selection;

typedef struct {
    const float *boxes;        ///< [images, boxes, 4]
    bool is_centre;            ///< whether a box is its centre and size, else two opposite corners
    const float *scores;       ///< [images, classes, boxes]
    int64_t num_classes, num_boxes, limit;
    int64_t num_pairs, pairs_per_task;  ///< of an image and a class
    float iou, least;
    bool has_least;
    char *scratch;             ///< task_bytes for each task
    int64_t task_bytes;
    int32_t *selected;         ///< [images, classes, limit]
    int64_t *counts;           ///< [images, classes]
} suppression;

/// Higher scores first, then lower indices; NaN comes last.
static inline bool comes_first(candidate a, candidate b) {
    if (a.score > b.score || (a.score == a.score && b.score != b.score)) return true;
    bool is_equal = a.score == b.score || (a.score != a.score && b.score != b.score);
    return is_equal && a.box < b.box;
}

static inline void sink(candidate *heap, int64_t size, int64_t at, candidate moved) {
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && comes_first(heap[child + 1], heap[child])) child++;
        if (!comes_first(heap[child], moved)) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static inline float min_of(float a, float b) { return a < b ? a : b; }
static inline float max_of(float a, float b) { return a > b ? a : b; }

/// Corners and area of a box. False when a number is not finite: what follows from those the definition says.
static inline bool find_corners(const float *b, bool is_centre, corners *c) {
    if (is_centre) {
        float half_0 = b[2] / 2, half_1 = b[3] / 2;
        *c = (corners){b[0] - half_0, b[1] - half_1, b[0] + half_0, b[1] + half_1, 0};
    } else *c = (corners){min_of(b[0], b[2]), min_of(b[1], b[3]), max_of(b[0], b[2]), max_of(b[1], b[3]), 0};
    c->area = (c->high_y - c->low_y) * (c->high_x - c->low_x);
    return (b[0] - b[0]) + (b[1] - b[1]) + (b[2] - b[2]) + (b[3] - b[3]) + (c->area - c->area) == 0;
}

/// Whether any of the next TOGETHER scores is above `least`: of a detector's boxes most are not.
static inline bool any_above(const float *scores, float least) {
    int found = 0;
    for (int i = 0; i < TOGETHER; i++) found |= scores[i] > least;
    return found;
}

/// The boxes that come into question, unordered; how many they are.
static int64_t find_candidates(const suppression *c, const float *scores, candidate *to) {
    const int64_t n = c->num_boxes;
    int64_t size = 0;
    for (int64_t first = 0; first < n; first += TOGETHER) {
        int64_t end = first + TOGETHER < n ? first + TOGETHER : n;
        if (c->has_least && end - first == TOGETHER && !any_above(scores + first, c->least)) continue;
        for (int64_t i = first; i < end; i++)
            if (!c->has_least || scores[i] > c->least) to[size++] = (candidate){scores[i], (int32_t)i};
    }
    return size;
}

static bool overlaps(const selection *s, int64_t count, corners box, float iou) {
    for (int64_t first = 0; first < count; first += TOGETHER) {
        int64_t end = first + TOGETHER < count ? first + TOGETHER : count;
        int found = 0;
        for (int64_t i = first; i < end; i++) {
            float height = min_of(s->high_y[i], box.high_y) - max_of(s->low_y[i], box.low_y);
            float width = min_of(s->high_x[i], box.high_x) - max_of(s->low_x[i], box.low_x);
            float overlap = max_of(height, 0) * max_of(width, 0);
            float all = s->area[i] + box.area - overlap;
            // Degenerate boxes overlap with nothing.
            found |= (overlap > iou * all) & (all > 0);
        }
        if (found) return true;
    }
    return false;
}

/// A count below 0 says that a box which came into question is not finite.
static void suppress(const suppression *c, int64_t pair, char *scratch) {
    const int64_t n = c->num_boxes;
    const float *boxes = c->boxes + pair / c->num_classes * n * 4;
    candidate *heap = (candidate *)scratch;
    float *at = (float *)(heap + n);
    selection s = {at, at + c->limit, at + 2 * c->limit, at + 3 * c->limit, at + 4 * c->limit};
    int64_t size = find_candidates(c, c->scores + pair * n, heap), count = 0;
    for (int64_t i = size / 2 - 1; i >= 0; i--) sink(heap, size, i, heap[i]);
    while (size && count < c->limit) {
        int32_t best = heap[0].box;
        if (--size) sink(heap, size, 0, heap[size]);
        corners box;
        if (!find_corners(boxes + (int64_t)best * 4, c->is_centre, &box)) {
            count = -1;
            break;
        }
        if (overlaps(&s, count, box, c->iou)) continue;
        s.low_y[count] = box.low_y;
        s.low_x[count] = box.low_x;
        s.high_y[count] = box.high_y;
        s.high_x[count] = box.high_x;
        s.area[count] = box.area;
        c->selected[pair * c->limit + count++] = best;
    }
    c->counts[pair] = count;
}

static void suppress_task(void *context, int64_t task) {
    const suppression *c = context;
    int64_t pair = task * c->pairs_per_task, end = pair + c->pairs_per_task;
    if (end > c->num_pairs) end = c->num_pairs;
    for (; pair < end; pair++) suppress(c, pair, c->scratch + task * c->task_bytes);
}

static bool read_float(const qrt_tensor *t, double absent, double *value) {
    *value = absent;
    if (!t) return true;
    if (t->dtype != QRT_F32 || t->size != 1) return false;
    *value = *(const float *)t->data;
    return true;
}

static qrt_status write_triples(const suppression *c, qrt_run *run, qrt_tensor *out) {
    int64_t dims[2] = {0, 3};
    for (int64_t pair = 0; pair < c->num_pairs; pair++) {
        if (c->counts[pair] < 0) return QRT_DECLINE;
        dims[0] += c->counts[pair];
    }
    qrt_status status = qrt_alloc(run, out, QRT_I64, 2, dims);
    if (status != QRT_OK) return status;
    int64_t *to = out->data;
    for (int64_t pair = 0; pair < c->num_pairs; pair++)
        for (int64_t i = 0; i < c->counts[pair]; i++, to += 3) {
            to[0] = pair / c->num_classes;
            to[1] = pair % c->num_classes;
            to[2] = c->selected[pair * c->limit + i];
        }
    return QRT_OK;
}

/// ints: center_point_box. Inputs: float32 boxes [N, B, 4], scores [N, C, B]; the most boxes of a class (int64),
/// iou_threshold, score_threshold (float32). Output: int64 [selected, 3].
static qrt_status non_max_suppression(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *boxes = qrt_input(node, in, 0), *scores = qrt_input(node, in, 1), *most = qrt_input(node, in, 2);
    const qrt_tensor *last = qrt_input(node, in, 4);
    double iou, least;
    suppression c = {.has_least = last != NULL};
    if (!qrt_is_tensor(boxes) || !qrt_is_tensor(scores) || boxes->dtype != QRT_F32 || scores->dtype != QRT_F32) return QRT_DECLINE;
    if (boxes->rank != 3 || scores->rank != 3 || boxes->dims[2] != 4) return QRT_DECLINE;
    if (boxes->dims[0] != scores->dims[0] || boxes->dims[1] != scores->dims[2]) return QRT_DECLINE;
    if (node->ints[0] != 0 && node->ints[0] != 1) return QRT_DECLINE;
    if (most && !qrt_read_int(most, &c.limit)) return QRT_DECLINE;
    if (!read_float(qrt_input(node, in, 3), 0, &iou) || !(iou >= 0 && iou <= 1)) return QRT_DECLINE;
    if (!read_float(last, 0, &least)) return QRT_DECLINE;
    c.iou = (float)iou;
    c.least = (float)least;
    c.is_centre = node->ints[0] != 0;
    c.num_classes = scores->dims[1];
    c.num_boxes = boxes->dims[1];
    c.num_pairs = scores->dims[0] * c.num_classes;
    if (c.num_boxes > INT32_MAX) return QRT_DECLINE;
    c.limit = c.limit < 0 ? 0 : c.limit < c.num_boxes ? c.limit : c.num_boxes;
    int64_t none[2] = {0, 3};
    if (c.num_pairs == 0 || c.limit == 0) return qrt_alloc(run, &out[0], QRT_I64, 2, none);

    int64_t num_tasks = scores->size < PARALLEL_SCORES ? 1 : 4 * (int64_t)run->num_threads;
    c.pairs_per_task = (c.num_pairs + num_tasks - 1) / num_tasks;
    num_tasks = (c.num_pairs + c.pairs_per_task - 1) / c.pairs_per_task;
    int64_t count_bytes = (c.num_pairs * (int64_t)sizeof(int64_t) + 63) / 64 * 64;
    int64_t selected_bytes = (c.num_pairs * c.limit * (int64_t)sizeof(int32_t) + 63) / 64 * 64;
    c.task_bytes = (c.num_boxes * (int64_t)sizeof(candidate) + 5 * c.limit * (int64_t)sizeof(float) + 63) / 64 * 64;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)(count_bytes + selected_bytes + num_tasks * c.task_bytes));
    if (!scratch) return QRT_NO_MEMORY;
    char *at = scratch->data;
    c.boxes = boxes->data;
    c.counts = (int64_t *)at;
    c.selected = (int32_t *)(at + count_bytes);
    c.scratch = at + count_bytes + selected_bytes;
    c.scores = scores->data;
    qrt_parallel_for(run->num_threads, num_tasks, suppress_task, &c);
    qrt_status status = write_triples(&c, run, &out[0]);
    qrt_scratch_free(run, scratch);
    return status;
}

const qrt_node_entry qrt_detection_nodes[] = {
    {"non_max_suppression", non_max_suppression},
    {NULL, NULL},
};
