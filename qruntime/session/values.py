"""OrtValue, IOBinding and the names of types, as ONNX Runtime spells them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qruntime.errors import InputError
from qruntime.ir import TypeInfo
from qruntime.ir.dtypes import ONNX_CODES, numpy_dtype, onnx_code, type_name

if TYPE_CHECKING:
    from qruntime.session.inference_session import InferenceSession

_NAMES = {"float32": "float", "float64": "double"}


def type_text(info: TypeInfo | None) -> str:
    """tensor(float), seq(tensor(int64)), map(string,tensor(float)), optional(…)"""
    if info is None:
        return "tensor(undefined)"
    if info.kind == "map":
        return f"map({_NAMES.get(type_name(info.dtype), type_name(info.dtype))},{type_text(info.elem)})"
    if info.kind in ("sequence", "optional"):
        return f"{'seq' if info.kind == 'sequence' else 'optional'}({type_text(info.elem)})"
    return f"{info.kind}({_NAMES.get(type_name(info.dtype), type_name(info.dtype))})"


def _array_type(array: np.ndarray) -> str:
    name = "string" if array.dtype.kind in "OSUT" else type_name(onnx_code(array.dtype))
    return f"tensor({_NAMES.get(name, name)})"


def _dtype(element_type: Any) -> np.dtype:
    """numpy dtype of a numpy type, an ONNX code or an ONNX name."""
    if isinstance(element_type, int) and not isinstance(element_type, type):
        return numpy_dtype(element_type)
    if isinstance(element_type, str) and element_type in ONNX_CODES:
        return numpy_dtype(ONNX_CODES[element_type])
    return np.dtype(element_type)


def _check_device(device_type: str, device_id: int) -> None:
    if device_type.lower() != "cpu" or device_id != 0:
        raise InputError(f"qruntime runs on the CPU: the device must be 'cpu' 0, got {device_type!r} {device_id}")


class OrtValue:
    """A value that may be fed, and a place for an output: an array, a list (sequence), or nothing (empty optional)."""

    def __init__(self, value: Any):
        self._value = value

    @staticmethod
    def ortvalue_from_numpy(array: np.ndarray, device_type: str = "cpu", device_id: int = 0) -> OrtValue:
        """Of `array` itself; no copy is made. Raises InputError for a device that is not the CPU."""
        _check_device(device_type, device_id)
        return OrtValue(np.asarray(array))

    @staticmethod
    def ortvalue_from_shape_and_type(shape: Sequence[int], element_type: Any, device_type: str = "cpu", device_id: int = 0) -> OrtValue:
        """Of zeros; `element_type` is a numpy type, an ONNX code or its name."""
        _check_device(device_type, device_id)
        return OrtValue(np.zeros(shape, _dtype(element_type)))

    def numpy(self) -> Any:
        """The array, without a copy."""
        return self._value

    def update_inplace(self, array: np.ndarray) -> None:
        """Copy `array` over the value. Raises InputError unless both have one shape and type."""
        array = np.asarray(array)
        if not isinstance(self._value, np.ndarray) or array.shape != self._value.shape or array.dtype != self._value.dtype:
            raise InputError(f"update_inplace needs {self.data_type()} {self.shape()}, got {_array_type(array)} {list(array.shape)}")
        np.copyto(self._value, array)

    def shape(self) -> list[int]:
        """Dimensions; the number of elements of a sequence."""
        return [len(self._value)] if isinstance(self._value, list) else list(np.shape(self._value))

    def data_type(self) -> str:
        """The type's name: "tensor(float)" and the like."""
        if isinstance(self._value, list):
            return f"seq({_array_type(np.asarray(self._value[0])) if self._value else 'tensor(undefined)'})"
        return _array_type(np.asarray(self._value))

    def element_type(self) -> int:
        """ONNX code of the elements of a tensor."""
        array = np.asarray(self._value)
        return ONNX_CODES["string"] if array.dtype.kind in "OSUT" else onnx_code(array.dtype)

    def data_ptr(self) -> int:
        """Address of the first element."""
        return int(np.asarray(self._value).__array_interface__["data"][0])

    def tensor_size_in_bytes(self) -> int:
        """Bytes of the elements."""
        return int(np.asarray(self._value).nbytes)

    def device_name(self) -> str:
        """The one device: "cpu"."""
        return "cpu"

    def has_value(self) -> bool:
        """False for an optional that is empty."""
        return self._value is not None

    def is_tensor(self) -> bool:
        """Whether it is an array."""
        return isinstance(self._value, np.ndarray)

    def is_tensor_sequence(self) -> bool:
        """Whether it is a list."""
        return isinstance(self._value, list)

    def is_sparse_tensor(self) -> bool:
        """False."""
        return False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = np.asarray(self._value, dtype)
        return array.copy() if copy else array


