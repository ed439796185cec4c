#include "enumerations.h"

#include <stddef.h>

#include "../codes_q8.h"
#include "../epilogue.h"

#define NAME(enumerator, name) #name,
const char *const qrt_activation_names[] = {QRT_ACTIVATIONS(NAME) NULL};
const char *const qrt_range_names[] = {QRT_RANGE_MODES(NAME) NULL};
const char *const qrt_auto_pad_names[] = {QRT_AUTO_PADS(NAME) NULL};
const char *const qrt_interpolation_names[] = {QRT_INTERPOLATIONS(NAME) NULL};
const char *const qrt_coordinates_names[] = {QRT_COORDINATES(NAME) NULL};
const char *const qrt_nearest_mode_names[] = {QRT_NEAREST_MODES(NAME) NULL};
const char *const qrt_grid_padding_names[] = {QRT_GRID_PADDINGS(NAME) NULL};
const char *const qrt_pad_mode_names[] = {QRT_PAD_MODES(NAME) NULL};
const char *const qrt_scatter_reduction_names[] = {QRT_SCATTER_REDUCTIONS(NAME) NULL};
const char *const qrt_direction_names[] = {QRT_DIRECTIONS(NAME) NULL};
const char *const qrt_tree_aggregate_names[] = {QRT_TREE_AGGREGATES(NAME) NULL};
const char *const qrt_post_transform_names[] = {QRT_POST_TRANSFORMS(NAME) NULL};
const char *const qrt_tree_output_names[] = {QRT_TREE_OUTPUTS(NAME) NULL};
const char *const qrt_vector_output_names[] = {QRT_VECTOR_OUTPUTS(NAME) NULL};
const char *const qrt_vector_kernel_names[] = {QRT_VECTOR_KERNELS(NAME) NULL};
const char *const qrt_decision_names[] = {QRT_DECISIONS(NAME) NULL};
const char *const qrt_norm_names[] = {QRT_NORMS(NAME) NULL};
const char *const qrt_roi_mode_names[] = {QRT_ROI_MODES(NAME) NULL};
