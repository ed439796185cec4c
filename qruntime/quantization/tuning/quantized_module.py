"""A model as a torch.nn.Module that is trained for a scheme: `QuantizedModule`, which exists when it is asked for.

    module = QuantizedModule(qruntime.load("model.onnx"), "W4A8")
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    for ids, labels in loader:                                   # the loop is yours
        loss = cross_entropy(module(ids), labels) …
    module.to_model().save("model.w4a8.onnx")

Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference (2018); step sizes
that are learned: Esser et al., Learned Step Size Quantization (2020).
"""

from __future__ import annotations

import copy
import functools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.errors import InputError, QuantizationError, counted
from qruntime.ir import Graph, Node, clone
from qruntime.ops.elementwise import widen
from qruntime.quantization.assignments import Assignment, decide
from qruntime.quantization.quantizing import quantize_with
from qruntime.quantization.reasons import Reason
from qruntime.quantization.recipe import Recipe
from qruntime.quantization.report import SkippedLayer
from qruntime.quantization.request import Request
from qruntime.quantization.scheme import QArgs, Scheme
from qruntime.quantization.selection import layer_name
from qruntime.quantization.steps import Grid, Trained
from qruntime.quantization.storing import Storing
from qruntime.quantization.tuning import fake_quantization as fake
from qruntime.quantization.tuning.code_caches import CodeCaches
from qruntime.quantization.tuning.dropouts import Dropouts, stop_dropping
from qruntime.quantization.tuning.engine import check_engine
from qruntime.quantization.tuning.from_codes import Grids, leaning, made_float
from qruntime.quantization.tuning.parameters import TABLE, WEIGHT, Parameter, separate
from qruntime.quantization.tuning.static_inputs import StaticInputs
from qruntime.quantization.tuning.step_sizes import StepSizes
from qruntime.quantization.tuning.student import NAN, Student

MINMAX, LSQ = "minmax", "lsq"
"""Whence the step sizes of weights come: from their range at every step, or learned."""


