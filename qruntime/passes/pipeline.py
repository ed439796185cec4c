"""The passes, in order. Two lists, two normal forms.

*Canonical* graphs are portable: standard ONNX operators, and functions made of them, fit to be saved, inspected, quantized.
*Lowered* graphs belong to this machine: they use operators of our own domain that name what the kernels
do. They are never saved.

QRUNTIME_TRACE=passes says on stderr what each rewrite did or why it declined; QRUNTIME_CHECK=1 checks
the graph's invariants after every pass.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from qruntime.errors import InvalidModel
from qruntime.ir import Graph
from qruntime.passes.append_cache import append_caches
from qruntime.passes.attention import fuse_attention
from qruntime.passes.attention_precision import attend_in_int16
from qruntime.passes.cached_attention import attend_codes
from qruntime.passes.casts import remove_casts
from qruntime.passes.channel_affine import fold_channel_affine
from qruntime.passes.channel_blocks import keep_channel_blocks
from qruntime.passes.channel_counts import fold_channel_counts
from qruntime.passes.channels_last import keep_channels_last
from qruntime.passes.cleanup import (
    fold_all_constants,
    fold_constants,
    merge_duplicates,
    remove_dead_nodes,
    remove_identities,
)
from qruntime.passes.clustered_linear import multiply_clusters
from qruntime.passes.code_tables import fold_code_tables
from qruntime.passes.contrib import expand_contrib
from qruntime.passes.convolution import lower_convolution
from qruntime.passes.einsum import contract_einsum, linear_einsum
from qruntime.passes.float8_activations import round_to_float8
from qruntime.passes.foreign_quantization import lower_foreign_quantization
from qruntime.passes.gelu import fuse_gelu
from qruntime.passes.hard_swish import fuse_hard_swish
from qruntime.passes.joined_blocks import read_blocks_apart
from qruntime.passes.layer_norm import fuse_layer_norm, fuse_residual_norm
from qruntime.passes.linear import fuse_epilogues, lower_linear
from qruntime.passes.merged_linear import merge_linear
from qruntime.passes.onnx_attention import lower_attention
from qruntime.passes.outlier_pairs import lower_outlier_pairs
from qruntime.passes.padding import fold_padding
from qruntime.passes.quantized_pairs import compute_on_codes
from qruntime.passes.recurrent import lower_recurrent
from qruntime.passes.rewriting import trace
from qruntime.passes.rounded_activations import round_activations
from qruntime.passes.shape_of_transpose import read_shapes_before_transposes
from qruntime.passes.stacked_concat import stack_concats
from qruntime.passes.static_quantization import apply_code_tables, lower_static_quantization
from qruntime.passes.stored import decode_bare_codes, decode_stored, decode_what_is_left, read_stored
from qruntime.passes.string_labels import look_up_string_labels
from qruntime.passes.unsigned_codes import keep_codes_unsigned
from qruntime.passes.winograd import multiply_less

Pass = Callable[[Graph], None]

CANONICAL: list[Pass] = [
    remove_identities,   # first: a constant behind an Identity is a constant
    read_stored,         # before anything could compute what codes stand for
    fold_constants,      # transposed and reshaped weights become weights
    linear_einsum,       # before weights that are equal are found
    merge_duplicates,    # exporters repeat shape arithmetic for every layer
    fold_channel_affine, # once equal constants are one: what others read stays
    remove_dead_nodes,
]  # fmt: skip

LOWERED: list[Pass] = [
    decode_bare_codes,  # element types that numpy lacks, before what reads them is computed
    fold_all_constants,  # what the portable form keeps as a program, because that is smaller
    lower_outlier_pairs,  # before products of codes are found: they are some, with a scale
    compute_on_codes,  # static quantization, while weights and biases are stored as codes
    round_activations,  # what is quantized for layers that read floats
    decode_stored,  # weights that are stored in fewer bits, but for kernels that read them so
    # What other tools fused or quantized, in the terms of the passes below.
    lower_foreign_quantization,
    lower_static_quantization,
    fold_code_tables,
    apply_code_tables,  # a layer looks up what was folded
    keep_channels_last,
    keep_codes_unsigned,  # tables and layers are what they will be
    expand_contrib,
    contract_einsum,
    remove_casts,
    look_up_string_labels,
    # What exporters decompose, recognised while it is still made of standard operators.
    fuse_layer_norm,
    fuse_gelu,
    fuse_hard_swish,
    fuse_attention,
    lower_attention,
    attend_codes,
    stack_concats,  # attention has found its keys and values by now
    read_shapes_before_transposes,
    # Weights meet their kernels; whatever follows a linear layer then folds into its epilogue.
    round_to_float8,
    lower_linear,
    multiply_clusters,
    lower_recurrent,
    fold_padding,  # while convolutions are ONNX's
    lower_convolution,
    decode_what_is_left,
    fold_channel_counts,
    keep_channel_blocks,  # while every operator stands by itself
    fuse_epilogues,
    read_blocks_apart,
    multiply_less,  # of convolutions that are left as they are now
    merge_linear,
    attend_in_int16,
    fuse_residual_norm,
    append_caches,  # last: nothing may come to read a cache that does not know how it lies
    remove_dead_nodes,
]


SHORTER = frozenset({multiply_less})
"""Passes for which results are within a wider bound than the sum of products has; graphs that are `exact` do without."""


def canonical(graph: Graph) -> Graph:
    """Bring `graph` into its portable normal form, in place."""
    return _run(CANONICAL, graph)


def lowered(graph: Graph) -> Graph:
    """Turn a canonical `graph` into what the kernels run, in place."""
    return _run([one for one in LOWERED if not (graph.exact and one in SHORTER)], graph)


def _run(passes: Sequence[Pass], graph: Graph) -> Graph:
    check = os.environ.get("QRUNTIME_CHECK") == "1"
    for one in passes:
        trace(f"pass {one.__name__}")
        one(graph)
        if check:
            try:
                graph.check()
            except InvalidModel as error:
                raise InvalidModel(f"after pass {one.__name__}: {error}") from error
    return graph
