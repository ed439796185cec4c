"""How many inputs and outputs an operator has, as the signature of its definition says, and whether nodes have them.

A graph is checked once, when a model is made. After that passes, binders and quantization take the inputs and outputs
of a node by position, as many as its operator needs.
"""

from __future__ import annotations

import ast
import inspect
from typing import NamedTuple

from qruntime.errors import InvalidModel, counted
from qruntime.ir import Graph, Node
from qruntime.ops import registry
from qruntime.ops.registry import Definition, OpSpec


class Arity(NamedTuple):
    """`least` and `most` inputs and `outputs`, None for any number; `needed` are names of inputs, "" where None will do."""

    least: int
    most: int | None
    outputs: int | None
    needed: tuple[str, ...]


def arity(spec: OpSpec) -> Arity:
    """What the definition of `spec` takes and makes.

    A parameter with a default may be left out; one whose annotation allows None may be empty where others follow. Any
    number of inputs means one at least. A definition makes as many outputs as the tuple has that it is annotated with.
    Annotations are text, which modules with `from __future__ import annotations` leave them.
    """
    known = _known.get(spec)
    if known is None:
        known = _known[spec] = _read(inspect.unwrap(spec.definition)) if spec.prepare is None else _read_prepared(spec.prepare)
    return known


_known: dict[OpSpec, Arity] = {}


def _read_prepared(prepare: Definition) -> Arity:
    """That of the class of what `prepare` returns, as annotated; anything for a function made on the way."""
    prepared = prepare.__globals__.get(prepare.__annotations__.get("return", ""))
    return _read(prepared.__call__, bound=True) if isinstance(prepared, type) else Arity(0, None, None, ())


def _read(definition: Definition, *, bound: bool = False) -> Arity:
    code, annotations = definition.__code__, definition.__annotations__
    names = code.co_varnames[bound : code.co_argcount]
    least = len(names) - len(definition.__defaults__ or ())
    is_variadic = bool(code.co_flags & inspect.CO_VARARGS)
    needed = ["" if i >= least or _allows_none(str(annotations.get(name, ""))) else name for i, name in enumerate(names)]
    most = None if is_variadic else len(names)
    return Arity(max(least, int(is_variadic)), most, _length(str(annotations.get("return", ""))), tuple(needed))


def _allows_none(annotation: str) -> bool:
    return "None" in annotation or "Any" in annotation


def _length(annotation: str) -> int | None:
    """The outputs of a definition that returns what `annotation` says: "np.ndarray", "tuple[np.ndarray, ...]" …"""
    return _outputs(ast.parse(annotation, mode="eval").body) if "tuple[" in annotation else 1


def _outputs(annotation: ast.expr) -> int | None:
    if isinstance(annotation, ast.BinOp):  # one or the other
        either = _outputs(annotation.left), _outputs(annotation.right)
        return None if either[0] is None or either[1] is None else max(either[0], either[1])
    if not isinstance(annotation, ast.Subscript) or ast.unparse(annotation.value) != "tuple":
        return 1
    items = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    return None if ast.unparse(items[-1]) == "..." else len(items)


def check_arity(graph: Graph) -> None:
    """Raise InvalidModel for the first node, nested graphs included, whose inputs or outputs do not fit its operator.

    Operators that have no definition of ours are left to whoever runs them.
    """
    for node in graph.walk_nodes():
        if not node.outputs:
            raise InvalidModel(f"{node.label}: needs an output, the model names none")
        spec = registry.find(node.domain, node.op_type, node.version)
        if spec is not None:
            _check(node, arity(spec))


def _check(node: Node, takes: Arity) -> None:
    inputs, outputs = node.inputs, len(node.outputs)
    if len(inputs) < takes.least or (takes.most is not None and len(inputs) > takes.most):
        raise InvalidModel(f"{node.label}: takes {_range(takes.least, takes.most, 'input')}, the model gives {len(inputs)}")
    if None in inputs:
        for position, name in enumerate(takes.needed[: len(inputs)]):
            if name and inputs[position] is None:
                raise InvalidModel(f"{node.label}: needs its input {position} ({name}), the model leaves it empty")
    if takes.outputs is not None and outputs > takes.outputs:
        raise InvalidModel(f"{node.label}: makes {_range(1, takes.outputs, 'output')}, the model names {outputs}")


def _range(least: int, most: int | None, noun: str) -> str:
    if most is None:
        return f"{counted(least, noun)} or more"
    return counted(most, noun) if least == most else f"{least} to {counted(most, noun)}"
