"""DynamicQuantizeLSTM: int8 weights stored transposed, activations quantized at every step."""

from __future__ import annotations

import numpy as np

from qruntime.ir import HeldCodes, StoredTensor
from qruntime.ir.formats import INT8
from qruntime.ops.checks import require_rank
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.contrib.quantized_matmul import int8_codes, parameters
from qruntime.ops.registry import find, operator


def lstm_weight(name: str, q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, directions: int) -> StoredTensor:
    """Codes int8 [D, 4·H, columns] with a scale for each direction or row, of a weight stored as [D, columns, 4·H].

    Raises ValueError when a length or element type does not fit.
    """
    require_rank(name, q, 3)
    if q.shape[0] != directions:
        raise ValueError(f"{name} must have the shape [{directions}, …, 4 · hidden_size], got {q.shape}")
    allowed = {(directions,), (directions, 1), (directions, q.shape[2])}
    for what, value in (("scale", scale), ("zero point", zero_point)):
        if value is not None and value.shape not in allowed:
            raise ValueError(f"the {what} of {name} must have one of the shapes {sorted(allowed)}, got {value.shape}")
    if zero_point is not None and zero_point.size != scale.size:
        raise ValueError(f"scale {scale.shape} and zero point {zero_point.shape} of {name} differ")
    flat_scale, flat_zero = parameters(q, scale, zero_point, (directions, directions * q.shape[2]))
    codes = int8_codes(q).swapaxes(1, 2)
    return StoredTensor(INT8, HeldCodes(codes), flat_scale.reshape(directions, -1, 1), flat_zero.reshape(directions, -1, 1))


@operator("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(
    x: np.ndarray,
    w: np.ndarray,
    r: np.ndarray,
    b: np.ndarray | None,
    sequence_lens: np.ndarray | None,
    initial_h: np.ndarray | None,
    initial_c: np.ndarray | None,
    p: np.ndarray | None,
    w_scale: np.ndarray,
    w_zero_point: np.ndarray,
    r_scale: np.ndarray,
    r_zero_point: np.ndarray,
    *,
    activation_alpha: tuple[float, ...] | None = None,
    activation_beta: tuple[float, ...] | None = None,
    activations: tuple[str, ...] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
) -> tuple[np.ndarray, ...]:
    """LSTM with W [D, I, 4·H] and R [D, H, 4·H] as 8-bit codes; X and h are quantized per tensor."""
    directions = 2 if direction == "bidirectional" else 1
    quantized = find("qruntime", "DynamicQuantizedLSTM", 1)
    assert quantized is not None
    return quantized(
        x, lstm_weight("W", w, w_scale, w_zero_point, directions), lstm_weight("R", r, r_scale, r_zero_point, directions),
        b, sequence_lens, initial_h, initial_c, p, activation_alpha=activation_alpha, activation_beta=activation_beta,
        activations=activations, clip=clip, direction=direction, hidden_size=hidden_size, input_forget=input_forget,
        range="per_tensor",
    )  # fmt: skip
