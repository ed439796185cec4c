"""Tensors that layers read and that can be changed, channel by channel, without changing what a model computes."""

from qruntime.quantization.sites.finding import find_sites
from qruntime.quantization.sites.readers import Reader
from qruntime.quantization.sites.site import Site

__all__ = ["Reader", "Site", "find_sites"]