@functools.cache
def module_class() -> type:
    """`QuantizedModule`. Needs torch: pip install qruntime[train]."""
    check_engine("QuantizedModule")
    import torch

    class QuantizedModule(torch.nn.Module):
        """What `model` computes, with the numbers that `scheme` leaves of weights and activations; trained, it becomes that model.

        `scheme`, `overrides`, `only` and `exclude` are those of `model.quantize`, and select the same layers. Parameters are
        the floats that the model has learned, under their names in the file, float32 master copies of what codes are made
        of: weights, biases, norms, tables; a head that is the table of the embedding stays it. What is stored in codes
        already stays, unless `from_codes`: then these layers are trained on, from what their codes stand for and on their
        grids, which takes `steps="lsq"`. With that the step sizes of weights are learned too: parameters `…_step`, 0 at first, say
        how far a step has moved in the measure of the weights that it rounds, so that one rate serves both; `step_sizes()`
        gives the steps. Static activations have moving averages of their extremes with `momentum`, in training mode, until
        `freeze_ranges`. With `recompute` activations are made again for gradients instead of being kept: far less memory, a
        third more work, the same bits.

        A scheme with -KV rounds keys and values as a cache of codes will hold them; inputs and outputs stay those of the float model.

        In training mode the forward pass is that of torch with every number rounded as the codes will be, straight through for
        gradients, and Dropout that the file has in training mode drops, as it does nowhere else. In evaluation mode it gives the bits
        of `to_model()`; gradients, where wanted, are those of the former.
        A model of float16 or bfloat16 is trained in float32, and so is what the module returns; `to_model()` is of its type again.
        """

        def __init__(
            self,
            model: Any,
            scheme: str | Scheme = "W8A8",
            *,
            overrides: Mapping[object, Any] | None = None,
            only: Iterable[object] | None = None,
            exclude: Iterable[object] = (),
            steps: str = MINMAX,
            from_codes: bool = False,
            momentum: float = 0.99,
            recompute: bool = False,
        ):
            super().__init__()
            if not hasattr(model, "_copied"):
                raise QuantizationError(f"QuantizedModule takes what qruntime.load makes of an ONNX file, got {type(model).__name__}")
            if steps not in (MINMAX, LSQ):
                raise QuantizationError(f"steps must be {MINMAX!r} or {LSQ!r}, got {steps!r}")
            if from_codes and steps != LSQ:
                raise QuantizationError(
                    f"steps={steps!r} would find ranges anew and leave the grids that codes are on: train on from codes with steps={LSQ!r}"
                )
            self._model, self._request, self._momentum = model, Request(scheme, overrides, only, exclude), momentum
            self._from_codes = from_codes
            self._bind(*model._copied())
            self.recompute = recompute
            self.facts: dict[str, Any] = {}
            """What reports say of every layer beside the rest."""
            self.is_quantized = True
            """False: the float model, for training without any rounding."""
            parameters = self._student.parameters
            self._tied = _tied(parameters)
            self._paths = {name: _register(self, name, one.tensor()) for name, one in parameters.items() if name not in self._tied}
            self._steps = {name: _steps(self, one, self._grids_of_codes) for name, one in parameters.items() if _learns_steps(one, steps)}

        def _bind(self, graph: Graph, fixed: Any) -> None:
            """Make what computes with the parameters, on a graph of its own."""
            self._grids_of_codes = made_float(graph, self._request) if self._from_codes else {}
            separate(graph.nodes)
            self._graph, self._fixed = graph, fixed
            self._student = Student(graph, _schemes(graph, self._request))
            self._static = StaticInputs(self._student.schemes, self._momentum)
            self._student.roundings |= self._static.roundings
            self._caches = CodeCaches(graph, self._request.scheme.cache)
            self._student.places = self._caches.roundings
            self._dropouts = Dropouts(graph)
            self._student.dropping = self._dropouts.places
            self._made: tuple[Any, Any] | None = None

        def __getstate__(self) -> dict[str, Any]:
            """All but what computes with the parameters, which the model and the request make again."""
            state = {name: one for name, one in self.__dict__.items() if name not in BOUND}
            return state | {"_ranges": self._static.state()}

        def __setstate__(self, state: dict[str, Any]) -> None:
            """QuantizationError where the model has other floats than when the module was made."""
            self._restore(state, *state["_model"]._copied())

        def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedModule:
            """A module with parameters of its own, beside the same model, which neither changes."""
            made = type(self).__new__(type(self))
            memo[id(self)], memo[id(self._model)] = made, self._model
            made._restore(copy.deepcopy(self.__getstate__(), memo), clone(self._graph), self._fixed)
            return made

        def _restore(self, state: dict[str, Any], graph: Graph, fixed: Any) -> None:
            super().__setstate__({name: one for name, one in state.items() if name != "_ranges"})
            self._bind(graph, fixed)
            if self._student.parameters.keys() != self._paths.keys() | self._tied.keys():
                raise QuantizationError(
                    "the model that the module was made of has other weights now, as after quantize(…, inplace=True): make the module of "
                    "the float model, and bring back its parameters with load_state_dict"
                )
            self._static.restore(state["_ranges"])

        def outputs(self, feed: Mapping[str, Any]) -> dict[str, Any]:
            """All outputs by name, of a feed that may hold more than the inputs."""
            made = self(**{value.name: feed[value.name] for value in self._graph.inputs})
            return made if isinstance(made, dict) else {self._graph.output_names[0]: made}

        def forward(self, *inputs: Any, **feeds: Any) -> Any:
            """Tensors or arrays in the order of the model's inputs, or by their names. A tensor, or of several outputs a dict."""
            known = self._known(inputs, feeds)
            if self.training or not self.is_quantized:
                self._static.begin(sees=self.training)
                return self._named(self._run(known))
            exact = self._caches.run(self.to_model(), {value.name: _array(given) for value, given in known.items()})
            made = [torch.from_numpy(np.ascontiguousarray(widen(exact[name]))) for name in self._graph.output_names]
            if torch.is_grad_enabled() and any(one.requires_grad for one in self.parameters()):
                self._static.begin(sees=False)
                rounded = self._run(known)
                made = [_with_values(rounded[value], one) for value, one in zip(self._graph.outputs, made, strict=True)]
            return self._named(dict(zip(self._graph.outputs, made, strict=True)))

        def to_model(self) -> Any:
            """The model that `model.quantize` makes of these parameters, steps and ranges; the same object until they change."""
            state = self._state()
            if self._made is None or self._made[0] != state:
                graph = self._with_masters()
                trained = Trained(self._grids(), self._static.ranges(), self.facts)
                report = quantize_with(graph, Recipe("QAT"), self._request, threads=self._model.threads, trained=trained)
                self._made = state, self._model._quantized(graph, self._fixed, report, False)
            return self._made[1]

        def to_float(self) -> Any:
            """The float model of these parameters."""
            return self._model._quantized(self._with_masters(), self._fixed, self._model.report, False)

        @property
        def to_quantize(self) -> int:
            """How many layers the scheme is for."""
            return len(self._student.schemes)

        @property
        def drops(self) -> bool:
            """Whether the file has Dropout in training mode."""
            return bool(self._dropouts.places)

        @property
        def schemes(self) -> dict[str, str]:
            """The scheme of each of them, by its name."""
            return {layer_name(node): str(scheme) for node, scheme in self._student.schemes.items()}

        def left(self) -> list[SkippedLayer]:
            """Layers that stay float, with the reasons."""
            decided = decide(clone(self._graph), self._request)
            return [SkippedLayer(layer_name(node), node.op_type, one) for node, one in decided.items() if isinstance(one, Reason)]

        def step_sizes(self) -> dict[str, list[Any]]:
            """Those that are learned: of each weight by its name, for each matrix [N, K] that it holds, [N or 1, groups]."""
            return {name: [steps.sizes(self.get_parameter(path)).detach() for path, steps in one] for name, one in self._steps.items()}

        def lean(self, floats: Mapping[str, np.ndarray]) -> None:
            """Move weights that begin as what codes stand for towards the floats that these were made of, given by their names, as far
            as from_codes.py says: no code changes, and those that nearly were another are the first to change in training."""
            for name, codes in self._grids_of_codes.items():
                if name not in floats or name not in self._steps:
                    continue
                parameter, master = self._student.parameters[name], self.get_parameter(self._paths[name])
                given = torch.from_numpy(np.array(widen(floats[name]), np.float32))
                assert parameter.args is not None
                matrices = zip(parameter.matrices(master.detach()), parameter.matrices(given), codes, strict=True)
                moved = [leaning(weight, near, grid, parameter.args) for weight, near, grid in matrices]
                with torch.no_grad():
                    master.copy_(parameter.joined(moved))

        def freeze_ranges(self, is_frozen: bool = True) -> None:
            """Ranges of static activations stay as they are from now on."""
            self._static.is_frozen = is_frozen

        def get_extra_state(self) -> dict[str, Any]:
            return self._static.state()

        def set_extra_state(self, state: dict[str, Any]) -> None:
            self._static.restore(state)

        def extra_repr(self) -> str:
            return f"{self._request.scheme}, {counted(self.to_quantize, 'layer')}"

        def _run(self, known: dict[Any, Any]) -> dict[Any, Any]:
            self._dropouts.is_on, masters = self.training, self._masters()
            weights = {name: self._on_steps(self._student.parameters[name], masters[name]) for name in self._steps}
            return self._student.run(known, masters, weights=weights, is_quantized=self.is_quantized, recompute=self.recompute)

        def _masters(self) -> dict[str, Any]:
            own = {name: self.get_parameter(path) for name, path in self._paths.items()}
            for name, one in own.items():
                if one.dtype != torch.float32 or one.device.type != "cpu":
                    what = f"{str(one.dtype).removeprefix('torch.')} on {one.device}"
                    raise QuantizationError(
                        f"parameter {name!r} is {what}; a module is trained in float32 on the CPU: module.float().cpu()"
                    )
            return own | {name: own[table].T for name, table in self._tied.items()}

        def _on_steps(self, parameter: Parameter, master: Any) -> Any:
            args, matrices = parameter.args, parameter.matrices(master)
            assert args is not None
            made = []
            for matrix, (path, steps) in zip(matrices, self._steps[parameter.name], strict=True):
                made.append(fake.with_parameters(matrix, args, steps.sizes(self.get_parameter(path)), steps.zero_point))
            return parameter.joined(made)

        def _grids(self) -> dict[str, list[tuple[np.ndarray, np.ndarray | None]]]:
            def grid(path: str, steps: StepSizes) -> tuple[np.ndarray, np.ndarray | None]:
                zero_point = steps.zero_point
                return steps.sizes(self.get_parameter(path)).detach().numpy(), None if zero_point is None else zero_point.numpy()

            return {name: [grid(*one) for one in several] for name, several in self._steps.items()}

        def _with_masters(self) -> Graph:
            graph = clone(self._graph)
            by_name = {value.name: value for value in graph.constants()}
            for name, master in self._masters().items():
                old = by_name[name].data
                assert old is not None
                if bool(master.isnan().any()):
                    raise QuantizationError(f"parameter {name!r} holds NaN: {NAN}")
                by_name[name].data = master.detach().numpy().astype(old.dtype, order="C")
            stop_dropping(graph)
            return graph

        def _known(self, inputs: tuple[Any, ...], feeds: dict[str, Any]) -> dict[Any, Any]:
            wanted = self._graph.inputs
            if inputs and isinstance(inputs[0], Mapping):
                raise InputError("got a dict: give inputs by name, module(**feed), or module.outputs(feed)")
            if len(inputs) > len(wanted):
                raise InputError(f"{len(inputs)} inputs given, the model has {len(wanted)}: {', '.join(v.name for v in wanted)}")
            given = {value.name: one for value, one in zip(wanted, inputs)} | feeds
            unknown = sorted(given.keys() - {value.name for value in wanted})
            missing = [value.name for value in wanted if value.name not in given]
            if unknown or missing:
                what = f"unknown input {unknown[0]!r}" if unknown else f"missing input {missing[0]!r}"
                raise InputError(f"{what}; the inputs are: {', '.join(value.name for value in wanted)}")
            for value in wanted:
                is_single = value.type is not None and value.type.dtype == FLOAT32_CODE
                if is_single and str(getattr(given[value.name], "dtype", "")).endswith("float64"):
                    raise InputError(f"input {value.name!r} needs float32, got float64: convert it with .float(), .astype(np.float32)")
            return {value: given[value.name] for value in wanted}

        def _named(self, made: Mapping[Any, Any]) -> Any:
            outputs = {name: made[value] for value, name in zip(self._graph.outputs, self._graph.output_names, strict=True)}
            return outputs if len(outputs) > 1 else next(iter(outputs.values()))

        def _state(self) -> Any:
            """What tells whether anything was trained since: the numbers, as torch does not count what changes them by `.data`."""
            self._masters()
            return tuple(zlib.crc32(one.detach().contiguous().numpy()) for one in self.parameters()), str(self._static.state())

    QuantizedModule.__module__, QuantizedModule.__qualname__ = "qruntime.quantization", "QuantizedModule"
    return QuantizedModule


