/// RoiAlign: the mean or maximum of bilinear samples in the bins of regions of float32 images [N, C, H, W].
///
/// Positions are found in double and weights in float as the numpy definition finds them (ops/pooling.py), once for a row
/// and once for a column of samples; samples of a bin are summed row by row, and results are its very bits.
#include <math.h>

#include "../threads.h"
#include "arguments.h"
#include "enumerations.h"

enum { QRT_ROI_MODES(QRT_ENUMERATOR) };
enum {
    PLANES = 4,           ///< channels that share weights
    BLOCK = 32,           ///< channels of one task
    PARALLEL_SAMPLES = 1 << 12,
    MAX_TAPS = 1 << 22,   ///< of all regions; beyond them the definition works region by region
};

/// The neighbours of a position on one axis, as distances in elements, and their weights.
typedef struct {
    int64_t low, high;
    float low_weight, high_weight;
} tap;

/// What is sampled for one region: `grid_height` × `grid_width` samples for a bin, or none.
typedef struct {
    int64_t image, grid_height, grid_width;
    double top, left, height, width;
    tap *rows, *columns;
} region;

typedef struct {
    const float *x;
    float *y;
    region *regions;
    int64_t num_regions, num_channels, height, width, bins_high, bins_wide, blocks;
    int mode;
} alignment;

/// Positions along `bins` bins of an axis of `size`, whose elements are `stride` apart.
static void find_taps(double start, double length, int64_t bins, int64_t grid, int64_t size, int64_t stride, tap *taps) {
    const double step = length / (double)bins / (double)grid;
    for (int64_t i = 0; i < bins * grid; i++) {
        float at = (float)(start + ((double)i + 0.5) * step);
        bool is_inside = at >= -1 && at <= (float)size;
        float clipped = !is_inside || at < 0 ? 0 : at > (float)(size - 1) ? (float)(size - 1) : at;
        int64_t low = (int64_t)clipped, high = low + 1 < size ? low + 1 : size - 1;
        float fraction = clipped - (float)low;
        taps[i] = (tap){low * stride, high * stride, is_inside ? 1 - fraction : 0, is_inside ? fraction : 0};
    }
}

/// One bin of PLANES planes; rows and columns begin with it.
static inline void average_bin(const region *r, const float *const *x, const tap *rows, const tap *columns, float *bin) {
    float total[PLANES] = {0};
    for (int64_t i = 0; i < r->grid_height; i++) {
        const tap v = rows[i];
        for (int64_t j = 0; j < r->grid_width; j++) {
            const tap h = columns[j];
            const float w0 = v.low_weight * h.low_weight, w1 = v.low_weight * h.high_weight;
            const float w2 = v.high_weight * h.low_weight, w3 = v.high_weight * h.high_weight;
            for (int k = 0; k < PLANES; k++) {
                const float *low = x[k] + v.low, *high = x[k] + v.high;
                total[k] += low[h.low] * w0 + low[h.high] * w1 + high[h.low] * w2 + high[h.high] * w3;
            }
        }
    }
    const float count = (float)(r->grid_height * r->grid_width);
    for (int k = 0; k < PLANES; k++) bin[k] = total[k] / count;
}

/// The greater; with `minds_nan` NaN where one is.
static inline __attribute__((always_inline)) float greater(float a, float b, bool minds_nan) {
    if (minds_nan && b != b) return b;
    if (minds_nan && a != a) return a;
    return b > a ? b : a;
}

