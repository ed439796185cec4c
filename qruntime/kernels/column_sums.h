/// Sums over the columns of a matrix for eight rows side by side: where the solvers of quantized weights spend their time.
///
/// Every product and every sum is rounded by itself, in the order given, so that all rungs have the same bits.
#ifndef QRT_COLUMN_SUMS_H
#define QRT_COLUMN_SUMS_H

#include <stdint.h>

/// Rows side by side, and columns of a panel. A matrix [k, k] lies as panels [k][QRT_PANEL] of its columns one after the
/// other, the last filled up with zeros.
enum { QRT_LANES = 8, QRT_PANEL = 4 };

typedef struct qrt_column_sums {
    /// x[j][lane] += Σ_p changes[i][lane] · panel[i][j], i = columns[p], for p < count and all j of one panel.
    /// `changes` and `x` have QRT_LANES lanes and are aligned to 64 bytes.
    void (*accumulate)(int64_t count, const int32_t *columns, const double *changes, const double *panel, double *x);
} qrt_column_sums;

#endif
