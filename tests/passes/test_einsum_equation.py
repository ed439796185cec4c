"""Equations of Einsum are read as numpy reads them; what is none is refused with a reason."""

from __future__ import annotations

import pytest

from qruntime.passes.einsum_equation import ANY, parsed
from qruntime.passes.rewriting import Skip


@pytest.mark.parametrize(
    ("equation", "terms", "output"),
    [
        ("ij,jk->ik", [("i", "j"), ("j", "k")], ("i", "k")),
        ("ij,jk", [("i", "j"), ("j", "k")], ("i", "k")),
        ("ba", [("b", "a")], ("a", "b")),  # without an arrow, the labels that occur once, in the order of the alphabet
        ("bA", [("b", "A")], ("A", "b")),
        ("ii", [("i", "i")], ()),
        ("ij->", [("i", "j")], ()),
        ("->", [()], ()),
        (",i->i", [(), ("i",)], ("i",)),
        (" b i j , b j k -> b i k ", [("b", "i", "j"), ("b", "j", "k")], ("b", "i", "k")),
        ("...ij,jk->...ik", [(ANY, "i", "j"), ("j", "k")], (ANY, "i", "k")),
        ("i...,i...", [("i", ANY), ("i", ANY)], (ANY,)),
        ("b...a", [("b", ANY, "a")], (ANY, "a", "b")),
    ],
)
def test_what_an_equation_says(equation, terms, output):
    assert parsed(equation) == (terms, output)


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("i1->i", "'i1' in 'i1->i' is no term"),
        ("i..j->ij", "is no term"),
        ("i......j->ij", "is no term"),
        ("é->é", "is no term"),
        ("i->ii", "names a label twice"),
        ("i->j", "one that no term has"),
        ("i->i->i", "names a label twice, or one that no term has"),
        ("i->...i", "one that no term has"),
        ("i...->i", "lacks '...'"),
    ],
)
def test_what_is_no_equation(equation, reason):
    found = parsed(equation)
    assert isinstance(found, Skip)
    assert reason in found
