"""Gradients: a graph as torch computes it, fake quantization with the arithmetic of the codes, blocks.

Everything here needs torch (the extra `train`), and imports it inside functions: nothing else of the package does.
"""