FLOAT32_CODE = 1
"""Of ONNX."""

BOUND = frozenset({"_graph", "_fixed", "_student", "_static", "_caches", "_dropouts", "_grids_of_codes", "_made"})
"""What a copy of a module makes anew."""


def _schemes(graph: Graph, request: Request) -> dict[Node, Scheme]:
    """Those of the layers that `model.quantize` would store."""
    from qruntime.quantization.methods.rtn import RTN
    from qruntime.quantization.solving import Solving

    storing, found = Storing(graph), {}
    for node, one in decide(graph, request).items():
        if not isinstance(one, Assignment) or one.scheme.weights is None:
            continue
        if storing.misfit(one.layer, Solving((RTN(),), one.scheme.weights)) is None:
            found[node] = one.scheme
    return found


def _tied(parameters: Mapping[str, Parameter]) -> dict[str, str]:
    """Weights that are the table of an embedding the other way round, as heads of language models are."""
    tables = [one for one in parameters.values() if one.role == TABLE]
    found = {}
    for one in parameters.values():
        if one.role != WEIGHT or one.layer is None or one.layer.kind != "Linear":
            continue
        assert one.value.data is not None
        for table in tables:
            assert table.value.data is not None
            if one.value.data.shape == table.value.data.shape[::-1] and np.array_equal(one.value.data.T, table.value.data):
                found[one.name] = table.name
    return found


