"""Every operator that has rows gives a row alone the bits it has in a batch, by its kernel and by its numpy definition.

A row is a slice of the first axis of x, or of the axis that `batch_axis` names. Every operator of ONNX stands in one of the
tables below: what has no rows, or whose rows are not summed, says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.ops import registry
from qruntime.ops.families import MODULES
from tests.small_models import assert_same_bits, model_bytes

DTYPES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}
ROWS = 37


class Rows(NamedTuple):
    """Shape of a row, what stands behind x ("x": once more), attributes; the axis of rows in x and in the output."""

    row: tuple[int, ...] = (33,)
    others: tuple[np.ndarray | str, ...] = ()
    attributes: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    batch_axis: int = 0
    output_axis: int = 0
    opset: int = 22


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


AXIS, IMAGE = np.array([1], np.int64), (8, 9, 9)
_VECTOR = normal(33)
_UNARY = """Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log
Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh ThresholdedRelu"""
_BINARY = "Add Sub Mul Div Max Min Mean Sum PRelu"
_REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"


def _recurrent(gates: int, activations: list[str] | None = None) -> Rows:
    constants = 0.3 * normal(1, gates * 12, 8), 0.3 * normal(1, gates * 12, 12, seed=2), normal(1, 2 * gates * 12, seed=3)
    attributes: dict[str, Any] = {"hidden_size": 12, **({"activations": activations} if activations else {})}
    return Rows((6, 8), constants, attributes, batch_axis=1, output_axis=2)


CASES: dict[str, Rows | list[Rows]] = {
    **{name: [Rows(), Rows((1,)), Rows((3,))] for name in _UNARY.split()},
    **{name: [Rows(others=(_VECTOR,)), Rows((3, 1), (_VECTOR[:7],))] for name in _BINARY.split()},
    "Mod": Rows(others=(_VECTOR,), attributes={"fmod": 1}), "Pow": [Rows(others=(np.abs(_VECTOR),)), Rows(others=(np.array(2.0),))],
    "Clip": Rows(others=(np.array(-0.5), np.array(0.5))),
    **{name: [Rows(others=(AXIS,)), Rows((130,), (AXIS,)), Rows((5, 7), (AXIS,))] for name in _REDUCTIONS.split()},
    "Softmax": [Rows(), Rows((130,)), Rows((5, 7), attributes={"axis": 1})], "LogSoftmax": [Rows(), Rows((5, 7), attributes={"axis": 1})],
    "CumSum": Rows(others=(np.array(1, np.int64),)), "LpNormalization": Rows(),
    "MatMul": [Rows((300,), (normal(300, 33),)), Rows((5, 30), (normal(30, 7),)), Rows((300,), (normal(300),))],
    "Gemm": [Rows((300,), (normal(300, 33), _VECTOR)), Rows((300,), (normal(33, 300), _VECTOR), {"transB": 1, "alpha": 0.3})],
    "Einsum": [Rows((300,), (normal(300, 33),), {"equation": "bk,kn->bn"}), Rows((5, 30), (normal(30, 7),), {"equation": "btk,kn->btn"}),
               Rows((5, 30), (normal(30, 7), normal(7, 4)), {"equation": "btk,kn,nm->bm"})],
    "Conv": [Rows(IMAGE, (normal(6, 8, 3, 3), normal(6)), {"pads": [1] * 4}), Rows(IMAGE, (normal(8, 1, 3, 3),), {"group": 8}),
             Rows((8, 20), (normal(6, 4, 3),), {"group": 2})],
    "ConvTranspose": Rows(IMAGE, (normal(8, 6, 3, 3),), {"strides": [2, 2]}),
    "MaxPool": Rows(IMAGE, attributes={"kernel_shape": [3, 3]}), "AveragePool": Rows(IMAGE, attributes={"kernel_shape": [3, 3]}),
    "LpPool": Rows(IMAGE, attributes={"kernel_shape": [3, 3]}), "GlobalLpPool": Rows(IMAGE),
    "GlobalAveragePool": Rows(IMAGE), "GlobalMaxPool": Rows(IMAGE),
    "BatchNormalization": Rows(IMAGE, (normal(8), normal(8), normal(8), np.abs(normal(8)))),
    "InstanceNormalization": Rows(IMAGE, (normal(8), normal(8))),
    "GroupNormalization": Rows(IMAGE, (normal(8), normal(8)), {"num_groups": 2}),
    "LayerNormalization": [Rows(others=(_VECTOR, _VECTOR)), Rows((5, 130), (normal(130),))],
    "RMSNormalization": Rows(others=(_VECTOR,), opset=23), "LRN": Rows(IMAGE, attributes={"size": 3}),
    "LSTM": [_recurrent(4), _recurrent(4, ["HardSigmoid", "Tanh", "Softsign"])],
    "GRU": [_recurrent(3), _recurrent(3, ["HardSigmoid", "Softsign"])], "RNN": [_recurrent(1), _recurrent(1, ["Softsign"])],
    "Hardmax": Rows(), "Det": Rows((4, 4)), "Swish": Rows(opset=24), "CumProd": Rows(others=(np.array(1, np.int64),), opset=26),
    "Attention": Rows((2, 9, 16), ("x", "x"), {"is_causal": 1}, opset=23), "SwiGLU": Rows(others=("x",), opset=28),
    "DFT": Rows((16, 1), opset=20), "STFT": Rows((64, 1), (np.array(8, np.int64), normal(16))),
    "SimplifiedLayerNormalization": Rows(others=(_VECTOR,)),
    "CausalConvWithState": Rows((8, 20), (normal(8, 1, 4), normal(8)), opset=27),
}  # fmt: skip

NO_ROWS: dict[str, str] = {
    "moves or selects elements": "BitCast Cast CastLike CenterCropPad Compress Concat ConstantOfShape Crop DepthToSpace Dropout "
    "DynamicSlice Expand EyeLike Flatten Gather GatherElements GatherND MaxRoiPool MaxUnpool MemcpyFromHost MemcpyToHost "
    "NonMaxSuppression NonZero OneHot Pad Range Reshape ReverseSequence Scatter ScatterElements ScatterND Shape Size Slice "
    "SpaceToDepth Split Squeeze TensorScatter Tile TopK Transpose Trilu Unique Unsqueeze Where",
    "integers, booleans or strings": "And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor ConvInteger "
    "DequantizeLinear Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual MatMulInteger Not Or QLinearConv QLinearMatMul "
    "QuantizeLinear RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer Xor",
    "of one element, or of a few neighbours added one by one": "Affine Col2Im ImageScaler ParametricSoftplus Resize "
    "Scale ScaledTanh Upsample",
    "several inputs have the rows": "AffineGrid DeformConv GridSample LinearAttention RoiAlign RotaryEmbedding",
    "has no input with rows": "BlackmanWindow Constant HammingWindow HannWindow MelWeightMatrix",
    "the whole tensor is one row by definition": "DynamicQuantizeLinear MeanVarianceNormalization NegativeLogLikelihoodLoss "
    "SoftmaxCrossEntropyLoss",
    "random": "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
    "subgraphs, sequences and optionals": "If Loop Scan ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt "
    "SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap SplitToSequence",
}
"""Why → operators."""


def test_no_operator_is_forgotten():
    known = {*CASES, *(name for names in NO_ROWS.values() for name in names.split())}
    assert sorted({name for domain, name in MODULES if domain == ""} - known) == []


def cases() -> list[Any]:
    return [
        pytest.param(name, case, dtype, id=f"{name} {case.row} {np.dtype(dtype)} {i}")
        for name, entry in CASES.items() for i, case in enumerate(entry if isinstance(entry, list) else [entry]) for dtype in DTYPES
    ]  # fmt: skip


def inputs(case: Rows, dtype: type) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
    """x, the constants by name, and the names of all inputs."""
    x = np.random.default_rng(0).standard_normal((*case.row[: case.batch_axis], ROWS, *case.row[case.batch_axis :])).astype(dtype)
    names = ["x", *("x" if isinstance(other, str) else f"c{i}" for i, other in enumerate(case.others))]
    pairs = [(name, other) for name, other in zip(names[1:], case.others, strict=True) if not isinstance(other, str)]
    return x, {name: np.asarray(c, dtype if c.dtype.kind == "f" else c.dtype) for name, c in pairs}, names


def some(x: np.ndarray, first: int, rows: int, axis: int) -> np.ndarray:
    return np.ascontiguousarray(np.take(x, range(first, first + rows), axis))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "case", "dtype"), cases())
def test_a_row_alone_has_the_bits_it_has_in_a_batch(name: str, case: Rows, dtype: type):
    x, constants, names = inputs(case, dtype)
    node = helper.make_node(name, names, ["y"], **case.attributes)
    data = model_bytes([node], [("x", DTYPES[dtype], None)], [("y", DTYPES[dtype], None)], constants, case.opset)
    model = qruntime.load(data, threads=2)
    spec = registry.find("", name, case.opset)
    assert spec is not None
    attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in case.attributes.items()}

    def define(part: np.ndarray) -> np.ndarray:
        y = spec(*(part if n == "x" else constants[n] for n in names), **attributes)
        return y[0] if isinstance(y, tuple) else y

    for compute in (model, define):
        together = compute(x)
        for first, rows in ((0, 1), (5, 1), (36, 1), (3, 2), (7, 3), (11, 9), (2, 17)):
            alone = compute(some(x, first, rows, case.batch_axis))
            assert_same_bits(alone, some(together, first, rows, case.output_axis))
