/// The contract of all compute kernels: one table of function pointers, one ladder of rungs.
///
/// `portable/` fills every slot in plain C and is the definition. Each further rung overlays the slots
/// it improves; what it leaves alone falls through to the rung below. A test compares every rung with
/// portable: integers bit for bit, floats within the bound stated at the slot.
///
/// For every slot:
/// - pointers do not overlap unless it says "in place";
/// - counts are in elements; strides end in _elems or _bytes;
/// - sizes of zero are allowed and do nothing;
/// - no kernel allocates, prints, raises or aborts;
/// - a result never depends on the number of threads, nor on how the caller splits rows.
#ifndef QRT_KERNELS_H
#define QRT_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention.h"
#include "attention_q16.h"
#include "column_sums.h"
#include "cache_codes.h"
#include "code_grid.h"
#include "conv_f32.h"
#include "conv_q8.h"
#include "dft.h"
#include "gemm_clusters.h"
#include "gemm_f32.h"
#include "gemm_f64.h"
#include "gemm_nbits.h"
#include "gemm_nbits_q8.h"
#include "gemm_q8.h"
#include "gram.h"
#include "outlier_pairs.h"
#include "pointwise.h"
#include "qlinear.h"
#include "rnn.h"
#include "rows.h"

typedef struct qrt_kernel_table {
    const char *isa;          ///< name of the rung
    qrt_codes_q8 codes_q8;    ///< activations as codes of a byte each; nothing to `pack`
    qrt_gemm_q8 gemm_q8;      ///< int8 weights, dynamically quantized activations
    qrt_gemm_nbits_q8 gemm_nbits_q8;  ///< weights of 2 to 8 bits in groups, dynamically quantized activations
    qrt_gemm_clusters gemm_clusters;  ///< weights of 2 to 8 bits, codes of activations in clusters of channels
    qrt_gemm_f32 gemm_f32;    ///< float GEMM
    qrt_conv_f32 conv_f32;    ///< convolutions of channels in blocks
    qrt_conv_q8 conv_q8;      ///< ranges of the windows of such images, the same bits on every rung
    qrt_gemm_f64 gemm_f64;    ///< double GEMM
    qrt_gemm_nbits gemm_nbits;  ///< weights of 2 to 8 bits in groups, float activations
    qrt_attention attention;  ///< between the two products of attention
    qrt_attention_q16 attention_q16;  ///< attention of quantized models
    qrt_cache_codes cache_codes;  ///< caches of keys and values in few bits
    qrt_code_grids code_grid;     ///< weights to their nearest codes
    qrt_pointwise pointwise;  ///< elementwise
    qrt_rnn rnn;              ///< gates and state of recurrent layers
    qrt_qlinear qlinear;      ///< 8-bit codes of static quantization
    qrt_column_sums column_sums;  ///< sums of the solvers of weights, the same bits on every rung
    qrt_dft dft;              ///< Fourier transforms, the same bits on every rung
    qrt_gram gram;  ///< exact sums of products of columns
    qrt_outlier_pairs outlier_pairs;  ///< rounding to outlier-victim pairs
    qrt_rows rows;            ///< softmax, normalisation, reductions along the last axis
} qrt_kernel_table;

/// Rungs, from worst to best for this machine's architecture.
typedef struct {
    const char *name;
    bool (*is_supported)(void);
    void (*overlay)(qrt_kernel_table *table);
} qrt_rung;

extern const qrt_rung qrt_ladder[];  ///< terminated by {NULL, NULL, NULL}

/// The table in force: all supported rungs up to the cap. Set once, before any run.
extern qrt_kernel_table qrt_kernels;

/// Build the table of rung `name` (all supported rungs up to it); false when the name is unknown or
/// this CPU lacks it. The tests use it to hold every rung against portable in one process.
bool qrt_build_table(const char *name, qrt_kernel_table *table);

#endif
