"""Scaled dot-product attention, as exporters decompose it."""

from __future__ import annotations

from qruntime.ir import Graph


def fuse_attention(graph: Graph) -> None:
    """MatMul → scale → mask → Softmax → MatMul  →  Attention"""
