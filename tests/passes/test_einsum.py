"""Einsum becomes products, sums and transpositions; with a constant weight, a linear layer."""

import time
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.ir import clone
from qruntime.passes import pipeline

RNG = np.random.default_rng(11)
SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6, "i": 3, "j": 4, "k": 5, "n": 4}


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def operands(equation: str, dots: tuple[tuple[int, ...], ...] = ()) -> list[np.ndarray]:
    """One array for each term; `dots` are the shapes behind its "..."."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    hidden = dots or ((),) * len(terms)
    shapes = []
    for term, behind in zip(terms, hidden, strict=True):
        before, _, after = term.partition("...")
        shapes.append([SIZES[n] for n in before] + list(behind) * ("..." in term) + [SIZES[n] for n in after])
    return [numbers(*shape) for shape in shapes]


def model_of(equation, arrays, *, weights=(), shapes="ranks", opset=17, dtype=TensorProto.FLOAT) -> qruntime.Model:
    """A model of one Einsum; those of the operands numbered in `weights` are constants."""
    names = [f"x{i}" for i in range(len(arrays))]
    declared = {"ranks": lambda a: [None] * a.ndim, "sizes": lambda a: list(a.shape), "nothing": lambda a: None}[shapes]
    graph = helper.make_graph(
        [helper.make_node("Einsum", names, ["y"], name="the_einsum", equation=equation)],
        "g",
        [helper.make_tensor_value_info(n, dtype, declared(a)) for i, (n, a) in enumerate(zip(names, arrays)) if i not in weights],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(arrays[i], names[i]) for i in weights],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return qruntime.load(proto.SerializeToString())


def checked(equation, arrays, model, weights=()) -> Counter:
    """Operators of the lowered graph, once the model gives what numpy does."""
    lowered = pipeline.lowered(clone(model.graph))
    lowered.check()
    model.graph.check()
    feed = {f"x{i}": a for i, a in enumerate(arrays) if i not in weights}
    expected = np.einsum(equation, *(a.astype(np.float64) for a in arrays))
    got = model.run(feed)["y"]
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    return Counter(node.op_type for node in lowered.walk_nodes())


ONE = ["ij->ji", "ij->j", "ij->", "ij", "ji", "abc->ca", "cab->", "ij->ij"]
TWO = [
    "ij,jk->ik", "ij,jk->ki", "ij,kj->ik", "ji,kj", "ij,jk", "abij,abjk->abik", "abik,abjk->abij", "ia,ja->ij",
    "aebd,acbd->abce", "abce,aebd->acbd",  # attention as TensorFlow writes it
    "acd,bdc->ab", "abcd,cde->abe", "abd,dce->abce", "ijk,jk->i", "i,ij->j", "ij,j->i", "i,i->", "i,j->ij", "j,i->ij", "ij,ij->",
    "ab,ab->ab", "abc,b->abc", "abc,cb->abc", "bac,c->ab", "ab,ab->a", "abc,abc->b", "abi,abj->abij", "ij,->ij",
    "abc,ad->bd", "abcd,ade->abce", "aijd,akd->aijk", "akd,aijd->aijk", "abd,ad->ab", "ad,abd->ba", "ab,acde->cde", "abc,abde->acde",
]  # fmt: skip
MORE = ["ij,jk,kd->id", "a,ab,b->", "ai,bi,ci->abc", "ij,i,j->ij", "abc,cd,de->abe", "ab,bc,cd,de->ae"]


@pytest.mark.parametrize("shapes", ["ranks", "sizes", "nothing"])
@pytest.mark.parametrize("equation", [*ONE, *TWO, *MORE])
def test_contractions(equation, shapes):
    arrays = operands(equation)
    ops = checked(equation, arrays, model_of(equation, arrays, shapes=shapes))
    merged_sum = equation in ("acd,bdc->ab", "abcd,cde->abe", "ijk,jk->i", "ij,ij->")
    assert ("Einsum" in ops) == (merged_sum and shapes != "sizes"), ops


@pytest.mark.parametrize("shapes", ["ranks", "sizes"])
@pytest.mark.parametrize(
    ("equation", "dots"),
    [
        ("...ij,...jk->...ik", ((2, 3), (2, 3))),
        ("...ij,...jk->...ik", ((2, 3), (3,))),
        ("...ij,...jk->...ik", ((2, 1), (1, 3))),
        ("...ij,jk->...ik", ((2, 3), ())),
        ("ij,...jk->...ik", ((), (2,))),
        ("i...,j...->ij...", ((2,), (2,))),
        ("...,...->...", ((2, 3), (3,))),
        ("...i->i...", ((2, 3),)),
        ("...i->...", ((2, 3),)),
        ("...ij", ((2, 3),)),
        ("a...b,b...->a...", ((4, 3), (4, 3))),
        ("...ij,...jk", ((), ())),
    ],
)
def test_dimensions_without_a_name(equation, dots, shapes):
    arrays = operands(equation, dots)
    assert "Einsum" not in checked(equation, arrays, model_of(equation, arrays, shapes=shapes))


@pytest.mark.parametrize("equation", ["...ij,...jk->...ik", "...j,jk->...k", "...i->...", "...,...->...", "...i,i->...i"])
def test_an_unknown_rank_stays_where_it_is(equation):
    for dots in ((2,), (2, 3), ()):
        arrays = operands(equation, ((dots,) * equation.count("...") + ((),) * 2)[: equation.count(",") + 1])
        assert "Einsum" not in checked(equation, arrays, model_of(equation, arrays, shapes="nothing"))


@pytest.mark.parametrize("equation", ["...i->i...", "i...->i...", "...ij->...ji", "...i,ijk->...jk"])
def test_what_moves_an_unknown_rank_stays_an_einsum(equation):
    arrays = operands(equation, ((2, 3), ())[: equation.count(",") + 1])
    assert "Einsum" in checked(equation, arrays, model_of(equation, arrays, shapes="nothing"))


@pytest.mark.parametrize("equation", ["ii->i", "ii->", "ii", "aiib->abi", "ini,n->in", "iiaa->ai", "iii->i"])
def test_diagonals(equation):
    arrays = [numbers(*(5 if n in "iab" else SIZES[n] for n in term)) for term in equation.split("->")[0].split(",")]
    assert "Einsum" not in checked(equation, arrays, model_of(equation, arrays, shapes="sizes"))
    assert "Einsum" in checked(equation, arrays, model_of(equation, arrays))  # the sizes might differ


@pytest.mark.parametrize("equation", ["abij,abjk->abik", "aijd,akd->aijk", "abc->ca", "ij,j->i", "ij->", "abd,dce->abce"])
@pytest.mark.parametrize("shapes", ["ranks", "sizes"])
def test_nothing_at_all(equation, shapes):
    for empty in "abijd":
        arrays = [numbers(*(0 if n == empty else SIZES[n] for n in term)) for term in equation.split("->")[0].split(",")]
        checked(equation, arrays, model_of(equation, arrays, shapes=shapes))


def test_sizes_that_differ_are_no_silent_answer():
    # 2 · 6 = 3 · 4: merged, the two dimensions would fit each other.
    model = model_of("ajk,bjk->ab", [numbers(2, 3, 4), numbers(2, 3, 4)])
    with pytest.raises(qruntime.QRuntimeError):
        model.run({"x0": numbers(2, 2, 6), "x1": numbers(2, 3, 4)})
    model = model_of("ij,jk->ik", [numbers(2, 3), numbers(3, 4)])
    with pytest.raises(qruntime.QRuntimeError, match="the_einsum"):
        model.run({"x0": numbers(2, 3), "x1": numbers(4, 3)})


@pytest.mark.parametrize("equation", ["ij,jk->iz", "ij,jk->ii", "ij;jk", "ij,jk->i->k", "i.j,jk->ik", "..i,i->i", "ij->ik"])
def test_what_is_no_equation_is_left_to_the_definition(equation):
    arrays = [numbers(2, 3), numbers(3, 4)][: equation.count(",") + 1]
    model = model_of(equation, arrays)
    with pytest.raises(qruntime.QRuntimeError, match="the_einsum"):
        model.run({f"x{i}": a for i, a in enumerate(arrays)})


def test_equations_made_to_keep_us_busy():
    many = 3000
    graph = helper.make_graph(
        [helper.make_node("Einsum", ["x"] * many, ["y"], equation=",".join(["i"] * many) + "->i"),
         helper.make_node("Einsum", ["x"], ["z"], equation="i" * 100_000)],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "yz"],
    )  # fmt: skip
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    started = time.perf_counter()
    assert Counter(n.op_type for n in pipeline.lowered(clone(model.graph)).nodes) == {"Einsum": 2}
    assert time.perf_counter() - started < 1


def test_integers():
    arrays = [RNG.integers(-9, 9, shape).astype(np.int64) for shape in ((2, 3), (3, 4))]
    model = model_of("ij,jk->ik", arrays, dtype=TensorProto.INT64)
    np.testing.assert_array_equal(model.run(dict(zip(["x0", "x1"], arrays)))["y"], arrays[0] @ arrays[1])
    small = [a.astype(np.int8) for a in arrays]  # MatMul has none of 8 bits
    model = model_of("ij,jk->ik", small, dtype=TensorProto.INT8)
    assert "Einsum" in {node.op_type for node in pipeline.lowered(clone(model.graph)).nodes}
    np.testing.assert_array_equal(model.run(dict(zip(["x0", "x1"], small)))["y"], (arrays[0] @ arrays[1]).astype(np.int8))


LINEAR = {
    "bi,ij->bj": {"MatMul": 1},
    "bi,ji->bj": {"MatMul": 1},
    "ji,bi->bj": {"MatMul": 1},
    "abd,dce->abce": {"MatMul": 1, "Reshape": 1},
    "abce,ced->abd": {"Reshape": 1, "MatMul": 1},
    "abce,dec->abd": {"Reshape": 1, "MatMul": 1},
    "bi,ij->jb": {"MatMul": 1, "Transpose": 1},
    "ib,ij->bj": {"Transpose": 1, "MatMul": 1},
    "...i,ji->...j": {"MatMul": 1},
    "i,ij->j": {"MatMul": 1},
}


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize(("equation", "ops"), LINEAR.items())
def test_a_weight_makes_a_linear_layer(equation, ops, opset, tmp_path):
    arrays = operands(equation, ((2, 3), ()) if "..." in equation else ())
    weights = (0,) if equation.startswith("ji") else (1,)
    model = model_of(equation, arrays, weights=weights, shapes="sizes", opset=opset)
    assert Counter(node.op_type for node in model.graph.nodes) == ops
    assert checked(equation, arrays, model, weights)["Linear"] == 1
    model.save(tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "m.onnx")))
    names = [node.name for node in model.graph.nodes if node.name]
    assert names == ["the_einsum"]
    quantized = model.quantize_dynamic(per_channel=True)
    assert [layer.kind for layer in quantized.report.layers] == ["Linear"]
    feed = {f"x{i}": a for i, a in enumerate(arrays) if i not in weights}
    expected = model.run(feed)["y"]
    assert np.abs(quantized.run(feed)["y"] - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("equation", ["abi,aij->abj", "bi,bi->b", "ib,ij->j", "bi,i->b", "bi,j->bij"])
def test_other_products_with_a_constant_are_no_linear_layer(equation):
    arrays = operands(equation)
    model = model_of(equation, arrays, weights=(1,), shapes="sizes")
    assert [node.op_type for node in model.graph.nodes] == ["Einsum"]  # a file is not rewritten for nothing
    assert "Einsum" not in checked(equation, arrays, model, (1,))


def test_layers_that_share_a_weight_share_what_is_made_of_it():
    w = numbers(6, 5)
    graph = helper.make_graph(
        [helper.make_node("Einsum", [x, "w"], [y], equation="bi,oi->bo") for x, y in (("p", "q"), ("r", "s"))],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 5]) for n in "pr"],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 6]) for n in "qs"],
        [numpy_helper.from_array(w, "w")],
    )
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    assert len({id(node.input(1)) for node in model.graph.nodes}) == 1


def test_a_tied_weight_is_stored_once_until_it_is_quantized(tmp_path):
    table = numbers(500, 16)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["w", "ids"], ["x"]),
            helper.make_node("Einsum", ["x", "w"], ["y"], equation="bth,vh->btv"),
        ],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [None, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None, 500])],
        [numpy_helper.from_array(table, "w")],
    )
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    ids = np.array([[1, 2, 499]])
    np.testing.assert_allclose(model.run({"ids": ids})["y"], table[ids] @ table.T, rtol=1e-4, atol=1e-4)
    model.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 1.1 * table.nbytes
    quantized = model.quantize_dynamic()
    assert [layer.shape for layer in quantized.report.layers] == [(16, 500)]
    quantized.save(tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").stat().st_size < 1.4 * table.nbytes


def test_attention_written_as_einsum_is_recognised():
    names = ["q", "k", "v"]
    arrays = {n: numbers(2, 7, 3, 8) for n in names}
    scale = numpy_helper.from_array(np.float32(8**-0.5), "scale")
    graph = helper.make_graph(
        [
            helper.make_node("Einsum", ["q", "k"], ["s"], equation="btnh,bfnh->bntf"),
            helper.make_node("Mul", ["s", "scale"], ["t"]),
            helper.make_node("Softmax", ["t"], ["p"], axis=-1),
            helper.make_node("Einsum", ["p", "v"], ["y"], equation="bntf,bfnh->btnh"),
        ],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, None, 3, 8]) for n in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [scale],
    )
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    assert Counter(n.op_type for n in pipeline.lowered(clone(model.graph)).nodes) == {"Attention": 1}
    q, k, v = arrays.values()
    scores = np.einsum("btnh,bfnh->bntf", q, k) * np.float32(8**-0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bntf,bfnh->btnh", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(model.run(arrays)["y"], expected, rtol=1e-5, atol=1e-5)


def test_a_whole_attention_of_keras_is_made_of_linear_layers():
    """Its projections are Einsums, a bias of two dimensions between them: shapes are followed through all of it."""
    weights = {n: numbers(12, 3, 4) for n in "qkv"} | {f"{n}_bias": numbers(3, 4) for n in "qkv"} | {"o": numbers(3, 4, 12)}
    nodes = []
    for n in "qkv":
        nodes.append(helper.make_node("Einsum", ["x", n], [f"{n}_0"], equation="abc,cde->abde"))
        nodes.append(helper.make_node("Add", [f"{n}_0", f"{n}_bias"], [f"{n}_1"]))
    nodes += [
        helper.make_node("Einsum", ["k_1", "q_1"], ["s"], equation="aecd,abcd->acbe"),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("Einsum", ["p", "v_1"], ["z"], equation="acbe,aecd->abcd"),
        helper.make_node("Einsum", ["z", "o"], ["y"], equation="abcd,cde->abe"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 12])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    x = numbers(2, 5, 12)
    q, k, v = (np.einsum("abc,cde->abde", x, weights[n]) + weights[f"{n}_bias"] for n in "qkv")
    scores = np.einsum("aecd,abcd->acbe", k, q)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("abcd,cde->abe", np.einsum("acbe,aecd->abcd", p / p.sum(-1, keepdims=True), v), weights["o"])
    np.testing.assert_allclose(model.run({"x": x})["y"], expected, rtol=2e-4, atol=2e-4)
    ops = Counter(node.op_type for node in pipeline.lowered(clone(model.graph)).nodes)
    assert ops["Linear"] == 4
    assert ops["Attention"] == 1
    assert len(model.quantize_dynamic().report.layers) == 4


@pytest.mark.parametrize("equation", ["bij,bkj->bik", "bij,jk->bik", "bj,kj->bk", "bijc,bkc->bijk"])
def test_a_row_does_not_depend_on_its_batch(equation):
    arrays = operands(equation)
    model = model_of(equation, arrays)
    whole = model.run(dict(zip(["x0", "x1"], arrays)))["y"]
    for row in range(len(arrays[0])):
        alone = [a[row : row + 1] if term.startswith("b") else a for a, term in zip(arrays, equation.split(","))]
        np.testing.assert_array_equal(model.run(dict(zip(["x0", "x1"], alone)))["y"][0], whole[row])
