from __future__ import annotations

import onnx
import pytest
from onnx.backend.test.case.node import collect_testcases


@pytest.fixture(scope="session")
def node_models() -> list[onnx.ModelProto]:
    """The models of all operator cases of onnx's backend suite."""
    models = [case.model for case in collect_testcases(None) if case.model is not None]
    assert len(models) > 1000
    return models
