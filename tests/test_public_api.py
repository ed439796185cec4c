"""The names and signatures that users write. A change here is a change for the changelog."""

from __future__ import annotations

import inspect
from pathlib import Path

import qruntime
from qruntime import Model

NAMES = {
    "InputError", "InvalidModel", "KernelUnavailable", "Model", "QRuntimeError", "QuantizationError", "RunError",
    "SaveError", "TensorInfo", "UnsupportedModel", "UnsupportedOp", "available_isas", "isa", "load",
}  # fmt: skip

SESSION_NAMES = {
    "ExecutionMode", "ExecutionOrder", "GraphOptimizationLevel", "IOBinding", "InferenceSession", "ModelMetadata", "NodeArg",
    "OrtValue", "RunOptions", "SessionOptions", "get_all_providers", "get_available_providers", "get_device",
    "disable_telemetry_events", "enable_telemetry_events", "set_default_logger_severity", "set_default_logger_verbosity",
}  # fmt: skip
"""Those that users of ONNX Runtime look for."""

SIGNATURES = {
    qruntime.load: "(source, *, threads=None, external_data_dir=None, exact=False)",
    Model.run: "(self, feed, outputs=None, *, out=None)",
    Model.__call__: "(self, *values, **named)",
    Model.quantize: (
        "(self, recipe=None, *, scheme=None, data=None, overrides=None, only=None, exclude=(), mask=None, calibration_bytes=None, "
        "seed=0, progress=False, strict=False, inplace=False, **options)"
    ),
    Model.quantize_dynamic: (
        "(self, qconfig_spec=None, dtype='qint8', mapping=None, inplace=False, *, per_channel=None, activation=None, "
        "engine='qruntime', only=None, exclude=(), strict=False, faster_only=False)"
    ),
    Model.finetune: (
        "(self, method, data, *, loss, validation=None, scheme=None, epochs=1, steps=None, lr=None, batch=1, seed=0, checkpoint=None, "
        "progress=False, inplace=False)"
    ),
    Model.save_adapter: "(self, path)",
    Model.load_adapter: "(self, path)",
    Model.unload_adapter: "(self)",
    Model.merge_adapter: "(self)",
    Model.profile: "(self, feed, *, repeat=20)",
    Model.memory: "(self, feed=None)",
    Model.summary: "(self, feed=None)",
    Model.save: "(self, path, *, external_data=None)",
}

ATTRIBUTES = {"adapter", "exact", "graph", "info", "inputs", "metadata", "outputs", "overridable", "path", "report", "threads"}


def untyped(function: object) -> str:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(parameters))


def test_every_step_is_where_users_look_for_it():
    from qruntime import quantization
    from qruntime.quantization import methods

    steps = {type(step).__name__: type(step) for name in methods.RECIPES for step in methods.RECIPES[name].steps}
    assert len(steps) >= 18
    for name, step in steps.items():
        assert getattr(quantization, name) is step and name in quantization.__all__, name


def test_all_that_is_named_is_there():
    from qruntime import quantization

    for name in quantization.__all__:  # not QuantizedModule, which needs torch
        assert getattr(quantization, name) is not None, name


def test_what_is_imported_later_is_listed_too():
    """Completion asks dir(): names that nobody waits for at the import are names all the same."""
    from qruntime import quantization

    assert {*qruntime.__all__, "quantization", "__version__"} <= set(dir(qruntime))
    assert {*quantization.__all__, "quantize_dynamic"} <= set(dir(quantization))


def test_public_names():
    assert set(qruntime.__all__) == NAMES | SESSION_NAMES
    for name in NAMES | SESSION_NAMES:
        assert getattr(qruntime, name).__doc__, f"{name} has no docstring"


def test_signatures():
    assert {f.__qualname__: untyped(f) for f in SIGNATURES} == {f.__qualname__: s for f, s in SIGNATURES.items()}


def test_members_of_a_model():
    model = qruntime.load(_identity())
    public = {name for name in (*dir(Model), *vars(model)) if not name.startswith("_")}
    methods = {f.__name__ for f in SIGNATURES if f.__qualname__.startswith("Model.") and not f.__name__.startswith("_")}
    assert public == methods | ATTRIBUTES
    for name in methods:
        assert getattr(Model, name).__doc__


def _identity() -> bytes:
    from tests.small_models import FLOAT, helper, model_bytes

    return model_bytes([helper.make_node("Identity", ["x"], ["y"])], [("x", FLOAT, [1])], [("y", FLOAT, [1])])


def test_one_tree_of_errors():
    for name in NAMES:
        thing = getattr(qruntime, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert issubclass(thing, qruntime.QRuntimeError)
    assert issubclass(qruntime.InputError, ValueError)
    assert issubclass(qruntime.QuantizationError, ValueError)
    assert issubclass(qruntime.RunError, RuntimeError)
    assert issubclass(qruntime.UnsupportedOp, qruntime.UnsupportedModel)
    assert not issubclass(qruntime.UnsupportedModel, qruntime.InvalidModel)


def test_one_version():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'\nversion = "{qruntime.__version__}"\n' in text
