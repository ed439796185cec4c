# Dictionaries of rows, the results of classifiers of ai.onnx.ml.

ctypedef fused _real:
    float
    double


def dictionaries(list keys, const _real[:, :] rows):
    """One dictionary for each row of `rows` [N, len(keys)]: key → the element of its column, the last one of equal keys."""
    cdef dict blank = dict.fromkeys(keys), row
    cdef list found = []
    cdef Py_ssize_t i, j, count = len(keys)
    if rows.shape[1] != count:
        raise ValueError(f"rows need {count} columns, one per key, got {rows.shape[1]}")
    for i in range(rows.shape[0]):
        row = blank.copy()  # has its size from the start
        for j in range(count):
            row[keys[j]] = rows[i, j]
        found.append(row)
    return found
