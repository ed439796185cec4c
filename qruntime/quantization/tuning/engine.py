"""torch, which is there where the extra `train` is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from qruntime.errors import PackageMissing, QRuntimeError, QuantizationError


def check_engine(who: str) -> None:
    """PackageMissing where `who` cannot take gradients, before anything was run."""
    if importlib.util.find_spec("torch") is None:
        raise PackageMissing(f"{who} takes gradients with torch, which is not installed: pip install 'qruntime[train]'")


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


def tensor_of(given: Any) -> Any:
    """A tensor in memory of its own, of what torch can hold; else what is given."""
    import torch

    return torch.from_numpy(given.copy()) if isinstance(given, np.ndarray) and given.dtype.kind in "fiub" else given


def measured(loss: Callable[[Any, Any], Any], outputs: Mapping[str, Any], feed: Mapping[str, Any]) -> Any:
    """What a loss gives, a tensor of one number. QuantizationError for anything else, and for names that are not there."""
    import torch

    try:
        made = loss(outputs, feed)
    except KeyError as error:
        raise QuantizationError(
            f"loss reads {error.args[0]!r}, which neither the outputs nor the feed hold; "
            f"the outputs are: {', '.join(outputs)}; the feed holds: {', '.join(feed)}"
        ) from error
    except QRuntimeError:
        raise
    except Exception as error:  # whatever a function of others may raise
        raise QuantizationError(
            f"loss(outputs, feed) ended in {type(error).__name__}: {error} (both are {{name: tensor}}; "
            f"the outputs are: {', '.join(outputs)}; the feed holds: {', '.join(feed)})"
        ) from error
    if isinstance(made, torch.Tensor) and made.numel() == 1 and made.requires_grad == torch.is_grad_enabled():
        return made.reshape(())
    if not isinstance(made, torch.Tensor):
        said = f"{type(made).__name__} {made!r}"
    else:
        said = f"a tensor of shape {tuple(made.shape)}" + ("" if made.requires_grad else " without gradient")
    raise QuantizationError(f"loss must give a tensor of one number that is computed from the outputs, got {said}")
