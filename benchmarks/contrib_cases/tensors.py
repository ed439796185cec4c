"""Arranging, indexing and sampling of tensors, products and distances of matrices."""

from __future__ import annotations

import numpy as np

from contrib_cases.case import Case, Rng, codes, draws, floats, maybe, pick, starts

ELEMENTWISE = {
    "Affine": ("alpha", "beta"), "Scale": ("scale",), "ScaledTanh": ("alpha", "beta"), "ParametricSoftplus": ("alpha", "beta"),
}  # fmt: skip
OPSET_THAT_HAD_THEM = 9

for _op, _names in ELEMENTWISE.items():

    @draws(_op)
    def _(r: Rng, n: int, names: tuple[str, ...] = _names) -> Case:
        shape = pick(r, (3, 4), (), (0, 3), (7,))
        values = {name: float(r.normal()) for name in names}
        return Case([floats(r, *shape) * 9], values, domain="", opset=OPSET_THAT_HAD_THEM)


@draws("ImageScaler")
def _(r: Rng, n: int) -> Case:
    attributes = {"scale": float(r.normal()), "bias": r.normal(size=3).tolist()}
    return Case([floats(r, 2, 3, 4, 5)], attributes, domain="", opset=OPSET_THAT_HAD_THEM)


@draws("Crop")
def _(r: Rng, n: int) -> Case:
    attributes = {"border": r.integers(0, 3, 4).tolist()}
    if n % 2:
        attributes["scale"] = r.integers(1, 4, 2).tolist()
    return Case([floats(r, 2, 3, 6, 7)], attributes, domain="", opset=OPSET_THAT_HAD_THEM)


@draws("DynamicSlice")
def _(r: Rng, n: int) -> Case:
    low, high = r.integers(0, 3, 2), r.integers(-2, 9, 2)
    axes = maybe(r, np.array([1, 0]))
    return Case([floats(r, 5, 6), low, high, axes], {}, domain="", opset=OPSET_THAT_HAD_THEM)


@draws("MemcpyFromHost")
def _(r: Rng, n: int) -> Case:
    return Case([floats(r, 3, 4)], {}, domain="")


@draws("SampleOp")
def _(r: Rng, n: int) -> Case:
    return Case([floats(r, 3, 4)], {})


@draws("ExpandDims")
def _(r: Rng, n: int) -> Case:
    return Case([floats(r, 4, 5), np.array(r.integers(-3, 3), np.int32)], {})


@draws("Pad")
def _(r: Rng, n: int) -> Case:
    mode = pick(r, "constant", "reflect", "edge", "wrap")
    # Where a negative amount cuts, ONNX Runtime wraps what is left of the axis, and this package the whole.
    amounts = r.integers(0 if mode == "wrap" else -1, 3, pick(r, (4,), (1, 4)))
    return Case([floats(r, 4, 5), amounts, maybe(r, floats(r, 1))], {"mode": mode})


@draws("Range")
def _(r: Rng, n: int) -> Case:
    dtype = pick(r, np.int16, np.int32, np.int64, np.float32, np.float64)
    shape = pick(r, (), (1,))
    values = [np.full(shape, v, dtype) for v in (r.integers(-5, 5), r.integers(-9, 20), pick(r, 1, 2, -3))]
    return Case(values[: pick(r, 2, 3)], {})


@draws("GatherND")
def _(r: Rng, n: int) -> Case:
    width = pick(r, 1, 2, 3)
    indices = r.integers(-3, 3, (2, 4, width)).astype(pick(r, np.int32, np.int64))
    return Case([floats(r, 3, 4, 5), indices], {})


@draws("Unique")
def _(r: Rng, n: int) -> Case:
    return Case([r.integers(0, 6, int(r.integers(0, 12))).astype(np.float32)], {}, outputs=3)


@draws("UnfoldTensor")
def _(r: Rng, n: int) -> Case:
    attributes = {"size": int(r.integers(1, 4)), "step": int(r.integers(1, 3)), "dim": int(r.integers(-3, 3))}
    return Case([floats(r, 5, 4, 6)], attributes)


@draws("NhwcMaxPool")
def _(r: Rng, n: int) -> Case:
    rank = int(r.integers(1, 4))
    kernel = r.integers(1, 4, rank)
    attributes = {"kernel_shape": kernel.tolist(), "strides": r.integers(1, 3, rank).tolist()}
    if n % 3 == 0:
        attributes["pads"] = [*(int(r.integers(0, k)) for k in kernel)] * 2
    elif n % 3 == 1:
        attributes["auto_pad"] = pick(r, "SAME_UPPER", "SAME_LOWER", "VALID")
    if n % 3 != 1:
        attributes |= {"dilations": r.integers(1, 3, rank).tolist(), "ceil_mode": int(r.integers(0, 2))}
    return Case([codes(r, pick(r, np.int8, np.uint8), 2, *r.integers(5, 9, rank), 3)], attributes)


