"""Settings of the whole suite."""

from hypothesis import settings

# A shared or slow machine must not fail a property for taking long.
settings.register_profile("qruntime", deadline=None)
settings.load_profile("qruntime")
