"""A loaded model: run it, look at it, quantize it, save it."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qruntime import _kernels, model_file
from qruntime.errors import InputError, InvalidModel, QRuntimeError, QuantizationError, counted
from qruntime.ir import Dim, Graph, ModelInfo, TypeInfo, Value, clone, shares_of
from qruntime.ir.defaults import FixedInput, fix_defaults, reopen_defaults
from qruntime.ir.dtypes import type_name
from qruntime.onnx_io import importer
from qruntime.ops.arity import check_arity
from qruntime.passes import pipeline
from qruntime.runtime.inputs import convert_input, fixed_shape
from qruntime.runtime.plan import Plan, Planner, check_supported
from qruntime.runtime.recent import Recent

if TYPE_CHECKING:
    from qruntime.quantization.adapter import Adapter
    from qruntime.quantization.report import Report
    from qruntime.runtime.memory import MemoryUse
    from qruntime.runtime.profile import Profile

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]

_MOST_PLANNERS = 4
"""Sets of fed weights whose plans are kept: each of them packs what the model has beside."""


class TensorInfo(NamedTuple):
    """Name, element type and shape of an input or output; symbolic dimensions are strings, unknown ones None."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        dims = "..." if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


def load(
    source: Source, *, threads: int | None = None, external_data_dir: str | os.PathLike[str] | None = None, exact: bool = False
) -> Model:
    """Load an ONNX model from a path, bytes or a binary file.

    Weights stay memory-mapped. `threads` is the most threads that one run uses, the caller's included
    (default: QRUNTIME_NUM_THREADS, OMP_NUM_THREADS, else the CPUs this process may use). Weights that the model
    keeps in other files are looked for beside it, or only in the folder `external_data_dir`: bytes and files
    have no folder of their own. `exact` leaves out what is faster within a wider bound of error than sums of products have: Winograd's
    products of convolutions with windows of 3 × 3, whose relative error is about twice as large, 1e-6.

    Raises InvalidModel when the bytes are no valid model, UnsupportedOp listing every operator that is
    missing, OSError when the file cannot be read, KernelUnavailable when QRUNTIME_ISA names no kernels of this CPU.
    """
    path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
    with _no_collection():
        model = Model(*importer.load_graph(source, external_data_dir=external_data_dir), path=path, threads=threads, exact=exact)
    if path is not None:
        model._file = model_file.identity(path)
        model._external_data_dir = None if external_data_dir is None else os.path.abspath(external_data_dir)
    return model


