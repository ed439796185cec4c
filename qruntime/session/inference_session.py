"""InferenceSession: a `Model` under ONNX Runtime's names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qruntime.errors import InputError, RunError
from qruntime.ir import Dim, TypeInfo
from qruntime.model import Model, load
from qruntime.session.options import CPU, RunOptions, SessionOptions, check_providers, warn_once
from qruntime.session.values import IOBinding, OrtValue, plain, type_text


class NodeArg(NamedTuple):
    """An input or output: `type` is "tensor(float)" and the like, `shape` holds sizes, names, and None where unknown."""

    name: str
    type: str
    shape: list[Dim]


class ModelMetadata(NamedTuple):
    """What the file says of the model."""

    producer_name: str
    graph_name: str
    domain: str
    description: str
    graph_description: str
    version: int
    custom_metadata_map: dict[str, str]


class InferenceSession:
    """A model that runs, with the methods of ONNX Runtime's class.

    `path_or_bytes`: a path, the bytes of a model, or a `Model`, quantized perhaps. `providers` other than the CPU and
    options without a meaning here are ignored with a warning.

    Raises what `qruntime.load` raises.
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes | Model,
        sess_options: SessionOptions | None = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ):
        self._options = SessionOptions() if sess_options is None else sess_options
        self._options.warn_of_what_is_not_done()
        check_providers(providers)
        for name in kwargs:
            warn_once(f"InferenceSession: the argument {name!r} has no meaning in qruntime and is ignored", 2)
        if isinstance(path_or_bytes, Model):
            self.model = path_or_bytes
        else:
            threads = int(self._options.intra_op_num_threads)
            self.model = load(path_or_bytes, threads=threads if threads > 0 else None)

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: RunOptions | None = None) -> list[Any]:
        """The outputs named (None or empty: all), in that order, for {input name: array, list or OrtValue}.

        Raises InputError (a ValueError) when a name, an element type or a shape does not fit, RunError when a node fails.
        """
        if run_options is not None and run_options.terminate:
            raise RunError("run_options.terminate is set: the run was not started")
        feed = {name: plain(value) for name, value in input_feed.items()}
        return list(self.model.run(feed, output_names or None).values())

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, Any], run_options: RunOptions | None = None
    ) -> list[OrtValue]:
        """`run` whose results are OrtValues."""
        return [OrtValue(value) for value in self.run(output_names, input_dict_ort_values, run_options)]

    def io_binding(self) -> IOBinding:
        """A binding without inputs and outputs."""
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions | None = None) -> None:
        """Run on what is bound; `iobinding.get_outputs()` has the results."""
        if run_options is not None and run_options.terminate:
            raise RunError("run_options.terminate is set: the run was not started")
        iobinding.run(self)

    def get_inputs(self) -> list[NodeArg]:
        """What a run needs."""
        return [_node_arg(value.name, value.type) for value in self.model.graph.inputs]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Inputs that have a value of their own and may be fed another."""
        return [_node_arg(value.name, value.type) for value in self.model._declared.input_defaults]

    def get_outputs(self) -> list[NodeArg]:
        """What a run gives."""
        return [_node_arg(name, info) for name, info in self.model.graph.described_outputs()]

    def get_modelmeta(self) -> ModelMetadata:
        """What the file says of the model."""
        info, graph = self.model.info, self.model.graph
        return ModelMetadata(info.producer_name, graph.name, info.domain, info.doc, graph.doc, info.model_version, dict(info.metadata))

    def get_session_options(self) -> SessionOptions:
        """The options that the session was made with."""
        return self._options

    def get_providers(self) -> list[str]:
        """["CPUExecutionProvider"]"""
        return [CPU]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """{"CPUExecutionProvider": {}}"""
        return {CPU: {}}

    def set_providers(self, providers: Sequence[Any] | None = None, provider_options: Any = None) -> None:
        """Warns once of every provider that is not the CPU."""
        check_providers(providers)

    def enable_fallback(self) -> None:
        """Nothing: there is one provider."""

    def disable_fallback(self) -> None:
        """Nothing: there is one provider."""

    def end_profiling(self) -> str:
        """Raises InputError: profiles are made by `session.model.profile(feed)`."""
        raise InputError("a session writes no profile; session.model.profile(feed) times every node, .to_chrome_trace() writes it")


def _node_arg(name: str, info: TypeInfo | None) -> NodeArg:
    shape = [] if info is None or info.shape is None else [None if dim == "" else dim for dim in info.shape]
    return NodeArg(name, type_text(info), shape)
