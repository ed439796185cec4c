"""Comparing decoders of which one keeps keys and values as codes: both start from empty caches, and what they keep is left out."""

from __future__ import annotations

import numpy as np

import qruntime
from qruntime.cli.made_up import Feed
from qruntime.errors import InputError
from qruntime.ir.dtypes import numpy_dtype


def keeps_codes(reference: qruntime.Model, candidate: qruntime.Model) -> bool:
    """Whether the candidate has caches of codes where the reference has floats."""
    return bool(candidate.report.caches) and not reference.report.caches


def comparable_outputs(reference: qruntime.Model, candidate: qruntime.Model) -> tuple[list[str], list[str]]:
    """Names of outputs that mean the same in both, and of those of the candidate that are caches."""
    types = {tensor.name: tensor.dtype for tensor in reference.outputs}
    same = [tensor.name for tensor in candidate.outputs if types.get(tensor.name) == tensor.dtype]
    return same, [tensor.name for tensor in candidate.outputs if tensor.name not in same]


def with_empty_caches(feed: Feed, reference: qruntime.Model, candidate: qruntime.Model) -> Feed:
    """What the candidate is fed in place of `feed`. InputError where a cache of that is not empty."""
    floats = {tensor.name: tensor for tensor in reference.inputs}
    sizes: dict[object, int] = {}
    for name, value in feed.items():
        if name in floats:
            sizes |= dict(zip(floats[name].shape or (), np.shape(value)))
    made: Feed = {}
    for tensor, value in zip(candidate.inputs, candidate.graph.inputs):
        if tensor.name in floats and floats[tensor.name].dtype == tensor.dtype:
            made |= {tensor.name: feed[tensor.name]} if tensor.name in feed else {}
            continue
        shape = tuple(size if isinstance(size, int) else sizes.get(size, -1) for size in tensor.shape or (-1,))
        if 0 not in shape or -1 in shape or value.type is None:
            raise InputError(
                f"input {tensor.name!r} holds codes in one of the models: they can be compared from empty caches alone; "
                "give 0 tokens to the caches, with --shape or in the files of --npz"
            )
        made[tensor.name] = np.zeros(shape, numpy_dtype(value.type.dtype))
    return made
