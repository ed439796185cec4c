"""The precision in which definitions compute."""

from __future__ import annotations

import numpy as np


def working_dtype(dtype: np.dtype) -> np.dtype:
    """float32 for the floating types narrower than it, else `dtype` itself."""
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype
