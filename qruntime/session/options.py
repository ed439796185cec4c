"""Options of sessions and runs, under ONNX Runtime's names.

What has a meaning here is heeded (the number of threads). What only says how ONNX Runtime should go about its work (arenas,
levels of optimization, logging) is taken and has no effect. What would change results or files, and cannot be done, is
said once.
"""

from __future__ import annotations

import enum
import warnings
from typing import Any

from qruntime.errors import UnsupportedModel

CPU = "CPUExecutionProvider"


class GraphOptimizationLevel(enum.IntEnum):
    """Taken and ignored: a graph is always optimized, and results do not depend on it."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(enum.IntEnum):
    """Taken and ignored: nodes run one after the other, each on all threads."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class ExecutionOrder(enum.IntEnum):
    """Taken and ignored."""

    DEFAULT = 0
    PRIORITY_BASED = 1
    MEMORY_EFFICIENT = 2


_said: set[str] = set()


def warn_once(message: str, stacklevel: int) -> None:
    """The same message is said once in a process, as applications make one session after another."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=stacklevel + 1)


class _Options:
    """Attributes with defaults; another name is taken too, with a warning, as newer applications may know more."""

    def __init__(self) -> None:
        self.__dict__["_entries"] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if not hasattr(type(self), name):
            warn_once(f"{type(self).__name__}.{name} has no meaning in qruntime and is ignored", 2)
        self.__dict__[name] = value

    def _entry(self, key: str) -> str:
        entries: dict[str, str] = self.__dict__["_entries"]
        if key not in entries:
            raise RuntimeError(f"{type(self).__name__} has no entry {key!r}; entries are {sorted(entries)}")
        return entries[key]


class SessionOptions(_Options):
    """Options of a session. `intra_op_num_threads` is the most threads that a run uses, 0 for the default of `load`."""

    enable_cpu_mem_arena = True
    enable_mem_pattern = True
    enable_mem_reuse = True
    enable_profiling = False
    execution_mode = ExecutionMode.ORT_SEQUENTIAL
    execution_order = ExecutionOrder.DEFAULT
    graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_ALL
    inter_op_num_threads = 0
    intra_op_num_threads = 0
    log_severity_level = -1
    log_verbosity_level = 0
    logid = ""
    optimized_model_filepath = ""
    profile_file_prefix = "onnxruntime_profile_"
    use_deterministic_compute = False
    use_per_session_threads = True

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Kept, for get_session_config_entry; has no effect."""
        self.__dict__["_entries"][key] = value

    def get_session_config_entry(self, key: str) -> str:
        """What add_session_config_entry was given. Raises RuntimeError for another key."""
        return self._entry(key)

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Taken and ignored: shapes are read from what is fed."""

    def add_free_dimension_override_by_denotation(self, denotation: str, size: int) -> None:
        """Taken and ignored: shapes are read from what is fed."""

    def register_custom_ops_library(self, path: str) -> None:
        """Raises UnsupportedModel: libraries of operators are made for ONNX Runtime's own interface."""
        raise UnsupportedModel(f"{path!r}: qruntime cannot run operators from libraries; export the model with standard ones")

    def warn_of_what_is_not_done(self) -> None:
        """Say which of the options ask for files that will not be written."""
        if self.enable_profiling:
            warn_once("SessionOptions.enable_profiling writes no file; session.model.profile(feed) times every node", 3)
        if self.optimized_model_filepath:
            warn_once("SessionOptions.optimized_model_filepath: no file is written; session.model.save(path) writes the model", 3)


class RunOptions(_Options):
    """Options of a run. `terminate` makes the next runs that get these options fail; one at work goes on."""

    log_severity_level = -1
    log_verbosity_level = 0
    logid = ""
    only_execute_path_to_fetches = True
    terminate = False

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Kept, for get_run_config_entry; has no effect."""
        self.__dict__["_entries"][key] = value

    def get_run_config_entry(self, key: str) -> str:
        """What add_run_config_entry was given. Raises RuntimeError for another key."""
        return self._entry(key)


def get_available_providers() -> list[str]:
    """The one provider: ["CPUExecutionProvider"]."""
    return [CPU]


def get_all_providers() -> list[str]:
    """The one provider: ["CPUExecutionProvider"]."""
    return [CPU]


def get_device() -> str:
    """The one device: "CPU"."""
    return "CPU"


def set_default_logger_severity(severity: int) -> None:
    """Taken and ignored: qruntime logs nothing."""


def set_default_logger_verbosity(verbosity: int) -> None:
    """Taken and ignored: qruntime logs nothing."""


def disable_telemetry_events() -> None:
    """Nothing: qruntime sends nothing."""


def enable_telemetry_events() -> None:
    """Nothing: qruntime sends nothing."""


def check_providers(providers: Any) -> None:
    """Warn once of every provider that is not the CPU. `providers`: names, or (name, options); None for the default."""
    for provider in providers or ():
        name = provider if isinstance(provider, str) else provider[0]
        if name != CPU:
            warn_once(f"qruntime runs on the CPU; the provider {name!r} is ignored", 3)