class Model:
    """An ONNX graph that can run. Make one with `qruntime.load`.

    `inputs` are what a run needs, `outputs` what it gives. `overridable` are weights that the file lists among its
    inputs too: constants, unless a run feeds them.
    """

    def __init__(
        self,
        graph: Graph,
        info: ModelInfo,
        *,
        path: str | None = None,
        threads: int | None = None,
        report: Report | None = None,
        exact: bool = False,
    ):
        if threads is not None and threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        _kernels.isa()  # raises when the environment asks for kernels that this CPU lacks
        check_arity(graph)
        self.info = info
        self._report = report
        self.path = path
        self.threads = threads or _kernels.default_threads()
        self.exact = exact
        self._planning = threading.Lock()
        self._external_data_dir: str | None = None  # where it was told to look for the weights of its file
        self._spent: frozenset[str] = frozenset()  # inputs whose default was quantized
        self._adopt(graph)

    def _adopt(self, graph: Graph, base: Graph | None = None, adapter: Adapter | None = None) -> None:
        """Become `graph`; with an `adapter`, `base` is the same without it."""
        graph.exact = self.exact
        self._declared = pipeline.canonical(graph)  # what is saved: inputs may have defaults
        self._base, self.adapter = base, adapter
        if base is not None:
            base.exact = self.exact
        self.graph = _with_defaults(self._declared)
        self._shares = [*shares_of(self._declared), *shares_of(self.graph)]
        check_supported(self.graph)
        self._planners: Recent[tuple[str, ...], Planner] = Recent(_MOST_PLANNERS)
        self._run_named: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None
        self._file: tuple[int, ...] | None = None  # the file that holds this very graph
        self.inputs = tuple(_describe(v.name, v.type) for v in self.graph.inputs)
        self.overridable = tuple(_describe(v.name, v.type) for v in self._declared.input_defaults)
        self.outputs = tuple(_describe(name, kind) for name, kind in self.graph.described_outputs())

    @property
    def metadata(self) -> dict[str, str]:
        """The model's own key-value metadata."""
        return dict(self.info.metadata)

    @property
    def report(self) -> Report:
        """What is quantized, what was not and why; of a model that was loaded, what its file tells."""
        if self._report is None:
            from qruntime.quantization import storing

            self._report = storing.describe_existing(self.graph)
        return self._report

    def run(
        self,
        feed: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        out: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, Any]:
        """Run the model: {input name: array-like} → {output name: ndarray}, in the order of the outputs.

        Inputs may be anything numpy can view: arrays, lists, scalars, objects with DLPack. `outputs`
        limits the work to the outputs named. `out` gives arrays to write outputs into; they are what is
        returned under their names. What is `overridable` may be fed too; each set of such names gets a plan of its own,
        made and packed by its first run and kept while it is among the last four in use. A weight that was quantized can
        be fed no more.

        A cache (an output that is an input with more behind it) which is fed back is appended to in place: it then comes as a
        read-only array with strides. What was given out never changes; whoever feeds it a second time gets a copy.

        Raises InputError when a name, an element type or a shape does not fit, RunError when a node fails.
        """
        if outputs is None and out is None and self._run_named is not None and type(feed) is dict:
            results = self._run_named(feed)
            if results is not None:
                return results
        return self._run(feed, outputs, out)

    def __call__(self, *values: Any, **named: Any) -> Any:
        """Run on values in the order of the inputs, or by name; one output comes bare, several as a tuple."""
        names = [info.name for info in self.inputs]
        if len(values) > len(names):
            needed = f"{counted(len(names), 'input')} ({', '.join(names)})"
            raise InputError(f"the model has {needed}, got {counted(len(values), 'value')}")
        feed = dict(zip(names, values))
        twice = [name for name in named if name in feed]
        if twice:
            raise InputError(f"input {twice[0]!r} is given by its place and by its name")
        results = tuple(self.run(feed | named).values())
        return results[0] if len(results) == 1 else results

    def profile(self, feed: Mapping[str, Any], *, repeat: int = 20) -> Profile:
        """Where the time of `run(feed)` goes: the median of `repeat` runs for every node.

        What depends on input shapes only is shown too, although a run with shapes seen before skips it.
        """
        from qruntime.runtime.profile import make_profile

        if repeat < 1:
            raise InputError(f"repeat must be at least 1, got {repeat}")
        fed = self._fed(feed)
        plan = self._plan(tuple(self.graph.output_names), fed)
        values = self._values(feed, plan)
        times = plan.executable.time_steps(list(values), repeat)
        return make_profile(plan.as_run(), times)

    def _run(self, feed: Mapping[str, Any], outputs: Sequence[str] | None, out: Mapping[str, np.ndarray] | None) -> dict[str, Any]:
        if isinstance(outputs, str):
            raise InputError(f"outputs is a list of names, got a string; write [{outputs!r}]")
        names = tuple(self.graph.output_names if outputs is None else outputs)
        fed = self._fed(feed)
        plan = self._plan(names, fed)
        results = dict(zip(names, plan.executable.run_values(self._values(feed, plan))))
        if out is not None:
            for name, buffer in out.items():
                results[name] = _copy_into(name, results, buffer)
        if outputs is None:
            self._run_named = plan.executable.run_named
        return results

    def _fed(self, feed: Mapping[str, Any]) -> tuple[str, ...]:
        """Which of the inputs that have a default are fed; InputError for wrong names."""
        if not isinstance(feed, Mapping):
            needed = f"the model's inputs are: {_listing(self.inputs)}"
            raise InputError(f"run needs a mapping of names to values, got {type(feed).__name__}; {needed}")
        overridable = [info.name for info in self.overridable]
        known = {*overridable, *(info.name for info in self.inputs)}
        unknown = [name for name in feed if name not in known]
        if unknown and unknown[0] in self._spent:
            raise InputError(
                f"input {unknown[0]!r} cannot be fed any more: this model was quantized with its default. Feed it to the "
                "model before quantize_dynamic, or exclude= what reads it"
            )
        if unknown:
            more = f"; {counted(len(overridable), 'other')} with a default: see model.overridable" if overridable else ""
            raise InputError(f"unknown input {unknown[0]!r}; the model's inputs are: {_listing(self.inputs)}{more}")
        return tuple(name for name in overridable if name in feed)

    def _values(self, feed: Mapping[str, Any], plan: Plan) -> list[Any]:
        """What is fed, in the order of the inputs of `plan`; InputError for what is missing."""
        missing = [v.name for v in plan.inputs if v.name not in feed and not _is_optional(v)]
        if missing:
            raise InputError(f"missing input {missing[0]!r}; the model's inputs are: {_listing(self.inputs)}")
        return [feed.get(v.name) for v in plan.inputs]

    def _plan(self, names: tuple[str, ...], fed: tuple[str, ...] = ()) -> Plan:
        """The plan that computes the outputs `names`; inputs in `fed` do not have their default."""
        planner = self._planners.get(fed)
        plan = None if planner is None else planner.recent.get(names)
        if plan is not None:
            return plan
        for name in names:
            if name not in self.graph.output_names:
                raise InputError(f"unknown output {name!r}; the model's outputs are: {_listing(self.outputs)}")
        with self._planning, _no_collection():
            planner = self._planners.get(fed) or self._planners.add(fed, self._make_planner(fed))
            return planner.recent.get(names) or planner.recent.add(names, self._make_plan(planner, names))

    def _make_planner(self, fed: tuple[str, ...]) -> Planner:
        graph = clone(self.graph) if not fed else _with_defaults(self._declared, fed=fed)
        return Planner(pipeline.lowered(graph), num_threads=self.threads)

    def _make_plan(self, planner: Planner, names: tuple[str, ...]) -> Plan:
        by_name = dict(zip(planner.graph.output_names, planner.graph.outputs))
        plan = planner.plan([by_name[name] for name in names])
        planner.give_up_codes()
        inputs = plan.inputs
        plan.executable.name_inputs(
            tuple(v.name for v in inputs),
            [v.type.dtype if v.type and v.type.kind == "tensor" else 0 for v in inputs],
            [fixed_shape(v) for v in inputs],
            names,
            lambda index, value: convert_input(inputs[index], value),
        )
        return plan

    def quantize_dynamic(
        self,
        qconfig_spec: Iterable[object] | Mapping[object, object] | None = None,
        dtype: object = "qint8",
        mapping: Iterable[object] | Mapping[object, object] | None = None,
        inplace: bool = False,
        *,
        per_channel: bool | None = None,
        activation: str | None = None,
        engine: str = "qruntime",
        only: Iterable[object] | None = None,
        exclude: Iterable[object] = (),
        strict: bool = False,
        faster_only: bool = False,
    ) -> Model:
        """A model with int8 weights whose activations are quantized at every run.

        MatMul, Gemm, LSTM, GRU and RNN with constant float32 weights are quantized, in subgraphs too:
        weights to int8, activations to uint8 per row (token), so that a result does not depend on what shares
        its batch, or per tensor. Biases stay float. Conv is quantized when
        `qconfig_spec` names it or its kind; a row of it is what the window covers at one output position.

        `qconfig_spec`: a set of kinds of layers ("Linear", "LSTM", torch classes), names or module paths,
        or a dict from such to a QConfig, or to None to exclude. The closest entry counts: what names the layer
        itself, then what names a module around it (the deeper, the closer), its operator or kind, "" for the whole model.
        Paths may start anywhere: "layer.0" and "fc" mean encoder.layer.0.fc; "/layer.0" starts at the root.
        `dtype`: "qint8"; "float16" stores weights in half precision and computes in float32; "quint8" and
        "quint4x2" are for embeddings. With a dict it has no say.
        `mapping`: the kinds that may be quantized, instead of all.
        `per_channel`: None gives a weight one scale, or one per output channel where one would cost a channel too
        much (the report says which and how much); False gives one in any case, True always one per channel.
        `engine`: "fbgemm", "qnnpack" and "onnxruntime" reproduce the numbers of torch and ONNX Runtime.
        `only` and `exclude` take node names, module paths, globs, operator types and kinds. What selects nothing is
        a warning, with what is called alike, and stands in `report.idle`.
        `faster_only` leaves layers float that are too small for int8 to be faster; else the report names them.

        A layer that is quantized already stays where it has the form asked for, and where the call asks for no more than
        its defaults; else it is quantized anew from the values that its codes stand for, and its row of the report names
        them as `source`. docs/quantization.md has the whole table.

        With `inplace` this model changes and is returned. What was left alone and why is in `report` and
        in `summary()`; `strict` makes it an error.

        Raises QuantizationError for arguments that mean nothing or ask for what does not exist.
        """
        from qruntime.quantization import dynamic
        from qruntime.quantization.torch_names import specification

        wanted = specification.read(qconfig_spec, dtype, mapping, per_channel, only, exclude)
        graph, fixed = self._copied()
        report = dynamic.quantize_graph(graph, wanted, activation=activation, engine=engine, strict=strict, faster_only=faster_only)
        return self._quantized(graph, fixed, report, inplace)

    def quantize(
        self,
        recipe: object = None,
        *,
        scheme: object = None,
        data: Any = None,
        overrides: Mapping[object, Any] | None = None,
        only: Iterable[object] | None = None,
        exclude: Iterable[object] = (),
        mask: str | None = None,
        calibration_bytes: int | None = None,
        seed: int = 0,
        progress: bool | Callable[[int, int, str], None] = False,
        strict: bool = False,
        inplace: bool = False,
        **options: Any,
    ) -> Model:
        """A model whose weights have 2 to 8 bits, in integers or by a table, with float or quantized activations.

        `recipe` says how: the name of a paper's method ("GPTQ", "AWQ", …; `qruntime.quantization.recipes` lists them), a step
        such as GPTQ(actorder=None), or a list of these in their order; None rounds to nearest. `scheme` says what the numbers
        look like: "W4A16-g128" (the default), "W3A16", "Wnf4A16-g64", "W8A8", … (quantization/scheme.py); a recipe brings its
        own. MatMul, Gemm, LSTM, GRU and RNN are quantized; `overrides` maps names, module paths, globs and kinds to another
        scheme or to None, and names embeddings and convolutions where they are wanted. `only`, `exclude`, `strict` and
        `inplace` are those of `quantize_dynamic`.

        `data`, for recipes that look at activations and for static ranges ("W8A8-static"): feeds {input name: array} in an
        iterable, a function that returns one, an .npz file or a folder of such. `mask` names an input that is 0 where feeds
        hold padding, which then does not count. Tensors that wait beyond `calibration_bytes` (a quarter of the free memory)
        lie in a temporary file. `seed` is that of steps that draw numbers: the same arguments give the same codes.
        `progress`: True shows a bar, or lines where the output is no terminal; or it is called with (done, total, what).
        Further `options` are those of the steps of the recipe: `loss`, `epochs`, `lr`, `checkpoint` of "QAT", for one.

        Raises QuantizationError for arguments that mean nothing, for data that do not fit and for what does not exist. This
        model stays as it was then, and when the call is interrupted.
        """
        from qruntime.display.progress import shown
        from qruntime.quantization import recipe as recipes
        from qruntime.quantization.methods import RECIPES
        from qruntime.quantization.quantizing import quantize_with
        from qruntime.quantization.request import Request

        read = recipes.seeded(recipes.with_options(recipes.read(recipe, RECIPES), options), seed)
        request = Request(read.scheme if scheme is None else scheme, overrides, only, exclude)  # type: ignore[arg-type]
        if read.training is not None:
            from qruntime.quantization.tuning.calling import trained_module

            with shown(progress, of_steps=True) as report_progress:
                made: Model = trained_module(self, read, request, data, mask, report_progress, strict=strict).to_model()
            return self._become(made) if inplace else made
        graph, fixed = self._copied()
        with shown(progress) as report_progress:
            report = quantize_with(
                graph, read, request, data=data, mask=mask, calibration_bytes=calibration_bytes, progress=report_progress,
                threads=self.threads, strict=strict,
            )  # fmt: skip
        return self._quantized(graph, fixed, report, inplace)

    def _become(self, other: Model) -> Model:
        """Hold what another model does."""
        self._adopt(other._declared)
        self._report, self._spent = other._report, other._spent
        return self

    def finetune(
        self,
        method: object,
        data: Any,
        *,
        loss: object,
        validation: Any = None,
        scheme: object = None,
        epochs: int = 1,
        steps: int | None = None,
        lr: float | None = None,
        batch: int = 1,
        seed: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool | Callable[[int, int, str], None] = False,
        inplace: bool = False,
    ) -> Model:
        """A model that learned a task, with the adapter that makes it so loaded; needs torch (`pip install 'qruntime[train]'`).

        `method`: "PEQA" trains the scales of codes, "QLoRA" branches of low rank beside layers; or one of `qruntime.quantization`
        with arguments, QLoRA(rank=8, targets=("q_proj", "v_proj")). The codes stay as they are, bit for bit. A model that is float
        yet is quantized first, by `scheme` or by that of the method (W3A16, Wnf4A16-g64-double). A model with an adapter of the method
        goes on from it, with its layers and its rank.

        `data` are feeds as those of `quantize`, each with all that `loss` needs: "next_token", for language models, or a function of
        (outputs, feed), {name: torch tensor} both, the feed with its labels, that gives a tensor of one number. A step sees `batch`
        feeds; there are as many as `epochs` passes over the data have, or `steps`. AdamW, at a rate that falls from `lr` (by default
        that of the method) to 0. The same arguments and number of threads give the same adapter. What learned best on `validation`,
        feeds that are measured after every pass, stays; without them what the last step left. An interrupt (Ctrl-C) after the
        first step ends the training with the best so far and a warning. `checkpoint`, a file that is written ten times in a pass: the
        same call with it goes on where a run was stopped, to the same bits. `progress` as in `quantize`, with the loss and the time
        that is left.

        `adapter` of the result tells what was learned; `save_adapter` writes it to a small file.

        Raises QuantizationError for arguments that mean nothing, data that do not fit, operators without a gradient
        (UnsupportedOp) and losses that are no number. This model stays as it was then.
        """
        from qruntime.display.progress import shown
        from qruntime.quantization import finetuning
        from qruntime.quantization.tuning.engine import check_engine

        chosen = finetuning.method_of(method)
        check_engine("finetune")
        if self.adapter is not None and self.adapter.method != chosen.name:
            raise QuantizationError(f"the model has an adapter of {self.adapter.method}: unload_adapter() or merge_adapter() comes first")
        has_codes = finetuning.has_codes(self.graph)
        if has_codes and scheme is not None:
            raise QuantizationError("scheme= is for models that are float yet; this one has codes, and they stay")
        model = self if has_codes else self.quantize(scheme=chosen.scheme if scheme is None else scheme)
        base = model._declared if model._base is None else model._base
        graph, _ = model._copied(base)
        with shown(progress, of_steps=True) as told:
            adapter = finetuning.train_adapter(
                graph, chosen, data, loss=loss, validation=validation, epochs=epochs, steps=steps, lr=lr, batch=batch, seed=seed,
                threads=self.threads, start=model.adapter, checkpoint=checkpoint, told=told,
            )  # fmt: skip
        tuned = self if inplace else Model(clone(base), self.info, path=self.path, threads=self.threads, exact=self.exact)
        tuned._report, tuned._spent = model.report, model._spent
        tuned._put_adapter(adapter, base)
        return tuned

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        """Write the adapter that is loaded to an .npz file, whole or not at all. Raises QuantizationError without one, SaveError."""
        from qruntime.quantization import adapter

        adapter.write(self._loaded_adapter(), path)

    def load_adapter(self, path: str | os.PathLike[str]) -> None:
        """Change this model to what an adapter was trained to, in place of one that is loaded; needs no torch.

        Raises InputError where the file cannot be read, QuantizationError where it holds no adapter, or one that was trained on
        other codes than those of this model, which then stays as it was.
        """
        from qruntime.quantization import adapter, finetuning

        read = adapter.read(path)
        base = self._declared if self._base is None else self._base
        try:
            finetuning.check_base(self._copied(base)[0], read)
            self._put_adapter(read, base)
        except QuantizationError as error:
            raise QuantizationError(f"{os.fspath(path)!r}: {error}") from error

    def unload_adapter(self) -> None:
        """Change this model back to what it was without its adapter, to the same bits. Raises QuantizationError without one."""
        self._loaded_adapter()
        assert self._base is not None
        self._adopt(self._base)

    def merge_adapter(self) -> None:
        """Make the adapter that is loaded a part of the weights, for good.

        Scales (PEQA) lose nothing. Branches (QLoRA) go and their layers are rounded anew, each to the form it has; facts of the rows
        of `report` say what that costs: `merged_error`, that of rounding in units of what was learned. At 1 and above as good as
        nothing is left of it. Raises QuantizationError without an adapter.
        """
        from qruntime.quantization import finetuning

        adapter, base = self._loaded_adapter(), self._base
        graph, fixed = self._copied(base)
        self._quantized(graph, fixed, finetuning.merge_adapter(graph, adapter, self.report), True)

    def _loaded_adapter(self) -> Adapter:
        if self.adapter is None:
            raise QuantizationError(
                "no adapter is loaded: finetune makes one, load_adapter reads one; a model that was saved with one is one"
            )
        return self.adapter

    def _put_adapter(self, adapter: Adapter, base: Graph) -> None:
        from qruntime.quantization import finetuning

        graph, fixed = self._copied(base)
        finetuning.put_adapter(graph, adapter)
        self._spent = self._spent.union(reopen_defaults(graph, fixed))
        self._adopt(graph, base, adapter)

    def _copied(self, declared: Graph | None = None) -> tuple[Graph, list[FixedInput]]:
        """A copy to quantize, and what was fixed of its defaults: a request that fails half-way leaves the model as it was."""
        graph = clone(self._declared if declared is None else declared)
        fixed = fix_defaults(graph)
        if fixed:
            pipeline.canonical(graph)
        return graph, fixed

    def _quantized(self, graph: Graph, fixed: list[FixedInput], report: Report, inplace: bool) -> Model:
        spent = self._spent.union(reopen_defaults(graph, fixed))
        model = self if inplace else Model(graph, self.info, path=self.path, threads=self.threads, report=report, exact=self.exact)
        if inplace:
            self._adopt(graph)
        model._report, model._spent = report, spent
        return model

    def memory(self, feed: Mapping[str, Any] | None = None) -> MemoryUse:
        """Bytes of packed weights, of constants, and of the activations of a run at their peak.

        Activations depend on the shapes of inputs: they are those of `run(feed)`, else of the last run. A model whose
        inputs have fixed shapes and that never ran is run on zeros, unless it has loops or branches.
        """
        from qruntime.runtime.memory import memory_use

        return memory_use(self._tried(feed), self.graph)

    def _tried(self, feed: Mapping[str, Any] | None = None) -> Plan:
        """The plan of all outputs after `run(feed)`, or after its last run; one that never ran is run on zeros where that
        can be done. Only a run knows which kernels decline, and how large activations are."""
        from qruntime.runtime.memory import blank_feed

        plan = self._plan(tuple(self.graph.output_names), () if feed is None else self._fed(feed))
        if feed is not None:
            self.run(feed)
        elif not plan.subplans and plan.executable.last_run() is None and (zeros := blank_feed(self.graph.inputs)):
            with contextlib.suppress(QRuntimeError):  # zeros may be no valid input
                self.run(zeros)
        return plan

    def summary(self, feed: Mapping[str, Any] | None = None) -> str:
        """A table of what was quantized (shapes, bytes, signal-to-noise of the weights), what was not and why,
        how the nodes run on this machine, and the memory that they take (see `memory`)."""
        from qruntime.display.summary import summary
        from qruntime.runtime.memory import memory_use

        plan = self._tried(feed)
        parts = [summary(self.report, plan.as_run()), *([str(self.adapter)] if self.adapter else []), str(memory_use(plan, self.graph))]
        return "\n\n".join(parts)

    def __str__(self) -> str:
        from qruntime.display.tree import tree

        return tree(self.graph)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as its path and the hash of the file while that holds this graph, else as the whole model."""
        if self._file is not None and self.path is not None and self._file == model_file.identity(self.path):
            return _load_again, (
                os.path.abspath(self.path),
                model_file.digest(self.path),
                self.threads,
                self._external_data_dir,
                self.exact,
            )
        declared = self._declared if self._base is None else self._base
        return _rebuild, (model_file.serialized(declared, self.info), self.path, self.threads, self.report, self.adapter, self.exact)

    def _repr_html_(self) -> str:
        """What a notebook shows: the tree of `print(model)`."""
        from qruntime.display.tree import html_tree

        return html_tree(self.graph)

    def save(self, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
        """Write the model as one ONNX file, its weights beside it in `<path>.data` when they exceed 2 GB.

        `external_data` True puts weights of 1 KB and more there whatever the size, False never. Files appear whole or not
        at all. Raises SaveError.
        """
        from qruntime.onnx_io import exporter

        with model_file.portable(self._declared) as (graph, functions):
            exporter.save_graph(graph, self.info, path, external_data=external_data, functions=functions)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Building graphs and plans makes many objects and no garbage; the collector would search the process for it in vain,
    and once more at the end: what was built counts as old."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # who has frozen objects wants them to stay so
            gc.freeze()
            gc.unfreeze()
        gc.enable()


def _with_defaults(declared: Graph, *, fed: Sequence[str] = ()) -> Graph:
    """`declared` with its defaults as the constants that they are for whoever does not feed them; see `ir/defaults.py`."""
    if not declared.input_defaults:
        return declared
    graph = clone(declared)
    fix_defaults(graph, fed=fed)
    return pipeline.canonical(graph)


def _load_again(path: str, digest: str, threads: int, external_data_dir: str | None = None, exact: bool = False) -> Model:
    if model_file.digest(path) != digest:
        raise InvalidModel(f"{path!r} has changed since the model was pickled")
    return load(path, threads=threads, external_data_dir=external_data_dir, exact=exact)


def _rebuild(data: bytes, path: str | None, threads: int, report: Report, adapter: Adapter | None = None, exact: bool = False) -> Model:
    graph, info = importer.load_graph(data)
    model = Model(graph, info, path=path, threads=threads, report=report, exact=exact)
    if adapter is not None:
        model._put_adapter(adapter, model._declared)
    return model


def _describe(name: str, kind: TypeInfo | None) -> TensorInfo:
    if kind is None:
        return TensorInfo(name, "unknown", None)
    if kind.kind != "tensor":
        return TensorInfo(name, str(kind), None)
    return TensorInfo(name, type_name(kind.dtype), kind.shape)


def _listing(infos: Sequence[TensorInfo]) -> str:
    return "; ".join(map(str, infos)) or "none"


def _is_optional(value: Value) -> bool:
    return value.type is not None and value.type.kind == "optional"


def _copy_into(name: str, results: dict[str, Any], buffer: np.ndarray) -> np.ndarray:
    result = results.get(name)
    if not isinstance(result, np.ndarray):
        raise InputError(f"out: {name!r} is not among the tensors this run makes: {', '.join(results)}")
    if not isinstance(buffer, np.ndarray) or buffer.shape != result.shape or buffer.dtype != result.dtype:
        raise InputError(f"out: {name!r} needs {_kernels.shape_text(result)}, got {_kernels.shape_text(buffer)}")
    if not buffer.flags.writeable:
        raise InputError(f"out: the array for {name!r} is read-only")
    np.copyto(buffer, result)
    return buffer
