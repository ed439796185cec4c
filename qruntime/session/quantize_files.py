"""quantize_dynamic from file to file, with the arguments of onnxruntime.quantization.quantize_dynamic."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping, Sequence
from typing import Any

from qruntime.errors import QuantizationError
from qruntime.model import Model, load
from qruntime.quantization.selection import is_kind, kind_of
from qruntime.quantization.torch_names.qconfig import (
    QConfig,
    engine_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    per_channel_dynamic_qconfig,
)
from qruntime.quantization.torch_names.specification import default_kinds
from qruntime.session.options import warn_once


class QuantType(enum.Enum):
    """Element types of weights. QInt8 and QUInt8 both give int8: no sum saturates here, so nothing depends on the sign."""

    QInt8 = 0
    QUInt8 = 1
    QFLOAT8E4M3FN = 2
    QInt16 = 3
    QUInt16 = 4
    QInt4 = 5
    QUInt4 = 6

    @staticmethod
    def from_string(name: str) -> QuantType:
        """The type called `name`. Raises QuantizationError for another."""
        if name not in QuantType.__members__:
            raise QuantizationError(f"there is no QuantType {name!r}; there are {', '.join(QuantType.__members__)}")
        return QuantType[name]


def quantize_files(
    model_input: str | os.PathLike[str] | Any,
    model_output: str | os.PathLike[str],
    op_types_to_quantize: Sequence[str] | str | None = None,
    per_channel: bool = False,
    reduce_range: bool = False,
    weight_type: QuantType | str | Any = QuantType.QInt8,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    extra_options: Mapping[str, Any] | None = None,
) -> None:
    """Read a float model (a path or an onnx.ModelProto), quantize it dynamically, write it.

    The layers are those of `Model.quantize_dynamic`, or of the operators named: "MatMul", "Gemm", "LSTM", "GRU", "RNN",
    "Conv", and "Gather" for embeddings (8 bits a row). `weight_type` may be ONNX Runtime's own enumeration, or a name of it.
    `reduce_range` has no effect, as it guards against sums that saturate.

    Raises QuantizationError for types that dynamic quantization has not and where the file of the float model would be lost,
    else what loading and saving raise.
    """
    if getattr(weight_type, "name", weight_type) not in (QuantType.QInt8.name, QuantType.QUInt8.name):
        raise QuantizationError(f"weight_type must be QuantType.QInt8 or QuantType.QUInt8, got {weight_type}")
    if isinstance(op_types_to_quantize, str):
        op_types_to_quantize = [op_types_to_quantize]
    if _is_same_file(model_input, model_output):
        raise QuantizationError(
            f"model_output {os.fspath(model_output)!r} is model_input, whose float weights would be lost: write another file"
        )
    for option in extra_options or {}:
        warn_once(f"quantize_dynamic: extra_options[{option!r}] has no meaning in qruntime and is ignored", 3)
    model = _read(model_input)
    model.quantize_dynamic(
        _specification(op_types_to_quantize, per_channel),
        inplace=True,
        only=nodes_to_quantize or None,
        exclude=nodes_to_exclude or (),
    )
    model.save(model_output, external_data=True if use_external_data_format else None)


def _is_same_file(model_input: Any, model_output: str | os.PathLike[str]) -> bool:
    is_path = isinstance(model_input, (str, os.PathLike)) and os.path.exists(model_input) and os.path.exists(model_output)
    return is_path and os.path.samefile(model_input, model_output)


def _read(model: Any) -> Model:
    return load(model.SerializeToString() if hasattr(model, "SerializeToString") else model)


def _specification(op_types: Sequence[str] | None, per_channel: bool) -> dict[object, QConfig | None]:
    """Each operator with what it is quantized to; operators that are never quantized are named in a warning."""
    linear = per_channel_dynamic_qconfig if per_channel else engine_dynamic_qconfig
    chosen = default_kinds("qint8") if not op_types else [op for op in op_types if is_kind(op)]
    for op in op_types or ():
        if op not in chosen:
            warn_once(f"quantize_dynamic: {op} has no weights that are quantized dynamically; it stays as it is", 4)
    return {op: float_qparams_weight_only_qconfig if kind_of(op) == "Embedding" else linear for op in chosen}