@draws("MaxpoolWithMask")
def _(r: Rng, n: int) -> Case:
    rank = int(r.integers(1, 4))
    kernel, spatial = r.integers(1, 4, rank), r.integers(4, 7, rank)
    pads = [int(r.integers(0, k)) for k in kernel] * 2
    attributes = {"kernel_shape": kernel.tolist(), "strides": r.integers(1, 3, rank).tolist(), "pads": pads}
    return Case([floats(r, 2, 3, *spatial), (r.random((1, 1, *spatial)) < 0.7).astype(np.int32)], attributes)


@draws("GridSample")
def _(r: Rng, n: int) -> Case:
    attributes = {
        "mode": pick(r, "bilinear", "nearest", "bicubic"), "padding_mode": pick(r, "zeros", "border", "reflection"),
        "align_corners": int(r.integers(0, 2)),
    }  # fmt: skip
    return Case([floats(r, 2, 3, 4, 5), floats(r, 2, 3, 6, 2)], attributes)


@draws("CropAndResize")
def _(r: Rng, n: int) -> Case:
    boxes = r.uniform(-0.2, 1.2, (4, 4)).astype(np.float32)
    size = np.array(pick(r, (3, 4), (1, 1), (1, 5), (7, 2)), np.int32)
    attributes = {"mode": pick(r, "bilinear", "nearest"), "extrapolation_value": 2.5}
    return Case([floats(r, 2, 3, 5, 6), boxes, r.integers(0, 2, 4).astype(np.int32), size], attributes)


@draws("ConvTransposeWithDynamicPads")
def _(r: Rng, n: int) -> Case:
    group = pick(r, 1, 2)
    attributes = {"group": group, "strides": r.integers(1, 3, 2).tolist(), "dilations": r.integers(1, 3, 2).tolist()}
    inputs = [floats(r, 2, 4, 4, 5), floats(r, 4, 2, *r.integers(1, 4, 2)), r.integers(0, 2, 4), maybe(r, floats(r, 2 * group))]
    return Case(inputs, attributes)


@draws("MatMulInteger16")
def _(r: Rng, n: int) -> Case:
    return Case([codes(r, np.int16, *pick(r, (3, 4), (2, 3, 4), (4,))), codes(r, np.int16, 4, 5)], {})


@draws("CDist")
def _(r: Rng, n: int) -> Case:
    dtype = pick(r, np.float32, np.float64)
    inputs = [floats(r, 3, 4).astype(dtype), floats(r, 5, 4).astype(dtype)]
    return Case(inputs, {"metric": pick(r, "euclidean", "sqeuclidean")}, tolerance=2e-4)


@draws("DynamicTimeWarping")
def _(r: Rng, n: int) -> Case:
    shape = (int(r.integers(1, 8)), int(r.integers(1, 8)))
    return Case([r.integers(0, 4, shape if n % 2 else (1, *shape)).astype(np.float32)], {})


@draws("CausalConvWithState")
def _(r: Rng, n: int) -> Case:
    kernel, length, dilation, last = int(r.integers(1, 4)), int(r.integers(1, 6)), pick(r, 1, 2), n % 2
    reach = (kernel - 1) * dilation
    x, state = ((2, length, 3), (2, reach, 3)) if last else ((2, 3, length), (2, 3, reach))
    attributes = {"dilation": dilation, "activation": pick(r, "none", "silu", "swish"), "channels_last": last}
    inputs = [floats(r, *x), floats(r, 3, 1, kernel), maybe(r, floats(r, 3)), maybe(r, floats(r, *state))]
    return Case(inputs, attributes, outputs=2)


@draws("VarlenCausalConvWithState")
def _(r: Rng, n: int) -> Case:
    batch, kernel, dilation, capacity = int(r.integers(1, 4)), int(r.integers(1, 4)), pick(r, 1, 2), pick(r, 0, 3)
    lengths = r.integers(1, 5, batch)
    inputs = [
        floats(r, lengths.sum(), 3), floats(r, 3, 1, kernel), starts(lengths), maybe(r, floats(r, 3)),
        floats(r, batch, 3, (kernel - 1) * dilation),
    ]  # fmt: skip
    attributes = {"dilation": dilation, "activation": pick(r, "none", "silu"), "state_update_capacity": capacity}
    if capacity:
        inputs.append(r.integers(-1, 5, batch).astype(np.int32))
    return Case(inputs, attributes, outputs=3 if capacity else 2)
