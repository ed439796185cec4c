"""Where torch is missing, all is there but gradients, and a call for these says how to get them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from qruntime.errors import QuantizationError
from qruntime.quantization import recipes
from tests.quantization.tuning.models import encoder
from tests.small_models import random

WITH_GRADIENTS = [name for name in recipes if recipes[name].tuning]


def test_names_of_methods_need_no_torch():
    code = "import sys, qruntime.quantization.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_a_call_without_torch_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *more: None if wanted == "torch" else find(wanted, *more))
    model, _ = encoder()
    step = type(recipes[name].tuning[0]).__name__
    with pytest.raises(
        QuantizationError, match=rf"{step} takes gradients with torch, which is not installed: pip install 'qruntime\[train\]'"
    ):
        model.quantize(name, data=[{"x": random(4, 6, 32)}])


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_without_data_nothing_is_learned(name: str):
    pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")
    model, _ = encoder()
    with pytest.raises(QuantizationError, match=r"looks at activations, which come from runs: give data="):
        model.quantize(name)
