/// Numbers in place of what a few codes of packed weights say: what they change, beside the product with the codes.
///
///     y[m, n] += Σ_k a[m, k] · change[n, k],    change = value − what the code decodes to,    over the outliers of column n
///
/// One chain of separate multiply-adds over ascending k that starts at zero and is added to the total last: the same bits on every
/// rung, whatever rows come with it.
///
/// It adds ε · (outliers of n + 2) · Σ_k |a| · |change| to the error bound of gemm_nbits.h.
#ifndef QRT_NBITS_OUTLIERS_H
#define QRT_NBITS_OUTLIERS_H

#include "nbits_weights.h"

/// Once the codes are filled in: from the values that qrt_nbits_new took to what they change.
void qrt_nbits_finish_outliers(qrt_nbits_weights *w);

/// Rows that are multiplied side by side.
enum { QRT_NBITS_OUTLIER_LANES = 16 };

/// Add to y [rows, columns] of `rows` rows of `a` what outliers change in `columns` columns from `first` on. `lanes` is scratch
/// [k, QRT_NBITS_OUTLIER_LANES], which pays for many rows and columns, or NULL; the bits are the same.
void qrt_nbits_add_outliers(const qrt_nbits_weights *w, int64_t rows, const float *a, int64_t lda, int64_t first, int64_t columns,
                            float *y, int64_t ldy, float *lanes);

#endif
