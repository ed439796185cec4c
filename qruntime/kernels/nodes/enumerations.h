/// Enumerations among the integers of nodes, as X(enumerator, name). Binders write a value by its name (qruntime/_kernels.pyx
/// has one dictionary for each), which is that of the ONNX attribute where there is one.
#ifndef QRT_ENUMERATIONS_H
#define QRT_ENUMERATIONS_H

/// In a node's file: enum { QRT_AUTO_PADS(QRT_ENUMERATOR) };
#define QRT_ENUMERATOR(enumerator, name) enumerator,

#define QRT_AUTO_PADS(X) \
    X(NOTSET, NOTSET) X(SAME_UPPER, SAME_UPPER) X(SAME_LOWER, SAME_LOWER) X(VALID, VALID)

#define QRT_INTERPOLATIONS(X) X(NEAREST, nearest) X(LINEAR, linear) X(CUBIC, cubic)

#define QRT_COORDINATES(X)                                                                        \
    X(HALF_PIXEL, half_pixel) X(PYTORCH_HALF_PIXEL, pytorch_half_pixel) X(ASYMMETRIC, asymmetric) \
    X(TF_HALF_PIXEL_FOR_NN, tf_half_pixel_for_nn) X(ALIGN_CORNERS, align_corners)                 \
    X(HALF_PIXEL_SYMMETRIC, half_pixel_symmetric)

#define QRT_NEAREST_MODES(X)                                                                      \
    X(ROUND_PREFER_FLOOR, round_prefer_floor) X(ROUND_PREFER_CEIL, round_prefer_ceil)             \
    X(FLOOR, floor) X(CEIL, ceil) X(FLOOR_OR_SHRINKING_CEIL, floor_or_shrinking_ceil) /* up when it shrinks */

#define QRT_GRID_PADDINGS(X) X(ZEROS, zeros) X(BORDER, border) X(REFLECTION, reflection)

#define QRT_PAD_MODES(X) X(CONSTANT, constant) X(REFLECT, reflect) X(EDGE, edge) X(WRAP, wrap)

#define QRT_SCATTER_REDUCTIONS(X) X(REPLACE, none) X(ADD, add) X(MULTIPLY, mul) X(MAXIMUM, max) X(MINIMUM, min)

#define QRT_DIRECTIONS(X) X(FORWARD, forward) X(REVERSE, reverse) X(BIDIRECTIONAL, bidirectional)

#define QRT_TREE_AGGREGATES(X) X(AVERAGE, AVERAGE) X(SUM, SUM) X(MIN, MIN) X(MAX, MAX)

#define QRT_POST_TRANSFORMS(X) \
    X(NONE, NONE) X(SOFTMAX, SOFTMAX) X(LOGISTIC, LOGISTIC) X(SOFTMAX_ZERO, SOFTMAX_ZERO)

#define QRT_TREE_OUTPUTS(X) \
    X(REGRESSOR, regressor) X(CLASSIFIER, classifier) X(SAME_TYPE, same_type) /* scores as wide as the input */

#define QRT_VECTOR_OUTPUTS(X) X(REGRESSOR, regressor) X(ONE_CLASS, one_class) X(CLASSIFIER, classifier)

#define QRT_VECTOR_KERNELS(X) X(LINEAR, LINEAR) X(RBF, RBF) X(POLY, POLY) X(SIGMOID, SIGMOID)

/// How labels are found of the scores of a linear model; `sign`: the signs of the scores are the output.
#define QRT_DECISIONS(X) X(NO_LABELS, no_labels) X(BEST, best) X(ABOVE, above) X(SIGN, sign)

#define QRT_NORMS(X) X(NORM_MAX, MAX) X(NORM_L1, L1) X(NORM_L2, L2)

#define QRT_ROI_MODES(X) X(AVERAGE, avg) X(MAXIMUM, max)

/// Names by value, NULL-terminated.
extern const char *const qrt_activation_names[];
extern const char *const qrt_range_names[];
extern const char *const qrt_auto_pad_names[];
extern const char *const qrt_interpolation_names[];
extern const char *const qrt_coordinates_names[];
extern const char *const qrt_nearest_mode_names[];
extern const char *const qrt_grid_padding_names[];
extern const char *const qrt_pad_mode_names[];
extern const char *const qrt_scatter_reduction_names[];
extern const char *const qrt_direction_names[];
extern const char *const qrt_tree_aggregate_names[];
extern const char *const qrt_post_transform_names[];
extern const char *const qrt_tree_output_names[];
extern const char *const qrt_vector_output_names[];
extern const char *const qrt_vector_kernel_names[];
extern const char *const qrt_decision_names[];
extern const char *const qrt_norm_names[];
extern const char *const qrt_roi_mode_names[];

#endif
