"""torch, which is there where the extra `train` is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from qruntime.errors import QuantizationError


def check_engine(who: str) -> None:
    """QuantizationError where `who` cannot take gradients, before anything was run."""
    if importlib.util.find_spec("torch") is None:
        raise QuantizationError(f"{who} takes gradients with torch, which is not installed: pip install 'qruntime[train]'")


@contextmanager
def one_thread() -> Iterator[None]:
    """Operators of torch do not divide their work: what they add up does not depend on how many threads there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
