"""Layer and RMS normalisation, as exporters decompose them."""

from __future__ import annotations

from qruntime.ir import Graph


def fuse_layer_norm(graph: Graph) -> None:
    """Recognise decomposed LayerNormalization and RMSNormalization."""