/// The standard takes the largest weighted neighbour, not the largest interpolated value. True when there may be NaN.
static inline __attribute__((always_inline)) bool find_maximum(const region *r, const float *const *x, const tap *rows,
                                                               const tap *columns, bool minds_nan, float *bin) {
    float best[PLANES], sum[PLANES] = {0};
    for (int k = 0; k < PLANES; k++) best[k] = -INFINITY;
    for (int64_t i = 0; i < r->grid_height; i++) {
        const tap v = rows[i];
        for (int64_t j = 0; j < r->grid_width; j++) {
            const tap h = columns[j];
            const float w0 = v.low_weight * h.low_weight, w1 = v.low_weight * h.high_weight;
            const float w2 = v.high_weight * h.low_weight, w3 = v.high_weight * h.high_weight;
            for (int k = 0; k < PLANES; k++) {
                const float *low = x[k] + v.low, *high = x[k] + v.high;
                const float p0 = low[h.low] * w0, p1 = low[h.high] * w1, p2 = high[h.low] * w2, p3 = high[h.high] * w3;
                const float most = greater(greater(p0, p1, minds_nan), greater(p2, p3, minds_nan), minds_nan);
                best[k] = greater(best[k], most, minds_nan);
                sum[k] += (p0 + p1) + (p2 + p3);
            }
        }
    }
    bool is_odd = false;
    for (int k = 0; k < PLANES; k++) {
        bin[k] = best[k] + 0.0f;  // of two zeros the positive one
        is_odd |= sum[k] != sum[k];
    }
    return is_odd;
}

static void maximum_bin(const region *r, const float *const *x, const tap *rows, const tap *columns, float *bin) {
    if (find_maximum(r, x, rows, columns, false, bin)) find_maximum(r, x, rows, columns, true, bin);
}

static void align_planes(const alignment *a, const region *r, const float *const *x, float *const *y) {
    for (int64_t i = 0; i < a->bins_high; i++)
        for (int64_t j = 0; j < a->bins_wide; j++) {
            const tap *rows = r->rows + i * r->grid_height, *columns = r->columns + j * r->grid_width;
            float bin[PLANES] = {0};
            if (r->grid_height && r->grid_width) (a->mode == AVERAGE ? average_bin : maximum_bin)(r, x, rows, columns, bin);
            for (int k = 0; k < PLANES; k++) y[k][i * a->bins_wide + j] = bin[k];
        }
}

static void align_task(void *context, int64_t task) {
    const alignment *a = context;
    const int64_t n = task / a->blocks, first = task % a->blocks * BLOCK, plane = a->height * a->width;
    const int64_t end = a->num_channels - first < BLOCK ? a->num_channels : first + BLOCK, bins = a->bins_high * a->bins_wide;
    const region *r = &a->regions[n];
    for (int64_t c = first; c < end; c += PLANES) {
        const float *x[PLANES];
        float *y[PLANES];
        for (int k = 0; k < PLANES; k++) {
            const int64_t channel = c + k < end ? c + k : end - 1;  // the last is its own partner
            x[k] = a->x + (r->image * a->num_channels + channel) * plane;
            y[k] = a->y + (n * a->num_channels + channel) * bins;
        }
        align_planes(a, r, x, y);
    }
}

/// Samples of a bin along one axis; negative when they are too many or their number is none.
static int64_t grid_of(double length, int64_t bins, int64_t sampling_ratio) {
    double grid = sampling_ratio ? (double)sampling_ratio : ceil(length / (double)bins);
    if (!(grid * (double)bins <= MAX_TAPS)) return -1;
    return grid > 0 ? (int64_t)grid : 0;
}

/// Fill the regions but for their taps, of which there are `num_taps`; false for what the definition judges.
static bool read_regions(const qrt_node *node, const qrt_tensor *rois, const qrt_tensor *images, int64_t num_images, alignment *a,
                         int64_t *num_taps) {
    const double scale = node->floats[0], offset = node->ints[4] ? 0.5 : 0;
    *num_taps = 0;
    for (int64_t n = 0; n < a->num_regions; n++) {
        const float *box = (const float *)rois->data + 4 * n;
        region *r = &a->regions[n];
        double at[4];
        for (int i = 0; i < 4; i++) {
            at[i] = (double)box[i] * scale - offset;
            if (!isfinite(at[i])) return false;
        }
        r->image = qrt_index(images, n);
        if (r->image < 0 || r->image >= num_images) return false;
        r->left = at[0], r->top = at[1], r->width = at[2] - at[0], r->height = at[3] - at[1];
        if (!node->ints[4]) r->height = r->height > 1 ? r->height : 1, r->width = r->width > 1 ? r->width : 1;
        r->grid_height = grid_of(r->height, a->bins_high, node->ints[3]);
        r->grid_width = grid_of(r->width, a->bins_wide, node->ints[3]);
        if (r->grid_height < 0 || r->grid_width < 0) return false;
        if (!r->grid_height || !r->grid_width) r->grid_height = r->grid_width = 0;
        double samples = (double)(r->grid_height * a->bins_high) * (double)(r->grid_width * a->bins_wide);
        if (samples * 4 * (double)a->num_channels > (double)QRT_MAX_ELEMENTS) return false;
        *num_taps += r->grid_height * a->bins_high + r->grid_width * a->bins_wide;
        if (*num_taps > MAX_TAPS) return false;
    }
    return true;
}

