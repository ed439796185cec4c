"""LSTM, GRU and RNN with quantized weights."""

from __future__ import annotations

from qruntime.ir import Graph


def lower_recurrent(graph: Graph) -> None:
    """LSTM, GRU, RNN over dequantized weights with dynamic metadata  →  DynamicQuantized…"""
