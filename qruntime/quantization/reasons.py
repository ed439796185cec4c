"""Why layers stay as they are, or become other than was asked for. Reasons are values: code compares their kinds, never their words."""

from __future__ import annotations


class Reason(str):
    """Why a layer stays as it is. A plain one is a fault: the layer was asked for and cannot be quantized."""


class Unselected(Reason):
    """The request leaves the layer out, though nothing is wrong with it."""


class Excluded(Unselected):
    """The request says that the layer is to stay as it is."""


class NoWeight(Reason):
    """A product of two activations: there is nothing to store."""


class Stored(Reason):
    """Another tool, or an earlier call, stored the weight in a form of its own."""


class Unobserved(Reason):
    """The layer is quantized, without what needs to see its inputs."""