static qrt_status align(qrt_run *run, alignment *a, int64_t num_taps) {
    qrt_buffer *memory = qrt_scratch(run, (size_t)num_taps * sizeof(tap));
    if (!memory) return QRT_NO_MEMORY;
    tap *taps = memory->data;
    for (int64_t n = 0; n < a->num_regions; n++) {
        region *r = &a->regions[n];
        r->rows = taps;
        r->columns = taps + r->grid_height * a->bins_high;
        taps = r->columns + r->grid_width * a->bins_wide;
        if (!r->grid_height) continue;
        find_taps(r->top, r->height, a->bins_high, r->grid_height, a->height, a->width, r->rows);
        find_taps(r->left, r->width, a->bins_wide, r->grid_width, a->width, 1, r->columns);
    }
    a->blocks = (a->num_channels + BLOCK - 1) / BLOCK;
    const int64_t size = a->num_regions * a->num_channels * a->bins_high * a->bins_wide;
    qrt_parallel_for(size < PARALLEL_SAMPLES ? 1 : run->num_threads, a->num_regions * a->blocks, align_task, a);
    qrt_scratch_free(run, memory);
    return QRT_OK;
}

/// ints: mode, output_height, output_width, sampling_ratio, whether half a pixel is taken off; floats: spatial_scale.
/// Inputs: float32 x [N, C, H, W], regions [R, 4] as x1, y1, x2, y2, the image of each. Output: [R, C, output_height, output_width].
static qrt_status roi_align(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *rois = qrt_input(node, in, 1), *images = qrt_input(node, in, 2);
    if (node->num_ints < 5 || node->num_floats < 1 || node->ints[1] < 1 || node->ints[2] < 1 || node->ints[3] < 0) return QRT_DECLINE;
    if (!qrt_is_tensor(x) || !qrt_is_tensor(rois) || !qrt_is_index(images)) return QRT_DECLINE;
    if (x->dtype != QRT_F32 || x->rank != 4 || rois->dtype != QRT_F32 || rois->rank != 2 || rois->dims[1] != 4) return QRT_DECLINE;
    if (images->rank != 1 || images->size != rois->dims[0]) return QRT_DECLINE;
    int64_t dims[4] = {rois->dims[0], x->dims[1], node->ints[1], node->ints[2]};
    // Sizes that float32 does not hold exactly would round otherwise than in the definition.
    if (!qrt_is_buildable(4, dims) || x->size == 0 || x->dims[2] > 1 << 23 || x->dims[3] > 1 << 23) return QRT_DECLINE;
    alignment a = {
        .x = x->data, .num_regions = dims[0], .num_channels = dims[1], .height = x->dims[2], .width = x->dims[3],
        .bins_high = dims[2], .bins_wide = dims[3], .mode = (int)node->ints[0],
    };
    qrt_buffer *memory = qrt_scratch(run, (size_t)dims[0] * sizeof(region) + 1);
    if (!memory) return QRT_NO_MEMORY;
    a.regions = memory->data;
    int64_t num_taps;
    qrt_status status = QRT_DECLINE;
    if (read_regions(node, rois, images, x->dims[0], &a, &num_taps)) {
        status = qrt_alloc(run, &out[0], QRT_F32, 4, dims);
        a.y = out[0].data;
        if (status == QRT_OK && out[0].size) status = align(run, &a, num_taps);
    }
    qrt_scratch_free(run, memory);
    return status;
}

const qrt_node_entry qrt_roi_align_nodes[] = {
    {"roi_align", roi_align},
    {NULL, NULL},
};