def plain(value: Any) -> Any:
    """What an OrtValue holds; anything else as it is."""
    return value.numpy() if isinstance(value, OrtValue) else value


class IOBinding:
    """Inputs and outputs of runs, set up beforehand. Outputs that are bound to memory are written there."""

    def __init__(self, session: InferenceSession):
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, np.ndarray | None] = {}
        self._results: list[Any] = []
        self._types = {value.name: value.type for value in session.model._declared.inputs}

    def bind_cpu_input(self, name: str, array: Any) -> None:
        """Feed `array` as `name`."""
        self._inputs[name] = plain(array)

    def bind_ortvalue_input(self, name: str, value: OrtValue) -> None:
        """Feed what `value` holds when the run starts."""
        self._inputs[name] = value

    def bind_input(self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int) -> None:
        """Feed the memory at `buffer_ptr`, which must hold elements of that type and shape until it is bound no more."""
        _check_device(device_type, device_id)
        self._inputs[name] = _at_address(buffer_ptr, element_type, shape)

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        """Compute `name`; with `buffer_ptr` into that memory, which must have room for elements of that type and shape."""
        _check_device(device_type, device_id)
        if buffer_ptr is None:
            self._outputs[name] = None
            return
        if element_type is None or shape is None:
            raise InputError(f"bind_output({name!r}): a buffer needs element_type and shape")
        self._outputs[name] = _at_address(buffer_ptr, element_type, shape)

    def bind_ortvalue_output(self, name: str, value: OrtValue) -> None:
        """Compute `name` into the array of `value`."""
        if not value.is_tensor():
            raise InputError(f"bind_ortvalue_output({name!r}): needs an OrtValue of a tensor")
        self._outputs[name] = value.numpy()

    def clear_binding_inputs(self) -> None:
        """Forget the inputs."""
        self._inputs.clear()

    def clear_binding_outputs(self) -> None:
        """Forget the outputs and the results."""
        self._outputs.clear()
        self._results = []

    def synchronize_inputs(self) -> None:
        """Nothing: there is one device."""

    def synchronize_outputs(self) -> None:
        """Nothing: there is one device."""

    def get_outputs(self) -> list[OrtValue]:
        """Results of the run that was last, in the order in which outputs were bound."""
        return [OrtValue(value) for value in self._results]

    def copy_outputs_to_cpu(self) -> list[Any]:
        """The same as arrays."""
        return list(self._results)

    def run(self, session: InferenceSession) -> None:
        """Run `session` on what is bound."""
        feed = {name: plain(value) for name, value in self._inputs.items()}
        into = {name: array for name, array in self._outputs.items() if array is not None}
        results = session.model.run(feed, list(self._outputs), out=into)
        self._results = [results[name] for name in self._outputs]


def _at_address(address: int, element_type: Any, shape: Sequence[int]) -> np.ndarray:
    dtype, sizes = _dtype(element_type), tuple(map(int, shape))
    if dtype.kind == "O" or any(size < 0 for size in sizes):
        raise InputError(f"memory can be bound as numbers of sizes that are known, got {dtype} {list(sizes)}")
    count = math.prod(sizes) * dtype.itemsize
    if count and not address:
        raise InputError(f"a buffer of {dtype} {list(sizes)} lies at no address")
    if not count:
        return np.empty(sizes, dtype)
    return np.frombuffer(memoryview((ctypes.c_char * count).from_address(address)), dtype).reshape(sizes)
