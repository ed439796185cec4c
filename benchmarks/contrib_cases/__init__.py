"""Random nodes of the operators that ONNX Runtime has beside the standard, by family."""

from contrib_cases import attention, generation, language_models, low_bit, quantized, tensors, text  # noqa: F401  (they register themselves)
from contrib_cases.case import DRAWS, Case

__all__ = ["DRAWS", "Case"]
