"""One operator, one small place: a numpy function *is* the definition, its fast path stands beside it.

    @operator("Softmax", since=13)
    def softmax(x, *, axis=-1):
        shifted = np.exp(x - x.max(axis=axis, keepdims=True))
        return shifted / shifted.sum(axis=axis, keepdims=True)

    @softmax.native
    def _(node):
        return NativeCall("softmax", ints=[node.attr("axis", -1)])

The definition receives inputs by position (None for an absent optional one), attributes by keyword
under their ONNX names (int, float, str, ndarray, tuples of them; a subgraph as a callable over its
inputs), and returns an ndarray, or a tuple when there are several outputs. Values that are not tensors
are plain Python: a sequence is a list, an absent optional is None, strings are object arrays of str.

Where attributes hold a model (trees, support vectors, tables), the definition has two steps, so that a plan
takes the first one only once:

    @operator("LabelEncoder", domain="ai.onnx.ml", prepared=True)
    def label_encoder(*, keys_int64s, values_int64s):
        table = dict(zip(keys_int64s, values_int64s))
        return lambda x: np.vectorize(table.get)(x)

The native binder runs once, when a plan is made. It sees the node with its constants and returns a
`NativeCall`, or None when the kernel can never serve this node. A kernel may still decline at run time
(element type, rank, a shape that does not fit): then the definition runs, and it is the definition
that raises for bad input.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from array import array
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from qruntime.ir import Node
from qruntime.ops.families import MODULES

Definition = Callable[..., Any]
Unpack = Callable[[Sequence[Any]], np.ndarray]


class NativeCall:
    """How to call a C node function: its name in `kernels/nodes/` and its parameters.

    `inputs` chooses which inputs of the node are passed, None for all of them: constants that were
    packed need not be passed. `packed` holds objects of `qruntime._kernels` that the call reads.
    `unaligned` are inputs whose bytes may lie anywhere, as they do in many files: large tables need no copy then.
    `unpack` makes codes of the node's stored inputs again of `packed`: {input: function}; no more than one array is left of them.
    `widens` is False where the definition rounds narrow floats on its way, which float32 on widened inputs would not.
    """

    __slots__ = ("floats", "inputs", "ints", "kernel", "packed", "unaligned", "unpack", "widens")

    def __init__(
        self,
        kernel: str,
        ints: Sequence[int] = (),
        floats: Sequence[float] = (),
        packed: Sequence[Any] = (),
        inputs: Sequence[int] | None = None,
        unaligned: Sequence[int] = (),
        widens: bool = True,
        unpack: Mapping[int, Unpack] = MappingProxyType({}),
    ):
        # Attributes of odd types fail here, inside the binder; the definition then reports them when it runs.
        array("q", ints)
        array("d", floats)
        self.kernel = kernel
        self.ints = ints
        self.floats = floats
        self.packed = packed
        self.inputs = inputs
        self.unaligned = unaligned
        self.widens = widens
        self.unpack = unpack


class OpSpec:
    """One version of one operator.

    `shape_inputs` are the inputs whose *data* (not only shape) decides the shape of the outputs, such
    as the second input of Reshape; None says that even those do not suffice (NonZero, Loop). Passes use
    it to find what depends on input shapes only.
    """

    def __init__(
        self,
        op_type: str,
        domain: str,
        since: int,
        definition: Definition,
        shape_inputs: tuple[int, ...] | None = (),
        deterministic: bool = True,
        prepared: bool = False,
    ):
        self.op_type = op_type
        self.domain = domain
        self.since = since
        self.definition = _in_one_step(definition) if prepared else definition
        self.prepare = definition if prepared else None
        self.shape_inputs = shape_inputs
        self.deterministic = deterministic
        self.binder: Callable[[Node], NativeCall | None] | None = None

    @functools.cached_property
    def keywords(self) -> frozenset[str]:
        """Attribute names the definition takes; `num_outputs`, `output_types` and `subgraph_inputs` are filled by the plan."""
        code = inspect.unwrap(self.prepare or self.definition).__code__
        return frozenset(code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount])

    @functools.cached_property
    def required(self) -> frozenset[str]:
        """Those of `keywords` that a node must give."""
        return self.keywords - set(inspect.unwrap(self.prepare or self.definition).__kwdefaults__ or ()) - {"num_outputs", "output_types"}

    def bound(self, attributes: dict[str, Any]) -> Definition:
        """The definition as a function of the inputs alone. What it prepares is made at the first call and kept."""
        if self.prepare is not None:
            return _Prepared(self.prepare, attributes)
        return functools.partial(self.definition, **attributes) if attributes else self.definition

    def prepared(self, node: Node) -> Any:
        """What the definition prepares of the attributes of `node`, for a binder."""
        assert self.prepare is not None
        return self.prepare(**{name: attribute.value for name, attribute in node.attributes.items()})

    def __call__(self, *inputs: Any, **attributes: Any) -> Any:
        return self.definition(*inputs, **attributes)

    def native(self, binder: Callable[[Node], NativeCall | None]) -> Callable[[Node], NativeCall | None]:
        """Register the fast path (a decorator)."""
        self.binder = binder
        return binder


class _Prepared:
    def __init__(self, prepare: Definition, attributes: dict[str, Any]):
        self.prepare = prepare
        self.attributes = attributes
        self.made: Definition | None = None

    def __call__(self, *inputs: Any) -> Any:
        if self.made is None:
            self.made = self.prepare(**self.attributes)
        return self.made(*inputs)


def _in_one_step(prepare: Definition) -> Definition:
    def definition(*inputs: Any, **attributes: Any) -> Any:
        return prepare(**attributes)(*inputs)

    return definition


_REGISTRY: dict[tuple[str, str], list[OpSpec]] = {}
_looked_up: dict[tuple[str, str], list[OpSpec]] = {}
"""Entries of the registry whose module was imported to the end; another thread may be on its way through others."""


def operator(
    *op_types: str,
    since: int = 1,
    domain: str = "",
    shape_inputs: tuple[int, ...] | None = (),
    deterministic: bool = True,
    prepared: bool = False,
) -> Callable[[Definition], OpSpec]:
    """Register a definition for the operators named, valid from opset `since` up to the next one.

    With `prepared` the function takes the attributes alone and returns the definition over the inputs.

    Returns the `OpSpec` of the last name, so that `.native` can be attached; with several names they
    share one definition and one binder is not possible.
    """

    def register(definition: Definition) -> OpSpec:
        for op_type in op_types:
            versions = _REGISTRY.setdefault((domain, op_type), [])
            if any(spec.since == since for spec in versions):
                raise ValueError(f"{domain or 'ai.onnx'}.{op_type} since {since} is registered twice")
            spec = OpSpec(op_type, domain, since, definition, shape_inputs, deterministic, prepared)
            versions.append(spec)
            versions.sort(key=lambda s: s.since)
        return spec

    return register


def find(domain: str, op_type: str, version: int) -> OpSpec | None:
    """The newest definition not newer than the opset `version` of its domain."""
    specs = _looked_up.get((domain, op_type))
    if specs is None:
        specs = _look_up((domain, op_type))
    found = None
    for spec in specs:
        if spec.since <= version:
            found = spec
    return found


def _look_up(key: tuple[str, str]) -> list[OpSpec]:
    if key in MODULES:
        importlib.import_module(MODULES[key])
    return _looked_up.setdefault(key, _REGISTRY.setdefault(key, []))


def registered() -> list[OpSpec]:
    """Every definition, for tests and documentation."""
    for module in set(MODULES.values()):
        importlib.import_module(module)
    return [spec for versions in _REGISTRY.values() for spec in versions]


def versions(op_type: str, domain: str = "", *, at_least: int = 1) -> list[OpSpec]:
    """The definitions of one operator, of a family imported before, from version `at_least` on, to attach one fast path
    to all of them. ValueError when there is none: a fast path that is attached to nothing is never taken."""
    found = [spec for spec in _REGISTRY[domain, op_type] if spec.since >= at_least]
    if not found:
        raise ValueError(f"{domain or 'ai.onnx'}.{op_type} has no version from {at_least} on")
    return found