def _register(module: Any, name: str, tensor: Any) -> str:
    """Make a parameter of that name, whose dots lead through modules as in torch, and return its path."""
    import torch

    parts = name.split(".")
    if not all(parts) or _is_taken(module, parts[:-1]):
        parts = [name.replace(".", "_")]
    owner = module
    for part in parts[:-1]:
        if part not in owner._modules:
            owner.add_module(part, torch.nn.Module())
        owner = owner._modules[part]
    while hasattr(owner, parts[-1]):
        parts[-1] += "_"
    owner.register_parameter(parts[-1], torch.nn.Parameter(tensor))
    return ".".join(parts)


def _is_taken(module: Any, parts: Sequence[str]) -> bool:
    """Whether one of the modules on a path would have the name of something else."""
    import torch

    owner = module
    for part in parts:
        inner = owner._modules.get(part)
        if inner is None and hasattr(owner, part):
            return True
        owner = torch.nn.Module() if inner is None else inner
    return False


def _learns_steps(parameter: Parameter, steps: str) -> bool:
    return steps == LSQ and parameter.args is not None and not parameter.args.format.is_float


def _steps(module: Any, parameter: Parameter, codes: Grids) -> list[tuple[str, StepSizes]]:
    """For each matrix of a weight the path of what is learned of its step sizes, and what these are; `codes`: where they begin."""
    args = parameter.args
    assert isinstance(args, QArgs)
    if args.scales.kind != "float32":
        raise QuantizationError(f"steps that are learned are float32, not {args.scales.kind} as those of {parameter.name!r} are to be")
    matrices, found = parameter.matrices(parameter.tensor()), []
    grids: Sequence[Grid | None] = codes.get(parameter.name) or [None] * len(matrices)
    for number, (matrix, grid) in enumerate(zip(matrices, grids, strict=True)):
        suffix, steps = "_step" if len(matrices) == 1 else f"_step{number}", StepSizes(matrix, args, grid)
        found.append((_register(module, parameter.name + suffix, steps.start()), steps))
    return found


def _array(given: Any) -> np.ndarray:
    return given.detach().numpy() if hasattr(given, "detach") else np.asarray(given)


def _with_values(rounded: Any, exact: Any) -> Any:
    """`exact`, with the gradient of `rounded`."""
    if not rounded.requires_grad:
        return exact
    return fake.with_values(rounded, exact)
