"""Tensors that layers read and that can be changed, channel by channel, without changing what a model computes."""

from qruntime.quantization.sites.finding import find_sites
from qruntime.quantization.sites.keys import KeySite, find_key_sites
from qruntime.quantization.sites.readers import Reader
from qruntime.quantization.sites.site import Site

__all__ = ["KeySite", "Reader", "Site", "find_key_sites", "find_sites"]
