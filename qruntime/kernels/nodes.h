/// Node functions: what the executor calls. Each one checks its inputs, finds the output shapes,
/// allocates the outputs and calls compute kernels of the table, in parallel where it pays.
///
/// A node function never raises, prints or aborts. Whatever it cannot do (element type, rank, a shape
/// that does not fit, a constant that is out of range) it answers with QRT_DECLINE *before* it has
/// allocated an output; the numpy definition then runs and is the one to report an error.
#ifndef QRT_NODES_H
#define QRT_NODES_H

#include "kernels.h"
#include "tensor.h"

typedef struct qrt_node {
    const int64_t *ints;     ///< parameters from the binder in qruntime/ops, in its order
    const double *floats;
    void *const *packed;     ///< prepacked weights, types agreed between binder and node function
    int32_t num_ints, num_floats, num_packed;
    int32_t num_inputs, num_outputs;
    uint64_t dying;          ///< bit i: input i is read here for the last time
    const qrt_tensor *const *widened;  ///< for each input float32 that it is widened to, if it is a constant; else NULL
} qrt_node;

/// `in[i]` is NULL for an absent optional input. `out[i]` is empty when called; an output that nobody
/// reads may be left empty.
typedef qrt_status (*qrt_node_fn)(const qrt_node *node, qrt_run *run,
                                  const qrt_tensor *const *in, qrt_tensor *out);

typedef struct {
    const char *name;
    qrt_node_fn fn;
} qrt_node_entry;

/// Every file under nodes/ ends with its own list; nodes.c joins them. {NULL, NULL} terminates.
extern const qrt_node_entry qrt_layout_nodes[];
extern const qrt_node_entry qrt_move_nodes[];
extern const qrt_node_entry qrt_pad_nodes[];
extern const qrt_node_entry qrt_index_nodes[];
extern const qrt_node_entry qrt_dft_nodes[];
extern const qrt_node_entry qrt_generate_nodes[];
extern const qrt_node_entry qrt_pooling_nodes[];
extern const qrt_node_entry qrt_linear_nodes[];
extern const qrt_node_entry qrt_clustered_linear_nodes[];
extern const qrt_node_entry qrt_append_nodes[];
extern const qrt_node_entry qrt_attention_nodes[];
extern const qrt_node_entry qrt_group_query_attention_nodes[];
extern const qrt_node_entry qrt_cache_codes_nodes[];
extern const qrt_node_entry qrt_blocked_conv_nodes[];
extern const qrt_node_entry qrt_blocked_conv_transpose_nodes[];
extern const qrt_node_entry qrt_winograd_conv_nodes[];
extern const qrt_node_entry qrt_blocked_conv_q8_nodes[];
extern const qrt_node_entry qrt_blocked_windows_nodes[];
extern const qrt_node_entry qrt_channel_blocks_nodes[];
extern const qrt_node_entry qrt_conv_nodes[];
extern const qrt_node_entry qrt_conv_q8_nodes[];
extern const qrt_node_entry qrt_conv_transpose_nodes[];
extern const qrt_node_entry qrt_embedding_nodes[];
extern const qrt_node_entry qrt_elementwise_nodes[];
extern const qrt_node_entry qrt_cast_nodes[];
extern const qrt_node_entry qrt_rows_nodes[];
extern const qrt_node_entry qrt_normalization_nodes[];
extern const qrt_node_entry qrt_reduction_nodes[];
extern const qrt_node_entry qrt_arg_extreme_nodes[];
extern const qrt_node_entry qrt_rnn_nodes[];
extern const qrt_node_entry qrt_rnn_f64_nodes[];
extern const qrt_node_entry qrt_matmul_nodes[];
extern const qrt_node_entry qrt_quantize_nodes[];
extern const qrt_node_entry qrt_float8_nodes[];
extern const qrt_node_entry qrt_outlier_pairs_nodes[];
extern const qrt_node_entry qrt_qlinear_nodes[];
extern const qrt_node_entry qrt_qlinear_conv_nodes[];
extern const qrt_node_entry qrt_qlinear_pooling_nodes[];
extern const qrt_node_entry qrt_tree_ensemble_nodes[];
extern const qrt_node_entry qrt_linear_model_nodes[];
extern const qrt_node_entry qrt_support_vectors_nodes[];
extern const qrt_node_entry qrt_features_nodes[];
extern const qrt_node_entry qrt_top_k_nodes[];
extern const qrt_node_entry qrt_detection_nodes[];
extern const qrt_node_entry qrt_resize_nodes[];
extern const qrt_node_entry qrt_grid_sample_nodes[];
extern const qrt_node_entry qrt_roi_align_nodes[];

/// NULL when there is no node function of that name.
qrt_node_fn qrt_find_node(const char *name);

/// True when the node function of that name computes in float32 and stands for its operator in narrower floats as well.
bool qrt_widens(const char *name);

/// Call `fn` on float16 or bfloat16 inputs, widened to float32, and round its float32 outputs to their type. Declines
/// unless the first input has such a type and all floats among the inputs have the same.
qrt_status qrt_call_widened(qrt_node_fn fn, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out);

/// True when input i may be overwritten: it dies here, its buffer is ours and nobody else holds it.
bool qrt_may_overwrite(const qrt_node *node, const qrt_tensor *const *in, int i);

#endif
