"""The domain itself, and how its definitions call those of the standard operators."""

from __future__ import annotations

from typing import Any

from qruntime.ops.registry import find

MICROSOFT = "com.microsoft"
NEWEST = 24


def standard(op_type: str, *inputs: Any, **attributes: Any) -> Any:
    """What the newest definition of a standard operator makes of `inputs`."""
    spec = find("", op_type, NEWEST)
    if spec is None:
        raise ValueError(f"there is no standard operator {op_type}")
    return spec(*inputs, **attributes)
