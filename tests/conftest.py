"""Settings of the whole suite."""

import signal

from hypothesis import settings

# A shared or slow machine must not fail a property for taking long.
settings.register_profile("qruntime", deadline=None)
settings.load_profile("qruntime")

# A shell starts background jobs with SIGINT ignored, children would inherit that, and tests of Ctrl-C would wait forever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
