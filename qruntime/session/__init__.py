"""The face that users of ONNX Runtime know: `import qruntime as onnxruntime` is the line that changes.

`InferenceSession` and what it takes and gives: options, type strings, I/O bindings. Nothing here computes; a session is a
`Model` seen from another side, and `session.model` is that model.
"""
