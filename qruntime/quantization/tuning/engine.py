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
def torch_threads(count: int) -> Iterator[None]:
    """Operators of torch divide their work among so many threads. With one, what they add up does not depend on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
