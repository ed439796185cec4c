/// Products of codes of activations whose channels come in clusters, each with a scale and a zero point, with weights of 2, 3, 4
/// or 8 bits that have a scale and a zero point for each output.
///
///     y[m, n] = activation( scale_w[n] · Σ_c scale[c] · t[m, n, c] + bias[n] ) + residual[m, n]
///     t[m, n, c] = Σ_k (a[m, k] − zero_point[c]) · w[n, k]   over the k of cluster c, exact;   w = u − zero_point_w[n]
///
/// Channels stand in the order of their clusters, each of which is a whole number of fours; where a weight is 0 it does not matter
/// what the activation is, so that a cluster is filled up with what there is. All w fit int8.
///
/// The float part, each operation rounded, no fused multiply-add: total = 0; total = total + float(t) · scale over ascending c;
/// total · scale_w + bias. Without activation, or with ReLU, y is the same bits on every rung.
#ifndef QRT_GEMM_CLUSTERS_H
#define QRT_GEMM_CLUSTERS_H

#include "gemm_nbits_q8.h"

/// Fours of a cluster, so many that t fits int32.
enum { QRT_CLUSTER_MOST_FOURS = 1 << 14 };

/// Weights of one layer: of one group, with scales and without zeros. Immutable once made.
typedef struct qrt_cluster_weights {
    qrt_nbits_weights w;
    const struct qrt_gemm_clusters *kernel;
    qrt_nbits_kind kind;
    int64_t num_clusters;
    const float *scales;          ///< of each cluster,
    const int32_t *zero_points;   ///< and
    const int32_t *fours;         ///< how many it has
    const uint8_t *weight_zeros;  ///< zero_point_w [panels][QRT_NBITS_NR]
} qrt_cluster_weights;

/// What qrt_clusters_new needs to know.
typedef struct {
    qrt_nbits_spec weights;       ///< uniform, one group of all k, without zero points and outliers
    const uint8_t *weight_zeros;  ///< [n] in codes; NULL: 2^(bits − 1)
    int64_t num_clusters;
    const float *scales;          ///< [num_clusters], and so are
    const uint8_t *zero_points;
    const int32_t *fours;         ///< 1 to QRT_CLUSTER_MOST_FOURS each, k / 4 together
} qrt_cluster_spec;

/// Size of the buffer that qrt_clusters_new takes; 0 when there can be none or the spec makes no sense.
size_t qrt_clusters_packed_bytes(const qrt_cluster_spec *spec);

/// Weights whose codes are still to be filled in (qrt_nbits_fill), in memory of `arena` (or NULL). NULL when memory is short or
/// the spec makes no sense.
qrt_cluster_weights *qrt_clusters_new(const qrt_cluster_spec *spec, const struct qrt_gemm_clusters *kernel, qrt_arena *arena);

/// y [m, n] of `m` rows of k codes, on at most run->num_threads threads, scratch from `run`.
qrt_status qrt_clusters_linear(const qrt_cluster_weights *w, qrt_run *run, const uint8_t *codes, int64_t m,
                               const qrt_epilogue *epilogue, float *y);

/// What a rung provides.
typedef struct qrt_gemm_clusters {
    const char *name;
    int panels;     ///< panels that are multiplied side by side
    /// Bytes that `multiply` needs for itself, aligned to QRT_ALIGNMENT.
    size_t (*scratch_bytes)(const qrt_cluster_weights *w);
    /// The block, whose rows are codes, against panels first … last-1, and its epilogue but for `map`.
    void (*multiply)(const qrt_cluster_weights *w, const qrt_q8_block *block, int64_t first, int64_t last, void *scratch);
} qrt_gemm_clusters;

#endif
