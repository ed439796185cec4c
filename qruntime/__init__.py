"""Runtime for quantized ONNX models on CPUs."""
