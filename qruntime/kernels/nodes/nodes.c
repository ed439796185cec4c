#include "../nodes.h"

#include <string.h>

static const qrt_node_entry *const families[] = {
    qrt_append_nodes,
    qrt_attention_nodes,
    qrt_group_query_attention_nodes,
    qrt_cache_codes_nodes,
    qrt_blocked_conv_nodes,
    qrt_blocked_conv_transpose_nodes,
    qrt_winograd_conv_nodes,
    qrt_blocked_conv_q8_nodes,
    qrt_blocked_windows_nodes,
    qrt_channel_blocks_nodes,
    qrt_conv_nodes,
    qrt_conv_q8_nodes,
    qrt_conv_transpose_nodes,
    qrt_embedding_nodes,
    qrt_layout_nodes,
    qrt_move_nodes,
    qrt_pad_nodes,
    qrt_index_nodes,
    qrt_dft_nodes,
    qrt_generate_nodes,
    qrt_pooling_nodes,
    qrt_linear_nodes,
    qrt_clustered_linear_nodes,
    qrt_elementwise_nodes,
    qrt_cast_nodes,
    qrt_rows_nodes,
    qrt_normalization_nodes,
    qrt_reduction_nodes,
    qrt_arg_extreme_nodes,
    qrt_rnn_nodes,
    qrt_rnn_f64_nodes,
    qrt_matmul_nodes,
    qrt_quantize_nodes,
    qrt_float8_nodes,
    qrt_outlier_pairs_nodes,
    qrt_qlinear_nodes,
    qrt_qlinear_conv_nodes,
    qrt_qlinear_pooling_nodes,
    qrt_tree_ensemble_nodes,
    qrt_linear_model_nodes,
    qrt_support_vectors_nodes,
    qrt_features_nodes,
    qrt_top_k_nodes,
    qrt_detection_nodes,
    qrt_resize_nodes,
    qrt_grid_sample_nodes,
    qrt_roi_align_nodes,
};

qrt_node_fn qrt_find_node(const char *name) {
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        for (const qrt_node_entry *entry = families[i]; entry->name; entry++)
            if (!strcmp(entry->name, name)) return entry->fn;
    return NULL;
}

bool qrt_may_overwrite(const qrt_node *node, const qrt_tensor *const *in, int i) {
    const qrt_tensor *t = in[i];
    return i < 64 && (node->dying >> i & 1) && t->buffer && !t->buffer->owner &&
           __atomic_load_n(&t->buffer->refcount, __ATOMIC_ACQUIRE) == 1;
}
