"""Settings of the whole suite, and the fixture that runs a test on every rung."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from qruntime import _kernels

# A shared or slow machine must not fail a property for taking long.
settings.register_profile("qruntime", deadline=None)
settings.load_profile("qruntime")

# A shell starts background jobs with SIGINT ignored, children would inherit that, and tests of Ctrl-C would wait forever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=_kernels.available_isas())
def rung(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels of one instruction set in force, for every one that this CPU has."""
    before = _kernels.isa()
    _kernels.set_isa(request.param)
    yield request.param
    _kernels.set_isa(before)
